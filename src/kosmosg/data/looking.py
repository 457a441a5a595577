"""What the tools that look at shards have in common: which tars, their samples, what is in one."""

import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from kosmosg.data.records import Caption, Document, Edit, Example, Record
from kosmosg.data.tars import read_index, read_sample, tars_in
from kosmosg.errors import DataError

# A sample's files; or why it, or with an empty key what is left of its shard, cannot be read.
Found = tuple[Path, str, Mapping[str, bytes] | DataError]


def find_tars(paths: Sequence[Path]) -> list[Path]:
    """Return the files among the paths, and all visible *.tar in the directories, each once.

    Raises:
        DataError: If a path does not exist or is neither, or a directory holds no tar.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = tars_in(path)
            if not inside:
                raise DataError(f"{path} holds no *.tar; name the shards or their directory")
            found += inside
        elif path.is_file():
            found.append(path)
        elif path.exists():
            raise DataError(f"{path} is neither a file nor a directory; name a tar")
        else:
            raise DataError(f"there is no {path}; name a tar or a directory of tars")
    return list(dict.fromkeys(found))


def walk(
    tars: Sequence[Path], *, limit: int | None = None, done: Callable[[int], object] | None = None
) -> Iterator[Found]:
    """Yield the samples of all tars in their order; what is damaged in its place.

    Args:
        limit: How many samples at most.
        done: Told the number of bytes that each step got further.
    """
    left = limit
    for tar in tars:
        position = 0
        try:
            with tar.open("rb") as file:
                for sample in read_index(tar):
                    if left == 0:
                        return
                    left = None if left is None else left - 1
                    try:
                        files = read_sample(file, sample)
                    except DataError as error:
                        files = error
                    yield tar, sample.key, files
                    end = max(member.offset + member.size for member in sample.members.values())
                    if done:
                        done(end - position)
                    position = end
        except DataError as error:
            yield tar, "", error
        except OSError as error:
            unreadable = DataError(f"{tar}: {error.strerror}", reason="unreadable shard")
            yield tar, "", unreadable
        if done:
            done(_size(tar) - position)


def is_bare(tar: Path) -> bool:
    """Return whether a tar that can be read is one without members, and not a file of zeros."""
    if os.stat(tar).st_size > tarfile.RECORDSIZE:
        return False
    with tarfile.open(tar, mode="r:") as opened:
        return opened.next() is None


def total_bytes(tars: Sequence[Path]) -> int:
    """Return how many bytes there are to read."""
    return sum(_size(tar) for tar in tars)


def kind_of(record: Record) -> str:
    """Return a record's kind, as its json says it."""
    return type(record).__name__.lower()


def texts_of(record: Record) -> list[str]:
    """Return the words of a record: what is read, or what is asked for and told of it."""
    match record:
        case Document():
            return [part for part in record.parts if isinstance(part, str)]
        case Caption():
            return [record.text]
        case Example():
            return [record.caption]
        case Edit():
            after = [] if record.after_caption is None else [record.after_caption]
            return [record.caption, record.instruction, *after]


def pictures_of(record: Record) -> list[Image.Image]:
    """Return a record's pictures, without those that were cut out of them."""
    match record:
        case Document():
            return [part for part in record.parts if isinstance(part, Image.Image)]
        case Caption():
            return [] if record.image is None else [record.image]
        case Example():
            return [record.image]
        case Edit():
            return [*record.before, record.after]


def plain(text: str) -> str:
    """Return a stranger's text for a terminal: what would move its cursor is spelt out."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "replace").decode()
        for char in text
    )


def _size(tar: Path) -> int:
    try:
        return os.stat(tar).st_size
    except OSError:
        return 0
