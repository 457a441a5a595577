"""Which weights: a sha256 for each part of a model's directory."""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from kosmosg import release
from kosmosg.errors import CheckpointError

SUMS = "SHA256SUMS"


def of_parts(directory: Path, parts: Iterable[str]) -> dict[str, str]:
    """Return the sha256 of each part: of the sums and names of its files, in order of the names.

    A directory may have a file SHA256SUMS, as `sha256sum` writes and checks it; files that have not
    changed since are not read again. Otherwise a file is read once in a process.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    known = _read_sums(directory / SUMS)
    return {part: _of_part(directory / part, known) for part in parts}


def of_directory(directory: Path) -> str:
    """Return the sha256 of any model's directory: of the sums and names of its weights and configs.

    Folders below it count too, and a file SHA256SUMS in it as in `of_parts`.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    known = _read_sums(directory / SUMS)
    paths = [*directory.rglob("*.safetensors"), *directory.rglob("config.json")]
    return _of_files(paths, known, directory)


def of_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, read again only when it has changed.

    Raises:
        CheckpointError: If it cannot be read.
    """
    try:
        state = path.stat()
        return _read(path.resolve(), state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; restore the file") from None


def _of_part(folder: Path, known: dict[Path, str]) -> str:
    paths = release.weight_files(folder)  # none: the tokenizer, which has no weights
    paths = [*paths, folder / "config.json"] if paths else sorted(folder.glob("*"))
    return _of_files(paths, known, folder)


def _of_files(paths: Iterable[Path], known: dict[Path, str], folder: Path) -> str:
    lines = [
        f"{known.get(path) or of_file(path)}  {path.relative_to(folder).as_posix()}\n"
        for path in sorted(paths)
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@functools.lru_cache(4096)
def _read(path: Path, size: int, changed: int) -> str:
    del size, changed  # another of either is another file
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_sums(path: Path) -> dict[Path, str]:
    """Return the sums of the files that are older than their list."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        written = path.stat().st_mtime_ns
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; write it again or remove it") from None
    sums = {}
    for line in lines:
        sha256, mark, name = line[:64], line[64:66], line[66:]
        file = path.parent / name.removeprefix("./")
        if mark in ("  ", " *") and file.is_file() and file.stat().st_mtime_ns <= written:
            sums[file] = sha256
    return sums
