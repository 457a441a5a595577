"""Results into files: whole or not at all."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from kosmosg.errors import ConfigError

SUFFIXES = {
    ".png": "pictures are written as PNG",
    ".safetensors": "conditions are safetensors",
    ".txt": "hashes are text",
    ".html": "pages are written as HTML",
}


def check_output(path: Path, inputs: Sequence[Path], *, suffix: str = ".png") -> None:
    """Pass a path where a result can be written, before any work is done for it.

    Args:
        path: Where it will go; an existing file there is replaced.
        inputs: Files that must not be.
        suffix: That its name must have.

    Raises:
        ConfigError: If it has another suffix, its directory does not exist or may not be written
            to, or it is a file of the prompt.
    """
    if path.suffix.lower() != suffix:
        raise ConfigError(f"{path} does not end in {suffix}; {SUFFIXES[suffix]}")
    if path.is_dir():
        raise ConfigError(f"{path} is a directory; name a file in it")
    if not path.parent.is_dir():
        raise ConfigError(f"there is no directory {path.parent}; make it first, or name another")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path.parent} may not be written to; name another directory")
    if any(path.resolve() == given.resolve() for given in inputs):
        raise ConfigError(f"{path} is a picture of the prompt; write to another file")


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write every file under a passing name, then give all of them their own.

    Raises:
        OSError: If one cannot be written; then none appears, and what stood there stays.
    """
    passing = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in files}
    try:
        for path, data in files.items():
            try:
                passing[path].write_bytes(data)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
        for path, part in passing.items():
            part.replace(path)
    finally:
        for part in passing.values():
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
