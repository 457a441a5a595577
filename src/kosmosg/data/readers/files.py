"""Other people's files: which there are, their lines, and what becomes of a bad one."""

import gzip
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, ParamSpec, TypeGuard, TypeVar, cast

from PIL import Image

from kosmosg.data.records import Record
from kosmosg.data.samples import check_fits
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError, PromptError
from kosmosg.images import open_image

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_LINE_BYTES = 256 * 2**20  # a row of ten pictures of 512 pixels, as PNG in base64, has 8 MB
MAX_OBJECT_BYTES = 32 * 2**20  # of brackets alone, they would take 1 GB in memory
MAX_SHORT_LENGTH = 2_000

P = ParamSpec("P")
R = TypeVar("R", bound=Record)
T = TypeVar("T")

# What Python's readers of packed files raise on damaged ones.
_DAMAGE = (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)


def tried(skips: Skips, make: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
    """Yield the record that `make` returns, and count it; or skip what it raises.

    Raises:
        DataError: If too many were skipped.
    """
    try:
        record = make(*args, **kwargs)
        check_fits(record)
    except DataError as error:
        skips.skip(error)
    else:
        skips.keep()
        yield record


def until_damage(items: Iterator[T], skips: Skips) -> Iterator[T]:
    """Yield items until reading them fails; then the failure is skipped, and that is the end.

    Raises:
        DataError: If too many were skipped.
    """
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except DataError as error:
            skips.skip(error)
            return
        yield item


def files_in(path: Path, *suffixes: str) -> list[Path]:
    """Return the files with these suffixes below a directory, in order; or the file itself.

    Raises:
        DataError: If there is no such path.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} does not exist; check the path", reason="missing file")
    found = [
        Path(directory, name)
        for directory, _, names in os.walk(path)
        for name in names
        if name.lower().endswith(suffixes) and not name.startswith(".")
    ]
    return sorted(found, key=lambda file: file.relative_to(path).parts)


def root_of(path: Path) -> Path:
    """Return the directory that the names of a data set's files are told from."""
    return path if path.is_dir() else path.parent


def inside(root: Path, name: str, place: str) -> Path:
    """Return the path below a directory that a stranger's file names.

    Raises:
        DataError: If it leads out of the directory, or is no path.
    """
    given = Path(name)
    if not name or given.is_absolute() or ".." in given.parts or "\0" in name:
        raise DataError(
            f"{place}: {name[:80]!r} is no path inside {root}; write it relative to that directory",
            reason="path outside",
        )
    return root / given


def picture(source: bytes | Path, place: str) -> Image.Image:
    """Return a picture of a record.

    Raises:
        DataError: If it is none that `open_image` takes.
    """
    try:
        return open_image(source)
    except PromptError as error:
        raise DataError(f"{place}: {error}", reason="unreadable picture") from error


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Give a file for reading, unpacked: .gz, or the one file in a .zip.

    Raises:
        DataError: If it is missing or damaged, when opened or while it is read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe may never end
            raise DataError(f"{path} is no ordinary file; remove it", reason="unreadable file")
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as file:
                yield cast("IO[bytes]", file)
        elif path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive, archive.open(_only(path, archive)) as file:
                yield file
        else:
            with path.open("rb") as file:
                yield file
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(
            f"{path}: {reason}; check the path, or copy the file again", reason="unreadable file"
        ) from error


def read_lines(path: Path, skips: Skips) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their numbers from 1; one too long, or damage, is skipped."""
    for number, line in until_damage(_lines(path), skips):
        if line is None:
            what = f"{path} line {number} has more than {MAX_LINE_BYTES} bytes; shorten it"
            skips.skip(DataError(what, reason="line too long"))
        else:
            yield number, line


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    with opened(path) as file:
        for number in count(1):
            line = file.readline(MAX_LINE_BYTES)
            if not line:
                return
            is_whole = True
            while len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                is_whole, line = False, file.readline(MAX_LINE_BYTES)
            yield number, line.removesuffix(b"\n").removesuffix(b"\r") if is_whole else None


def _only(path: Path, archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if not name.endswith("/")]
    if len(names) != 1:
        raise DataError(
            f"{path} holds {len(names)} files, expected one; unpack it", reason="unreadable file"
        )
    return names[0]


def read_objects(path: Path, skips: Skips) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield the objects of JSON lines with their lines' numbers; bad lines are skipped."""
    for number, line in read_lines(path, skips):
        if not line.strip():
            continue
        try:
            fields = parse(line, f"{path} line {number}")
        except DataError as error:
            skips.skip(error)
            continue
        yield number, fields


def parse(data: bytes, place: str) -> Mapping[str, object]:
    """Return the JSON object that these bytes hold.

    Raises:
        DataError: If they hold none.
    """
    value = parse_any(data, place)
    if not is_object(value):
        raise DataError(f"{place}: its JSON is not an object; write {{...}}", reason="bad json")
    return value


def parse_any(data: bytes, place: str) -> object:
    """Return the JSON value that these bytes hold.

    Raises:
        DataError: If it is damaged.
    """
    if len(data) > MAX_OBJECT_BYTES:
        raise DataError(
            f"{place}: its JSON has {len(data)} bytes, at most {MAX_OBJECT_BYTES} are read; split"
            " it",
            reason="json too large",
        )
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: its JSON is damaged: {error}", reason="bad json") from error


def is_object(value: object) -> TypeGuard[Mapping[str, object]]:
    """Return whether a JSON value is an object."""
    return isinstance(value, dict)


def decode(data: bytes, place: str) -> str:
    """Return bytes as text, without the mark that some editors put before it.

    Raises:
        DataError: If they are not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: {error}; save it as UTF-8", reason="bad text") from error


def words(fields: Mapping[str, object], *names: str) -> str | None:
    """Return the first of these fields that is a text of more than blanks; small letters asked."""
    lower = {name.lower(): value for name, value in fields.items()}
    for name in names:
        value = lower.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return None


def said(fields: Mapping[str, object], *, but: tuple[str, ...]) -> dict[str, str]:
    """Return what the short fields of a row say, for its record's provenance.

    Args:
        but: Names of fields to leave out, in small letters.
    """
    return {
        name.lower(): str(value)
        for name, value in fields.items()
        if isinstance(value, str | int | float)
        and name.lower() not in but
        and 0 < len(str(value)) <= MAX_SHORT_LENGTH
    }
