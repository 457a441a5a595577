"""Two replicas on one machine, behind Ray's proxy."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from kosmosg.serve.keys import Keys
from kosmosg.serve.tasks import ServeConfig

ray = pytest.importorskip("ray", reason="the extra serve-replicas is not installed")
serve = pytest.importorskip("ray.serve", reason="the extra serve-replicas is not installed")
KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def url(toy_dir: Path) -> Iterator[str]:
    from kosmosg.serve.replicas import application

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(ServeConfig(model=toy_dir), keys=Keys([KEY]), num_replicas=2))
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def test_two_replicas_answer_as_one_server(url: str):
    def ask(seed: int) -> tuple[int, int]:
        said = {"prompt": "a red cat", "seed": seed, "num_inference_steps": 40}
        answer = httpx.post(
            f"{url}/v1/images/generations",
            json=said,
            headers={"authorization": f"Bearer {KEY}"},
            timeout=120,
        )
        assert answer.status_code == 200, answer.text
        return seed, answer.json()["data"][0]["seed"]

    num_asked = 25  # odd, so that two replicas cannot have drawn as many each and look like one
    with ThreadPoolExecutor(8) as pool:
        assert all(asked == told for asked, told in pool.map(ask, range(num_asked)))
    assert httpx.get(f"{url}/v1/models").status_code == 401
    headers = {"authorization": f"Bearer {KEY}"}
    drawn = set()
    for _ in range(40):  # Ray's proxy gives each request to one of the two
        text = httpx.get(f"{url}/metrics", headers=headers).text
        drawn.add(next(line for line in text.splitlines() if "_pictures_total" in line[:24]))
        if len(drawn) == 2:
            break
    counts = [float(line.split()[-1]) for line in drawn]
    assert sum(counts) == num_asked, drawn
    assert min(counts) > 0
