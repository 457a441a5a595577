"""A server under way: clients that leave, signals under load, death and a new beginning."""

import contextlib
import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from toys.serving import Server, serving

PATH = "/v1/images/generations"


def ask(url: str, **said: Any) -> httpx.Response:
    return httpx.post(url + PATH, json={"prompt": "a creature", **said}, timeout=120)


def until(true: Any) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(server: Server, stream: bool):
    said = {"prompt": "a creature", "num_inference_steps": 250, "n": 10, "stream": stream}
    before = server.metric("kosmosg_left_total")
    with server.client() as http, contextlib.suppress(httpx.ReadTimeout):
        http.timeout = httpx.Timeout(30, read=1.0)
        with http.stream("POST", PATH, json=said) as answer:
            next(answer.iter_raw())  # the first event of a stream; a whole answer takes too long
            time.sleep(1.0)
    until(lambda: server.metric("kosmosg_left_total") == before + 1)
    until(lambda: server.metric("kosmosg_running_pictures") == 0)
    assert ask(server.url, num_inference_steps=2).status_code == 200


def test_a_full_queue_says_when_to_come_again(server: Server):
    long = {"num_inference_steps": 250, "n": 10, "size": "96x96"}
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(leave_after, server, 3.0, **long) for _ in range(8)]
        until(lambda: server.metric("kosmosg_waiting_pictures") > 54)
        answer = ask(server.url, n=10)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "overloaded"
        for one in asked:
            one.result()
    until(lambda: server.metric("kosmosg_waiting_pictures") == 0)


def leave_after(server: Server, seconds: float, **said: Any) -> None:
    patience = httpx.Timeout(30, read=seconds)
    with contextlib.suppress(httpx.ReadTimeout):  # or told at once that there is no room
        httpx.post(server.url + PATH, json={"prompt": "a creature", **said}, timeout=patience)


def test_sigterm_under_load_loses_nothing_that_was_accepted(tmp_path: Path):
    """Every client gets its picture or is told to come again; none waits in vain."""
    answers: list[int] = []
    stop = threading.Event()

    def keep_asking(url: str, number: int) -> None:
        while not stop.is_set():
            try:
                said = {"seed": number, "num_inference_steps": 10}
                answer = ask(url, **said)
            except (httpx.ConnectError, httpx.RemoteProtocolError):
                return  # after the end, or too late for its request to be read: see the log
            answers.append(answer.status_code)
            if answer.status_code != 200:
                assert answer.status_code == 503
                assert answer.headers["retry-after"]
                return
            assert len(answer.json()["data"]) == 1

    with serving(tmp_path / "log") as server, ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(keep_asking, server.url, number) for number in range(8)]
        until(lambda: answers.count(200) >= 8)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        stop.set()
        for one in asking:
            one.result()
    assert set(answers) <= {200, 503}
    assert answers.count(503) >= 1
    log = [json.loads(line) for line in server.log.read_text().splitlines() if line[:1] == "{"]
    read = [one["status"] for one in log if one.get("method") == "POST"]
    assert sorted(read) == sorted(answers)  # whatever was read was answered


def test_after_kill_9_it_begins_anew(tmp_path: Path):
    with serving(tmp_path / "log") as server:
        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask, server.url, num_inference_steps=250) for _ in range(4)]
            until(lambda: server.metric("kosmosg_accepted_total") == 4)
            server.process.kill()
            server.process.wait()
            for one in asking:
                assert isinstance(one.exception(), httpx.TransportError)
        port = server.url.rpartition(":")[2]
    with serving(tmp_path / "log", "--port", port) as again:
        assert again.url == server.url
        assert again.metric("kosmosg_accepted_total") == 0
        assert ask(again.url, num_inference_steps=2).status_code == 200
        again.process.send_signal(signal.SIGINT)
        assert again.wait() == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with serving(tmp_path_factory.mktemp("serve") / "log") as made:
        yield made
