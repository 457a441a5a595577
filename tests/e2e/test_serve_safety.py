"""What strangers may send: any of the schema's requests, damaged pictures, wrong keys and names."""

import io
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kosmosg.cli import main
from toys.serving import Server, data_url, serving

KEY = "0123456789abcdef0123"
CASES = int(os.environ.get("KOSMOSG_SCHEMA_CASES", "200"))
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "keys").write_text(KEY + "\n")
    options = ("--api-key-file", str(folder / "keys"), "--max-upload", "1", "--max-steps", "3")
    with serving(folder / "log", *options) as made:
        yield made


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with server.client(headers={"authorization": f"Bearer {KEY}"}) as made:
        yield made


@pytest.fixture(scope="module")
def schema(http: httpx.Client) -> Any:
    return schemathesis.openapi.from_dict(http.get("/openapi.json").json())


def test_nothing_of_the_schema_is_a_500(schema: Any, server: Server):
    """A share of the cases for each operation; KOSMOSG_SCHEMA_CASES asks for more."""
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {GENERATIONS, EDITS, "/v1/conditions"}
    weights = {"post": 5, "get": 1}
    total = sum(weights[operation.method] for operation in operations)
    seen: list[int] = []
    for operation in operations:
        cases = max(1, CASES * weights[operation.method] // total)

        @given(case=operation.as_strategy())
        @settings(max_examples=cases, deadline=None, suppress_health_check=list(HealthCheck))
        def ask(case: Any) -> None:
            answer = case.call(
                base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60
            )
            seen.append(answer.status_code)
            assert answer.status_code < 500, answer.text
            case.validate_response(answer, checks=[schemathesis.checks.not_a_server_error])

        ask()
    assert len(seen) > CASES // 2
    assert 200 in seen
    assert 400 in seen


def pictures() -> dict[str, bytes]:
    image = Image.effect_noise((40, 30), 60).convert("RGB")
    made = {}
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        file = io.BytesIO()
        image.save(file, form)
        made[form] = file.getvalue()
    return made


PICTURES = pictures()


@given(
    form=st.sampled_from(sorted(PICTURES)),
    seed=st.integers(0, 2**32),
    damage=st.integers(1, 40),
    cut=st.floats(0.02, 1.0),
)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_pictures_are_answered(
    http: httpx.Client, form: str, seed: int, damage: int, cut: float
):
    rng = random.Random(seed)
    data = bytearray(PICTURES[form][: max(8, int(len(PICTURES[form]) * cut))])
    for _ in range(damage):
        data[rng.randrange(len(data))] = rng.randrange(256)
    fields = {"prompt": "in the snow", "num_inference_steps": "1"}
    answer = http.post(EDITS, data=fields, files={"image[]": ("a", bytes(data))})
    assert answer.status_code in (200, 400), answer.text


@given(
    body=st.binary(max_size=2000),
    kind=st.sampled_from(["application/json", "multipart/form-data; boundary=x", "text/plain"]),
)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_are_answered(http: httpx.Client, body: bytes, kind: str):
    for path in (GENERATIONS, EDITS):
        answer = http.post(path, content=body, headers={"content-type": kind})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


ODD: dict[str, tuple[bytes, str]] = {
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "not a picture"),
    "html": (b"<html><script>alert(1)</script>", "not a picture"),
    "empty": (b"", "is empty"),
    "truncated": (PICTURES["PNG"][:200], "damaged picture"),
    "pickle": (b"\x80\x04cos\nsystem\n(S'true'\ntR.", "not a picture"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_refused_by_name(http: httpx.Client, name: str):
    data, message = ODD[name]
    answer = http.post(EDITS, data={"prompt": "a"}, files={"image[]": (name, data)})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_a_bomb_is_refused_before_it_is_opened(http: httpx.Client):
    file = io.BytesIO()
    Image.new("1", (20000, 20000)).save(file, "PNG")
    answer = http.post(EDITS, data={"prompt": "a"}, files={"image[]": ("a", file.getvalue())})
    assert "64 million pixels" in answer.json()["error"]["message"]


def test_a_polyglot_is_a_picture_and_no_more(http: httpx.Client):
    data = PICTURES["PNG"] + b"PK\x03\x04<script>"
    fields = {"prompt": "in the snow", "num_inference_steps": "1"}
    answer = http.post(EDITS, data=fields, files={"image": ("../../etc/passwd", data)})
    assert answer.status_code == 200
    assert b"passwd" not in answer.content


def test_too_large_a_body_is_cut_off(http: httpx.Client):
    assert http.post(GENERATIONS, content=b"x" * 2**21).status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 2**16

    answer = http.post(GENERATIONS, content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


def test_too_many_pictures_are_not_even_opened(http: httpx.Client, repository: Path):
    url = data_url(repository / "docs" / "images" / "creature.png")
    part = {"type": "image_url", "image_url": {"url": url[:40]}}  # damaged, if anybody looked
    answer = http.post(GENERATIONS, json={"prompt": [part] * 9})
    assert "at most 8" in answer.json()["error"]["message"]
    files = [("image[]", ("a", PICTURES["PNG"]))] * 18
    assert http.post(EDITS, data={"prompt": "a"}, files=files).status_code == 400


def test_without_the_key_only_health_and_page_are_there(server: Server):
    with server.client() as stranger:
        for path in ("/v1/models", "/metrics"):
            answer = stranger.get(path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
        wrong = {"authorization": f"Bearer {KEY}x"}
        assert stranger.post(GENERATIONS, json={"prompt": "a"}, headers=wrong).status_code == 401
        for path in ("/healthz", "/readyz", "/openapi.json"):
            assert stranger.get(path).status_code == 200


def test_other_peoples_pages_are_kept_out(http: httpx.Client, server: Server):
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    ):
        assert http.get("/v1/models", headers=headers).status_code == 403, headers
    assert http.get("/v1/models", headers={"origin": server.url}).status_code == 200
    for host in ("evil.example", "127.evil.example", "a b@c", "[bad", "localhost@evil.example"):
        assert http.get("/v1/models", headers={"host": host}).status_code == 421, host
    answer = http.options("/v1/models", headers={"access-control-request-method": "GET"})
    assert "access-control-allow-origin" not in answer.headers


def test_security_headers(http: httpx.Client):
    for path in ("/healthz", "/v1/models", "/nowhere"):
        headers = http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers
    assert http.get("/v1/models").headers["cache-control"] == "no-store"


def test_errors_of_the_framework_are_openais_too(http: httpx.Client):
    for answer in (http.get("/nowhere"), http.delete("/v1/models")):
        assert answer.status_code in (404, 405)
        assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1"])
def test_nobody_is_let_in_by_mistake(host: str, capsys: pytest.CaptureFixture[str]):
    assert main(["serve", "--host", host, "--port", "0"]) == 2
    assert "--i-know-this-is-open-to-everyone" in capsys.readouterr().err


def test_a_port_in_use_is_one_line(server: Server, capsys: pytest.CaptureFixture[str]):
    assert main(["serve", "--port", server.url.rpartition(":")[2]]) == 2
    assert "choose another --port" in capsys.readouterr().err
