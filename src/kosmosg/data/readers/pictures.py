"""Pictures that lie beside documents: in folders or tars, found by name or by address."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from kosmosg.data.readers.files import PICTURES, files_in, is_object, opened, until_damage
from kosmosg.data.samples import MAX_JSON_BYTES
from kosmosg.data.skips import Skips
from kosmosg.data.tars import Member, read_index
from kosmosg.errors import DataError
from kosmosg.images import MAX_BYTES


@dataclass(frozen=True, slots=True)
class _Place:
    file: Path
    member: Member | None


class Pictures:
    """The pictures below a directory, in files and in tars.

    They are found by file name, by the address that img2dataset noted beside them, and by a file
    name that is the md5, sha1 or sha256 of their address. Of several by one name the first counts.

    Args:
        root: Of the search; hidden files are passed over.
        skips: Where tars that are damaged are counted.
    """

    def __init__(self, root: Path, skips: Skips) -> None:
        self._places: dict[str, _Place] = {}
        for file in files_in(root, ".tar", *PICTURES):
            if file.suffix.lower() == ".tar":
                for name, member in until_damage(_members(file), skips):
                    self._places.setdefault(name, _Place(file, member))
            else:
                self._places.setdefault(file.name, _Place(file, None))

    def find(self, *names: str) -> bytes | None:
        """Return the first of these pictures that is there, by file name or by address.

        Raises:
            DataError: If it cannot be read.
        """
        for name in names:
            for known in (name, *_hashed(name)) if "://" in name else (name,):
                if known in self._places:
                    return _read(self._places[known])
        return None


def _members(tar: Path) -> Iterator[tuple[str, Member]]:
    """Yield the pictures of a tar under each of their names."""
    with opened(tar) as file:
        for sample in read_index(tar):
            pictures = [sample.members[name[1:]] for name in PICTURES if name[1:] in sample.members]
            if not pictures:
                continue
            yield from ((member.name.rpartition("/")[2], member) for member in pictures)
            note = sample.members.get("json")
            if note is not None and note.size <= MAX_JSON_BYTES:
                address = _address(os.pread(file.fileno(), note.size, note.offset))
                if address is not None:
                    yield address, pictures[0]


def _address(data: bytes) -> str | None:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):  # then the picture is known by its file name alone
        return None
    address = fields.get("url") if is_object(fields) else None
    return address if isinstance(address, str) else None


def _hashed(address: str) -> Iterator[str]:
    data = address.encode("utf-8", "surrogatepass")
    for kind in ("sha256", "sha1", "md5"):
        digest = hashlib.new(kind, data, usedforsecurity=False).hexdigest()
        yield from (digest + suffix for suffix in (*PICTURES, ""))


def _read(place: _Place) -> bytes:
    with opened(place.file) as file:
        if place.member is None:
            return file.read(MAX_BYTES + 1)  # and one byte more, so that a larger one is refused
        data = os.pread(cast("BinaryIO", file).fileno(), place.member.size, place.member.offset)
    if len(data) < place.member.size:
        raise DataError(f"{place.file} has become shorter; copy it again", reason="cut-off shard")
    return data
