"""Pictures in folders, or in tars as img2dataset writes them: units of work, and what is in one."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from PIL import Image

from kosmosg.construct.example import Source
from kosmosg.construct.journal import Journal
from kosmosg.construct.unit import Unit
from kosmosg.data.readers.files import (
    PICTURES,
    decode,
    files_in,
    parse,
    picture,
    root_of,
    said,
    words,
)
from kosmosg.data.readers.img2dataset import CAPTIONS, NO_PROVENANCE, samples_of
from kosmosg.data.readers.names import key_of, stems
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError

Captions: TypeAlias = Literal["beside", "made"]


@dataclass(frozen=True, kw_only=True)
class FolderUnit(Unit):
    """Some pictures of a folder: their names below `root`, and the keys of their examples."""

    root: str
    names: tuple[str, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TarUnit(Unit):
    """A tar of pictures. `stem` begins the keys of its examples."""

    path: str
    stem: str


def list_units(path: Path, *, unit_size: int) -> list[FolderUnit | TarUnit]:
    """Return the units of a tar, a folder of tars, or a folder of pictures at any depth.

    Pictures are taken in the order of their names, `unit_size` a unit, so that the same folder
    always gives the same units. The list holds every name: 10 million take about 3 GB.

    Raises:
        DataError: If there are none, or tars as well as pictures.
    """
    if path.is_file() and path.suffix != ".tar":
        raise DataError(
            f"{path} is no .tar; name a tar, unpacked, or a folder", reason="missing file"
        )
    tars = files_in(path, ".tar")
    pictures = files_in(path, *PICTURES) if path.is_dir() else []
    if tars and pictures:
        raise DataError(
            f"{path} holds tars ({tars[0].name}) and pictures ({pictures[0].name}); name a folder"
            " with either",
            reason="mixed input",
        )
    root = root_of(path)
    if tars:
        return _tar_units(stems(tars, root))
    named = [
        (file.relative_to(root).as_posix(), stem) for file, stem in stems(pictures, root).items()
    ]
    if not named:
        raise DataError(
            f"{path} holds no pictures ({', '.join(PICTURES)}) and no .tar; name a folder that does"
            " (unpack .tar.gz first)",
            reason="missing file",
        )
    units: list[FolderUnit | TarUnit] = []
    for start in range(0, len(named), unit_size):
        some = named[start : start + unit_size]
        units.append(
            FolderUnit(
                name=f"{start // unit_size:06d}",
                root=str(root),
                names=tuple(name for name, _ in some),
                keys=tuple(key_of(stem) for _, stem in some),
            )
        )
    return units


def _tar_units(named: Mapping[Path, str]) -> list[FolderUnit | TarUnit]:
    """Return a unit a tar, called after it: tars that come later are units that come later."""
    units: dict[str, FolderUnit | TarUnit] = {}
    for tar, stem in named.items():
        name = key_of(stem).replace("/", "-")
        if name in units:
            raise DataError(
                f"{tar} would share the shard {name}.tar; rename it", reason="key twice"
            )
        units[name] = TarUnit(name=name, path=str(tar), stem=stem)
    return list(units.values())


def sources_of(
    unit: FolderUnit | TarUnit,
    skips: Skips,
    journal: Journal,
    *,
    source: str,
    captions: Captions,
) -> Iterator[Source]:
    """Yield the pictures of a unit; what cannot be read is skipped.

    Args:
        unit: What `list_units` returned.
        skips: Where bad ones are counted.
        journal: Where each is noted before it is read.
        source: The collection's name, for the provenance.
        captions: `beside` reads NAME.txt beside a picture, or a sample's txt or json.

    Raises:
        DataError: If too many were skipped.
    """
    reader = _in_tar if isinstance(unit, TarUnit) else _in_folder
    found = reader(unit, skips)  # pyright: ignore[reportArgumentType]
    for key, (name, read) in journal.each(found, skips):
        try:
            image, caption, known = read(captions == "beside")
        except DataError as error:
            skips.skip(error)
            continue
        provenance = {**known, "source": source, "source_id": name}
        yield Source(key=key, image=image, caption=caption, provenance=provenance)


# A picture, its caption where one is wanted and there, and what else is known.
Read: TypeAlias = Callable[[bool], tuple[Image.Image, str | None, Mapping[str, str]]]


def _in_folder(unit: FolderUnit, skips: Skips) -> Iterator[tuple[str, tuple[str, Read]]]:
    del skips  # nothing is read yet
    for name, key in zip(unit.names, unit.keys, strict=True):
        path = Path(unit.root, name)
        yield key, (path.stem, functools.partial(_read_file, path))


def _read_file(path: Path, beside: bool) -> tuple[Image.Image, str | None, Mapping[str, str]]:
    image, text = picture(path, str(path)), path.with_suffix(".txt")
    if not beside or not text.is_file():
        return image, None, {}
    try:
        data = text.read_bytes()
    except OSError as error:
        raise DataError(f"{text}: {error.strerror}; check it", reason="unreadable file") from error
    return image, decode(data, str(text)).strip() or None, {}


def _in_tar(unit: TarUnit, skips: Skips) -> Iterator[tuple[str, tuple[str, Read]]]:
    for key, files in samples_of(Path(unit.path), skips):
        place = f"{unit.path}: sample {key[:80]!r}"
        read = functools.partial(_read_sample, place, files)
        yield key_of(unit.stem, key), (key.rpartition("/")[2], read)


def _read_sample(
    place: str, files: Mapping[str, bytes], beside: bool
) -> tuple[Image.Image, str | None, Mapping[str, str]]:
    fields = parse(files["json"], place) if "json" in files else {}
    data = next((files[name[1:]] for name in PICTURES if name[1:] in files), None)
    if data is None:
        raise DataError(f"{place} has no picture; download it again", reason="missing picture")
    image = picture(data, place)
    text = None
    if beside:
        text = decode(files["txt"], place).strip() if "txt" in files else words(fields, *CAPTIONS)
    return image, text or None, said(fields, but=NO_PROVENANCE)
