"""A run's output directory: held by one run, and rid of what killed ones left."""

import fcntl
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from kosmosg.errors import ConfigError

WAIT_S = 30.0

_DRIVER, _WORKERS = ".lock", ".lock-workers"
_JOURNAL = re.compile(r"\.[^.]+\.journal")
_LEFT = re.compile(r"\.[^.]+\.(?:tar|json)\.\d+\.part")


@contextmanager
def hold(output: Path) -> Iterator[None]:
    """Hold the directory, made if need be, for one run; remove what dead runs began to write.

    Raises:
        ConfigError: If another run, or a worker that has outlived one, still writes there.
        OSError: If it cannot be made or written to.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / _DRIVER).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process writes to {output}; wait for it or name another directory"
            ) from error
        wait_for_workers(output)
        remove_leftovers(output)
        yield


def share(output: Path) -> TextIO:
    """Return a file that says, as long as it is open, that a worker may write to the directory."""
    lock = (output / _WORKERS).open("w")
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def remove_leftovers(output: Path) -> None:
    """Remove files that processes now dead were writing."""
    for path in output.iterdir():
        if _LEFT.fullmatch(path.name):
            path.unlink(missing_ok=True)


def remove_journals(output: Path) -> None:
    """Remove what units say of deaths; that of a run that was killed itself stays for the next."""
    for path in output.iterdir():
        if _JOURNAL.fullmatch(path.name):
            path.unlink(missing_ok=True)


def wait_for_workers(output: Path) -> None:
    """Return when no worker may write any more: those of a run that was killed notice and end.

    Raises:
        ConfigError: If one does not.
    """
    deadline = time.monotonic() + WAIT_S
    with (output / _WORKERS).open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"workers of a run that was killed still write to {output}; end them, or"
                        " name another directory"
                    ) from error
                time.sleep(0.1)
