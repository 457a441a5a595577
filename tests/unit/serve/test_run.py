"""The process that serves: from its address to its end."""

import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from kosmosg.serve.keys import Keys
from kosmosg.serve.run import run
from kosmosg.serve.tasks import ServeConfig


class Told(Exception):
    """The address was told."""


def test_the_address_takes_connections_when_it_is_told(toy_dir: Path):
    def say(url: str) -> None:
        parts = urlsplit(url)
        socket.create_connection((parts.hostname, parts.port), timeout=5).close()
        raise Told

    with pytest.raises(Told):
        run(ServeConfig(model=toy_dir), keys=Keys([]), host="127.0.0.1", port=0, say=say)
