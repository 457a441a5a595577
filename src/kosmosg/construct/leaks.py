"""Pictures of evaluation sets, which must not be trained on: by their ids and perceptual hashes."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from kosmosg.construct.phash import MAX_DISTANCE, centre_square, phash
from kosmosg.errors import DataError, PromptError
from kosmosg.images import open_image

LEAK = "in an evaluation set"

_HEAD = "# kosmosg perceptual hashes 1"
_LINE = re.compile(r"([0-9a-f]{16})  (.+)")
_OWN_ID = re.compile(r"\d{12}|[0-9a-f]{16}")  # COCO's, Open Images'
# COCO's files of 2014 are named after the set and the id, those of 2017 after the id alone.
_COCO = re.compile(r"COCO_[a-z]+\d{4}_(?=\d{12})")


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """What is known of the evaluation sets' pictures. Hash number n is of picture `names[n]`."""

    hashes: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def sum(self) -> str:
        """Return the sha256 of all, for the configuration of a run."""
        lines = "".join(_lines(zip(self.hashes, self.names, strict=True)))
        return hashlib.sha256(lines.encode()).hexdigest()

    def find(self, image_hash: int, provenance: Mapping[str, str]) -> str | None:
        """Return the picture of which this is one, by `source_id`, `url` or hash; None if of none.

        A hash counts if it differs in at most `phash.MAX_DISTANCE` bits.
        """
        for field in ("source_id", "url"):
            name = self._by_id.get(_id_of(provenance.get(field, "").partition("?")[0]))
            if name is not None:
                return name
        near = np.bitwise_count(self._array ^ np.uint64(image_hash)) <= MAX_DISTANCE
        return self.names[int(near.argmax())] if near.any() else None

    @cached_property
    def _array(self) -> np.ndarray:
        return np.array(self.hashes, np.uint64)

    @cached_property
    def _by_id(self) -> dict[str, str]:
        ids = {_id_of(name): name for name in self.names}
        return {key: name for key, name in ids.items() if key}


def hash_pictures(folder: Path, files: Iterable[Path]) -> list[tuple[int, str]]:
    """Return a picture's hash with its name below the folder, twice: of all, of its centre square.

    Constructed examples hold the centre square; other records the whole.

    Raises:
        DataError: If a picture cannot be read.
    """
    found: list[tuple[int, str]] = []
    for path in files:
        try:
            image = open_image(path)
        except PromptError as error:
            raise DataError(str(error), reason="unreadable picture") from error
        name = path.relative_to(folder).as_posix()
        hashes = dict.fromkeys([phash(image), phash(centre_square(image))])
        found += [(one, name) for one in hashes]
    return found


def to_text(hashes: Iterable[tuple[int, str]]) -> str:
    """Return hashes and names as a file: one line each, in hexadecimal."""
    return "".join([f"{_HEAD}\n", *_lines(hashes)])


def read_hashes(paths: Sequence[Path]) -> Leaks:
    """Return what files of `to_text` say.

    Raises:
        DataError: If one is missing or is no such file.
    """
    hashes: list[int] = []
    names: list[str] = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise _not_one(path) from error
        if lines[:1] != [_HEAD]:
            raise _not_one(path)
        for number, line in enumerate(lines[1:], start=2):
            match = _LINE.fullmatch(line)
            if match is None:
                raise DataError(f"{path}, line {number}: no hash and name; make the file again")
            hashes.append(int(match[1], 16))
            names.append(match[2])
    return Leaks(hashes=tuple(hashes), names=tuple(names))


def _not_one(path: Path) -> DataError:
    return DataError(
        f"{path} holds no perceptual hashes; make it with `kosmosg construct hashes DIR -o FILE`",
        reason="no hashes",
    )


def _lines(hashes: Iterable[tuple[int, str]]) -> Iterable[str]:
    return (f"{one:016x}  {name}\n" for one, name in hashes)


def _id_of(name: str) -> str:
    """Return a picture's id, or "" where its name is none.

    It is the name without suffix: the last part alone where it is COCO's 12 digits or the 16 of
    Open Images, which no other collection's picture has by chance; else with its folders. A bare
    name such as 00 or dog says nothing.
    """
    path = PurePosixPath(name).with_suffix("") if PurePosixPath(name).name else PurePosixPath()
    bare = _COCO.sub("", path.name)
    if _OWN_ID.fullmatch(bare):
        return bare
    return str(path).strip("./") if len(path.parts) > 1 else ""
