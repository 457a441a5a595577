"""What every test stands on: shape checks on, network off, one thread, a home of its own."""

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from jaxtyping import install_import_hook

# Before anything imports torch: two cores are shared by two pytest workers.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

# A runner in the background ignores Ctrl-C, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Shapes and types of every function of kosmosg are checked here and nowhere else. The hook must
# come before the first import of kosmosg, so tests/conftest.py itself imports none of it.
install_import_hook("kosmosg", "beartype.beartype")

# The same examples each time, and no deadline: a busy machine is not a wrong program.
hypothesis.settings.register_profile("kosmosg", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("kosmosg")

_REPOSITORY = Path(__file__).parents[1]
_HOME = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    home = tempfile.TemporaryDirectory(prefix="kosmosg-tests-", ignore_cleanup_errors=True)
    config.stash[_HOME] = home
    os.environ |= {
        "HOME": home.name,
        "XDG_CACHE_HOME": f"{home.name}/cache",
        "HF_HOME": f"{home.name}/huggingface",
        "TORCH_HOME": f"{home.name}/torch",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }
    for name in ("FORCE_COLOR", "KOSMOSG_MODEL"):
        os.environ.pop(name, None)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _HOME in config.stash:
        config.stash[_HOME].cleanup()


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Fail any test that would reach another machine, in words that say so.

    A RuntimeError, because libraries retry or swallow an OSError.
    """
    connect, resolve = socket.socket.connect, socket.getaddrinfo
    loopback = {"localhost", "127.0.0.1", "::1", "", None}

    def connect_here(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else None  # a str is a Unix socket
        if host not in loopback:
            raise RuntimeError(f"a test tried to connect to {host!r}; tests run without network")
        connect(self, address)

    def resolve_here(host: Any, *args: Any, **kwargs: Any) -> object:
        if host not in loopback:
            raise RuntimeError(f"a test tried to look up {host!r}; tests run without network")
        return resolve(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        patch.setattr(socket, "getaddrinfo", resolve_here)
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this checkout."""
    return _REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The project's shared folder (golden data, specifications); absent, its tests are skipped."""
    folder = Path(os.environ.get("KOSMOSG_SHARED", _REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"NOT PROVED HERE: no shared folder at {folder}; set KOSMOSG_SHARED to it")
    return folder


@pytest.fixture(scope="session")
def toy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model of random weights, as `save_pretrained` writes it."""
    from toys.model import toy_pipeline

    directory = tmp_path_factory.mktemp("toy") / "model"
    toy_pipeline().save_pretrained(directory)
    return directory
