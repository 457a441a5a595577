import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from kosmosg.construct.config import EndpointConfig
from kosmosg.construct.endpoint import MAX_ANSWER_BYTES, endpoint_finder
from kosmosg.errors import ConfigError, DataError

KEY = "sk-very-secret"


class Server:
    """An OpenAI-like server whose answers a test writes; it remembers what it was asked."""

    def __init__(self) -> None:
        self.questions: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answer: Callable[[BaseHTTPRequestHandler, str, int], None] = lambda *_: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.questions.append(json.loads(body))
                outer.headers.append(dict(self.headers))
                outer.paths.append(self.path)
                caption = outer.questions[-1]["messages"][-1]["content"]
                asked = sum(q["messages"][-1]["content"] == caption for q in outer.questions)
                outer.answer(self, caption, asked)

            do_GET = do_POST

            def log_message(self, *_: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self._thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        self.http.shutdown()
        self._thread.join()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TEST_KEY", KEY)
    made = Server()
    yield made
    made.stop()


def config(server: Server, **more: Any) -> EndpointConfig:
    fields = {"retries": 2, "first_wait_s": 0.01, "timeout_s": 5.0, "parallel": 2} | more
    return EndpointConfig(url=server.url, model="toy", key_variable="TEST_KEY", **fields)


def send(handler: BaseHTTPRequestHandler, content: Any, status: int = 200) -> None:
    body = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def entities(*tags: Any) -> str:
    return json.dumps({"entities": list(tags)})


def test_good_answers_are_parsed_strictly_and_come_in_order(server: Server) -> None:
    def answer(handler: BaseHTTPRequestHandler, caption: str, _: int) -> None:
        time.sleep(0.05 if "dog" in caption else 0)
        send(handler, entities(caption.split()[-1], "unicorn", "red"))

    server.answer = answer
    find = endpoint_finder(config(server))
    assert find(["a red dog", "a red cat", "a hat"]) == [["dog"], ["cat"], ["hat"]]
    assert set(server.paths) == {"/v1/chat/completions"}
    asked = server.questions[0]
    assert asked["model"] == "toy"
    assert asked["temperature"] == 0
    schema = asked["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["entities"]["items"] == {"type": "string"}
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}


def test_a_busy_server_is_asked_again(server: Server) -> None:
    server.answer = lambda handler, _, asked: send(
        handler, entities("dog"), 200 if asked == 3 else (503, 429)[asked - 1]
    )
    assert endpoint_finder(config(server))(["a dog"]) == [["dog"]]
    assert len(server.questions) == 3


def test_a_server_that_fails_on_ends_the_call_and_names_no_key(server: Server) -> None:
    server.answer = lambda handler, *_: send(handler, KEY, 500)
    with pytest.raises(ConfigError, match="does not answer after 3 tries: HTTP 500") as caught:
        endpoint_finder(config(server))(["a dog"])
    assert KEY not in str(caught.value)
    assert len(server.questions) == 3


@pytest.mark.parametrize(
    ("status", "says"), [(401, "TEST_KEY"), (404, "entities.url"), (400, "toy")]
)
def test_a_refusal_is_not_asked_again(server: Server, status: int, says: str) -> None:
    server.answer = lambda handler, *_: send(handler, "", status)
    with pytest.raises(ConfigError, match=says):
        endpoint_finder(config(server))(["a dog"])
    assert len(server.questions) == 1


def test_the_key_does_not_follow_a_redirect(server: Server) -> None:
    other = Server()
    try:

        def answer(handler: BaseHTTPRequestHandler, *_: object) -> None:
            handler.send_response(307)
            handler.send_header("Location", f"{other.url}/chat/completions")
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        server.answer = answer
        with pytest.raises(ConfigError, match="HTTP 307"):
            endpoint_finder(config(server))(["a dog"])
        assert other.questions == []
    finally:
        other.stop()


@pytest.mark.parametrize(
    "content",
    [
        "dog, hat",
        None,
        17,
        "",
        "[]",
        '["dog"]',
        '{"entities": "dog"}',
        '{"entities": [1]}',
        '{"entities": ["dog"], "note": "hello"}',
        '{"tags": ["dog"]}',
        "[" * 100_000,
    ],
)
def test_nonsense_is_asked_once_more_and_then_the_caption_is_left_out(
    server: Server, content: Any
) -> None:
    server.answer = lambda handler, caption, _: send(
        handler, entities("hat") if "hat" in caption else content
    )
    first, second = endpoint_finder(config(server))(["a dog", "a hat"])
    assert isinstance(first, DataError)
    assert first.reason == "answer not understood"
    assert "a dog" in str(first)
    assert second == ["hat"]
    assert len(server.questions) == 3


def test_nonsense_once_does_no_harm(server: Server) -> None:
    server.answer = lambda handler, _, asked: send(
        handler, "???" if asked == 1 else entities("dog")
    )
    assert endpoint_finder(config(server))(["a dog"]) == [["dog"]]


def test_half_an_answer_is_asked_for_again(server: Server) -> None:
    def answer(handler: BaseHTTPRequestHandler, _: str, asked: int) -> None:
        if asked == 1:
            handler.send_response(200)
            handler.send_header("Content-Length", "500")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [{"mess')
        else:
            send(handler, entities("dog"))

    server.answer = answer
    assert endpoint_finder(config(server))(["a dog"]) == [["dog"]]


def test_an_endless_answer_is_cut_off(server: Server) -> None:
    def answer(handler: BaseHTTPRequestHandler, *_: object) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            for _part in range(4 * MAX_ANSWER_BYTES // 65536):
                handler.wfile.write(b"x" * 65536)
        except OSError:
            pass

    server.answer = answer
    (found,) = endpoint_finder(config(server))(["a dog"])
    assert isinstance(found, DataError)
    assert str(MAX_ANSWER_BYTES) in str(found)


@pytest.mark.parametrize("dripping", [False, True])
def test_a_slow_server_is_given_up(server: Server, dripping: bool) -> None:
    def answer(handler: BaseHTTPRequestHandler, *_: object) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            for _part in range(40):
                time.sleep(0.05)
                if dripping:
                    handler.wfile.write(b" ")
        except OSError:
            pass

    server.answer = answer
    began = time.monotonic()
    with pytest.raises(ConfigError, match="timed out"):
        endpoint_finder(config(server, timeout_s=0.3, retries=1))(["a dog"])
    assert time.monotonic() - began < 4


def test_no_server_at_all() -> None:
    made = Server()
    made.stop()
    with pytest.raises(ConfigError, match=r"entities\.url"):
        endpoint_finder(config(made, retries=0))(["a dog"])


def test_without_a_key_none_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY")
    server.answer = lambda handler, *_: send(handler, entities())
    assert endpoint_finder(config(server))(["a dog"]) == [[]]
    assert "Authorization" not in server.headers[0]


def test_a_key_that_would_break_the_header_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEST_KEY", f"{KEY}\n")
    with pytest.raises(ConfigError, match="TEST_KEY") as caught:
        endpoint_finder(EndpointConfig(url="http://a/v1", model="toy", key_variable="TEST_KEY"))
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "a.b/v1", "http://me:word@a/v1", "http://"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="http") as caught:
        EndpointConfig(url=url, model="toy")
    assert "word" not in str(caught.value)
