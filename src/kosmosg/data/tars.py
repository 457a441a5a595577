"""WebDataset tars: samples out, whole and at once; samples in, by their place in the file."""

import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kosmosg.errors import DataError

MAX_MEMBER_BYTES = 64 * 2**20
MAX_SAMPLE_FILES = 4_096
MAX_SAMPLE_BYTES = 2**30
BLOCK_BYTES = 512

_KEY = re.compile(r"[A-Za-z0-9_\-/]+")


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: where its bytes are; its header stands before them, at `header`."""

    name: str
    offset: int
    size: int
    header: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The files of one sample in a tar, by extension, in the order in which they stand there."""

    key: str
    members: Mapping[str, Member]

    @property
    def span(self) -> tuple[int, int]:
        """Return the bytes of the tar, first and behind the last, that hold all of it."""
        members = list(self.members.values())
        return members[0].header, members[-1].offset + members[-1].size


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> int:
    """Write samples as one tar, whole or not at all, and return how many they are.

    The same samples give the same bytes: no time, no owner.

    Args:
        samples: Keys, each once, of letters, digits, `_`, `-` and `/`; and files by extension.

    Raises:
        DataError: If a key has other characters or comes twice.
    """
    seen: set[str] = set()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for key, files in samples:
                    check_key(key)
                    if key in seen:
                        raise DataError(
                            f"{path.name}: key {key!r} comes twice; name each record once",
                            reason="key twice",
                        )
                    seen.add(key)
                    for extension, data in files.items():
                        _add(tar, f"{key}.{extension}", data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return len(seen)


def tars_in(directory: Path) -> list[Path]:
    """Return the tars in a directory and those below it, in order; hidden files are none."""
    return sorted(tar for tar in directory.rglob("[!.]*.tar") if tar.is_file())


def check_key(key: str) -> None:
    """Pass a key that every reader of WebDataset tars takes as it is: it ends at the first dot.

    Raises:
        DataError: If it has a dot, a space or another character that some reader might change.
    """
    if not _KEY.fullmatch(key):
        raise DataError(
            f"key {key[:80]!r} has characters other than letters, digits, '_', '-' and '/'; rename"
            " it",
            reason="bad key",
        )


def read_index(path: Path) -> Iterator[Sample]:
    """Yield the samples of a tar, from its headers alone; only ordinary files count.

    Samples that come before damage are yielded before it is raised.

    Raises:
        DataError: If the file is missing, no tar, compressed, cut off, or has a sample of too many
            files or a file that is too large; the message names the member and its byte.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            yield from _grouped(path, _members(path, tar))
    except (tarfile.TarError, OSError, ValueError, EOFError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: {reason}; expected an uncompressed tar that is all there",
            reason="unreadable shard",
        ) from error


def read_sample(file: BinaryIO, sample: Sample) -> dict[str, bytes]:
    """Return a sample's files by extension, from its tar opened for reading bytes.

    It reads at the places of the index and does not move the file's own.

    Raises:
        DataError: If the tar is shorter than its index says.
    """
    files: dict[str, bytes] = {}
    for extension, member in sample.members.items():
        data = os.pread(file.fileno(), member.size, member.offset)
        if len(data) < member.size:
            raise DataError(
                f"{file.name}: member {member.name} ends after {len(data)} of its {member.size}"
                " bytes; copy the shard again",
                reason="cut-off shard",
            )
        files[extension] = data
    return files


def read_span(descriptor: int, start: int, stop: int, *, name: str) -> tuple[str, dict[str, bytes]]:
    """Return a sample's key and its files by extension, given its span alone; one read of the tar.

    That is 16 bytes to remember of a sample, and each of its headers is read again here.

    Args:
        descriptor: Of the tar, opened for reading; its position is neither used nor moved.
        start: The sample's `span`.
        stop: The same.
        name: What a message calls the tar.

    Raises:
        DataError: If the tar is shorter, or no longer has one sample there.
    """
    if stop - start > MAX_SAMPLE_BYTES:
        raise DataError(
            f"{name}: the sample at byte {start} has {stop - start} bytes, at most"
            f" {MAX_SAMPLE_BYTES} are read; remove it",
            reason="sample too large",
        )
    data = os.pread(descriptor, stop - start, start)
    if len(data) < stop - start:
        raise DataError(
            f"{name} ends {stop - start - len(data)} bytes before the sample at byte {start} does;"
            " copy the shard again",
            reason="cut-off shard",
        )
    try:
        members = _plain_members(data) or _any_members(data)
    # Whoever chains thousands of extended headers makes tarfile recurse as often.
    except (tarfile.TarError, ValueError, EOFError, RecursionError) as error:
        raise DataError(
            f"{name}: no sample at byte {start} ({error}); it changed after it was indexed: remove"
            " the index beside it and start again",
            reason="shard changed",
        ) from error
    key, files = "", dict[str, bytes]()
    for member in members:
        folder, stem, extension = _split(member.name)
        if stem and extension:
            key = f"{folder}/{stem}" if folder else stem
            files[extension] = data[member.offset : member.offset + member.size]
    return key, files


def _plain_members(data: bytes) -> list[Member] | None:
    """Return the files of a part of a tar; None if a header is not of the commonest kind.

    Ten times as fast as the standard library's, for which a small sample would mostly wait.
    """
    members: list[Member] = []
    position = 0
    while position < len(data):
        header = data[position : position + BLOCK_BYTES]
        size = header[124:136].rstrip(b"\0 ")
        plain = header[257:262] == b"ustar" and header[156] in b"0\0" and not header[345]
        if not plain or not size.isdigit():
            return None
        name = header[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
        member = Member(name, position + BLOCK_BYTES, int(size, 8), position)
        if member.offset + member.size > len(data):
            return None
        members.append(member)
        position = member.offset + member.size + -member.size % BLOCK_BYTES
    return members


def _any_members(data: bytes) -> list[Member]:
    padding = bytes(-len(data) % BLOCK_BYTES)
    with tarfile.open(fileobj=io.BytesIO(data + padding), mode="r:") as tar:
        return [
            Member(info.name, info.offset_data, info.size, info.offset)
            for info in _forward(tar)
            if info.isfile() and not info.issparse()
        ]


def _forward(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar, each behind the one before it.

    Headers can spell sizes below zero, and tarfile then goes back and reads the same for ever.
    """
    for info in tar:
        if info.size < 0 or tar.offset <= info.offset:
            raise tarfile.ReadError(
                f"member {info.name[:80]!r} at byte {info.offset} has a size below zero"
            )
        yield info


def _split(name: str) -> tuple[str, str, str]:
    """Return a member's folder, stem and extension; the latter two empty if it is no sample's."""
    folder, _, name = name.rpartition("/")
    stem, _, extension = name.partition(".")
    return folder, stem, extension.lower()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(data))


def _members(path: Path, tar: tarfile.TarFile) -> Iterator[Member]:
    size = path.stat().st_size
    for info in _forward(tar):
        # Nothing is kept of the members that were read: a shard may have a million.
        tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
        if not info.isfile() or info.issparse():
            continue
        place = f"{path}: member {info.name[:80]!r} at byte {info.offset}"
        if info.size > MAX_MEMBER_BYTES:
            raise DataError(
                f"{place} has {info.size} bytes, at most {MAX_MEMBER_BYTES} are read; remove it",
                reason="member too large",
            )
        if info.offset_data + info.size > size:
            raise DataError(
                f"{place} ends {info.offset_data + info.size - size} bytes after the file does;"
                " copy the shard again",
                reason="cut-off shard",
            )
        yield Member(info.name, info.offset_data, info.size, info.offset)
        if tar.offset > size:  # cut off in the zeros that fill the member's last block
            break
    _check_end(path, tar.offset)


def _check_end(path: Path, offset: int) -> None:
    """Pass a tar that has its end, a block of zeros, and nothing after it.

    tarfile takes any other block for the end too, and says nothing of what is lost.
    """
    with path.open("rb") as file:
        file.seek(offset)
        if len(block := file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
            raise DataError(
                f"{path} ends at byte {path.stat().st_size}, where another member or the mark of"
                " the end should stand; copy the shard again",
                reason="cut-off shard",
            )
        while block:
            if rest := block.lstrip(b"\0"):
                raise DataError(
                    f"{path}: what stands at byte {offset + len(block) - len(rest)} is neither a"
                    " member nor the end of the tar, and nothing after it is read; copy the shard"
                    " again, or write joined tars as one",
                    reason="damaged shard",
                )
            offset += len(block)
            block = file.read(1 << 20)


def _grouped(path: Path, members: Iterator[Member]) -> Iterator[Sample]:
    key, files = "", dict[str, Member]()
    for member in members:
        folder, stem, extension = _split(member.name)
        if not stem or not extension:  # no sample: hidden files, files without an extension
            continue
        this = f"{folder}/{stem}" if folder else stem
        if this != key or extension in files:
            if files:
                yield Sample(key, files)
            key, files = this, dict[str, Member]()
        files[extension] = member
        if len(files) > MAX_SAMPLE_FILES:
            raise DataError(
                f"{path}: sample {key[:80]!r} has more than {MAX_SAMPLE_FILES} files",
                reason="sample too large",
            )
    if files:
        yield Sample(key, files)
