"""A real `kosmosg serve` process, and prompts to ask it for."""

import base64
import io
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

START_S = 120  # a busy machine; what it takes on a quiet one is in docs/results.md


@dataclass
class Server:
    """A process, its address, and where its log goes."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, **options)

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(
            float(line.split()[-1]) for line in lines if line.startswith((name + " ", name + "{"))
        )

    def wait(self) -> int:
        return self.process.wait(timeout=120)


@contextmanager
def serving(log: Path, *options: str) -> Iterator[Server]:
    """Start a server on a free port, wait until it is ready, and kill it at the end."""
    command = [sys.executable, "-m", "kosmosg", "serve", "--port", "0", *options]
    with log.open("a") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip().rstrip("/")
        assert url.startswith("http://"), log.read_text()
        until_ready(url)
        yield Server(process=process, url=url, log=log)
    finally:
        process.kill()
        process.communicate()  # and close its pipe


def until_ready(url: str) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if httpx.get(f"{url}/readyz").status_code == 200:
            return
        time.sleep(0.1)
    raise AssertionError(f"{url} was not ready within {START_S} s")


def data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def picture_of(b64_json: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(b64_json)))
    image.load()
    return image
