"""The released loaders' files: rows of texts and pictures in base64, with tabs between them.

A data set is one file, a directory of them, or a list of them in `json/train.json`.
"""

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from kosmosg.data.mentions import mentions
from kosmosg.data.readers.files import (
    MAX_OBJECT_BYTES,
    decode,
    files_in,
    inside,
    is_object,
    opened,
    parse_any,
    picture,
    read_lines,
    root_of,
    said,
    tried,
)
from kosmosg.data.readers.names import key_of, stems
from kosmosg.data.records import Caption, Edit, Entity, Example
from kosmosg.data.samples import MAX_PARTS
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError

MIN_SIDE = 384


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A line's columns, not decoded yet."""

    key: str
    place: str
    columns: Sequence[bytes]
    provenance: dict[str, str]

    def text(self, index: int) -> str:
        return decode(self.columns[index], f"{self.place} column {index}")

    def picture(self, index: int) -> Image.Image:
        place = f"{self.place} column {index}"
        try:
            data = base64.b64decode(self.columns[index], validate=True)
        except binascii.Error as error:
            raise DataError(f"{place}: {error}; encode it again", reason="bad base64") from error
        return picture(data, place)

    def wrong(self, expected: str) -> DataError:
        return DataError(
            f"{self.place} has {len(self.columns)} columns, expected {expected}",
            reason="wrong columns",
        )


def read_tsv_laion(path: Path, *, skips: Skips, stage: Literal[2, 3] = 3) -> Iterator[Caption]:
    """Yield the captions of LAION rows: [?, caption, picture, width, height].

    Args:
        path: A file, a directory, or `train.json`.
        skips: Where bad rows are counted; those that the size filter drops count as dropped.
        stage: For 3, pictures with a side below 384 are dropped; for 2, all captions are kept and
            no picture is opened, as stage 2 never looks at them.

    Raises:
        DataError: If there is no file, or too many rows were skipped.

    Source:
        NUMERICS section 9 (LAION). The release's limits of length are the training stages'.
    """
    for row in _rows(path, skips):
        columns = row.columns
        if len(columns) == 5 and not keeps_size(_ascii(columns[3]), _ascii(columns[4]), stage):
            skips.drop("picture too small, or of unknown size")
            continue
        yield from tried(skips, _caption, row, stage)


def read_tsv_instructpix2pix(path: Path, *, skips: Skips) -> Iterator[Edit]:
    """Yield the edits of InstructPix2Pix rows: [input, edit, (before, after) for each seed].

    Raises:
        DataError: If there is no file, or too many rows were skipped.

    Source:
        NUMERICS section 9 (InstructPix2Pix). The release takes one seed at random each time; here
        each pair is a record.
    """
    for row in _rows(path, skips):
        for pair in range(max(1, len(row.columns) // 2 - 1)):
            yield from tried(skips, _edit, row, pair)


def read_tsv_openimages(path: Path, *, skips: Skips) -> Iterator[Example]:
    """Yield the examples of Open Images rows.

    The columns are [caption, "tag,tag", picture, (crop, crop on white) for each tag].

    Raises:
        DataError: If there is no file, or too many rows were skipped.

    Source:
        NUMERICS section 9 (OpenImages).
    """
    for row in _rows(path, skips):
        yield from tried(skips, _example, row)


def sources_of(path: Path) -> Iterator[Path]:
    """Yield the files of rows that a file, directory or `train.json` stands for.

    Raises:
        DataError: If there is none, or the list is damaged.
    """
    yield from (file for file, _, _ in _sources(path, Skips()))


def keeps_size(width: str, height: str, stage: Literal[2, 3]) -> bool:
    """Return whether the release trains a stage on a LAION row of this size, as it is written.

    Example:
        >>> keeps_size("383", "1000", 3), keeps_size("383", "1000", 2), keeps_size("nan", "1", 2)
        (False, True, False)

    Source:
        NUMERICS section 9 (LAION).
    """
    if not all(side.isascii() and side.isdigit() and len(side) < 10 for side in (width, height)):
        return False
    return stage == 2 or min(int(width), int(height)) >= MIN_SIDE


def _rows(path: Path, skips: Skips) -> Iterator[_Row]:
    for file, name, provenance in _sources(path, skips):
        for number, line in read_lines(file, skips):
            yield _Row(
                key=key_of(name, number),
                place=f"{file} line {number}",
                columns=line.split(b"\t"),
                provenance=provenance,
            )


def _sources(path: Path, skips: Skips) -> Iterator[tuple[Path, str, dict[str, str]]]:
    """Yield the files, a name for each, and what the list says of it."""
    listed = path / "json" / "train.json" if path.is_dir() else path
    if listed.suffix == ".json" and listed.is_file():
        yield from _listed(listed, skips)
        return
    files = files_in(path, ".tsv", ".tsv.gz")
    if not files:
        raise DataError(
            f"{path} holds neither json/train.json nor a .tsv; name the rows", reason="missing file"
        )
    yield from ((file, name, {}) for file, name in stems(files, root_of(path)).items())


def _listed(path: Path, skips: Skips) -> Iterator[tuple[Path, str, dict[str, str]]]:
    with opened(path) as file:
        entries = parse_any(file.read(MAX_OBJECT_BYTES + 1), str(path))
    root = path.parent.parent if path.parent.name == "json" else path.parent
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        place = f"{path} entry {number}"
        sources = entry.get("source") if is_object(entry) else None
        if not is_object(entry) or not isinstance(sources, list):
            raise DataError(
                f"{place} is {str(entry)[:60]}, expected an object with the list source",
                reason="bad json",
            )
        provenance = said({name: entry.get(name) for name in ("name", "weight")}, but=())
        for source in sources:
            try:
                file = inside(root, str(source), place)
            except DataError as error:
                skips.skip(error)
            else:
                yield file, file.relative_to(root).as_posix().removesuffix(".tsv"), provenance


def _caption(row: _Row, stage: Literal[2, 3]) -> Caption:
    if len(row.columns) != 5:
        raise row.wrong("5: any, caption, picture, width, height")
    text = row.text(1).strip()
    if not text:
        raise DataError(f"{row.place} has no caption in column 1; add one", reason="no caption")
    image = row.picture(2) if stage == 3 else None
    return Caption(key=row.key, text=text, image=image, provenance=row.provenance)


def _edit(row: _Row, pair: int) -> Edit:
    if len(row.columns) < 4 or len(row.columns) % 2:
        raise row.wrong("an even number: input, edit, and before and after for each seed")
    return Edit(
        key=key_of(row.key, pair),
        caption=row.text(0),
        before=(row.picture(2 * pair + 2),),
        instruction=row.text(1),
        after=row.picture(2 * pair + 3),
        provenance=row.provenance,
    )


def _example(row: _Row) -> Example:
    if len(row.columns) < 3:
        raise row.wrong("3 and 2 for each tag: caption, tags, picture, crop and crop on white")
    caption, tags = row.text(0), row.text(1).split(",")
    if len(row.columns) != 3 + 2 * len(tags) and (len(row.columns) > 3 or any(tags)):
        raise row.wrong(f"{3 + 2 * len(tags)}: 3, and 2 for each of {len(tags)} tags")
    if len(tags) > MAX_PARTS:
        raise DataError(f"{row.place} has {len(tags)} tags; split it", reason="too many parts")
    entities = tuple(
        Entity(
            mention=caption[start:end],
            start=start,
            end=end,
            crop=row.picture(3 + 2 * tag),
            cutout=row.picture(4 + 2 * tag),
        )
        for start, end, tag in mentions(caption, tags)
    )
    return Example(
        key=row.key,
        caption=caption,
        entities=entities,
        image=row.picture(2),
        provenance=row.provenance,
    )


def _ascii(data: bytes) -> str:
    return data.decode("ascii", "replace")
