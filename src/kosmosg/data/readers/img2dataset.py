"""What img2dataset writes: tars of pictures, captions and what is known of them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

from kosmosg.data.readers.files import (
    PICTURES,
    decode,
    files_in,
    opened,
    parse,
    picture,
    root_of,
    said,
    tried,
    until_damage,
    words,
)
from kosmosg.data.readers.names import key_of, stems
from kosmosg.data.records import Caption
from kosmosg.data.skips import Skips
from kosmosg.data.tars import read_index, read_sample
from kosmosg.errors import DataError

CAPTIONS = ("caption", "text", "txt", "alt_text")
# Fields of a row that are no provenance: the caption, its place, what the picture itself says.
NO_PROVENANCE = (*CAPTIONS, "key", "shard_id", "status", "error_message", "exif", "width", "height")


def read_img2dataset(path: Path, *, skips: Skips) -> Iterator[Caption]:
    """Yield the captions of img2dataset's tars as they are: one tar, or all in a directory.

    Raises:
        DataError: If there is no tar, or too many samples were skipped.
    """
    tars = files_in(path, ".tar")
    if not tars:
        raise DataError(f"{path} holds no .tar; name what img2dataset wrote", reason="missing file")
    for tar, name in stems(tars, root_of(path)).items():
        for key, files in samples_of(tar, skips):
            yield from tried(skips, _record, tar, name, key, files)


def caption_from_img2dataset(key: str, files: Mapping[str, bytes]) -> Caption:
    """Return the caption that a sample of img2dataset's tars holds.

    Args:
        key: The sample's name, taken as it is.
        files: File contents by extension: a picture, `txt` or `json` or both.

    Raises:
        DataError: If it has no caption, or its picture is missing or damaged.
    """
    fields = parse(files["json"], f"sample {key}") if "json" in files else {}
    return caption_of(key, files, fields, place=f"sample {key}")


def caption_of(
    key: str, files: Mapping[str, bytes], fields: Mapping[str, object], *, place: str
) -> Caption:
    """Return a caption from a sample's files and what is known of it.

    Args:
        key: Of the record.
        files: By extension; the words in `txt` go before those among the fields.
        fields: Of its row or its `json`.
        place: How a message calls it.

    Raises:
        DataError: As `caption_from_img2dataset`.
    """
    text = decode(files["txt"], place).strip() if "txt" in files else ""
    text = text or words(fields, *CAPTIONS) or ""
    if not text:
        raise DataError(f"{place} has no caption in txt or json; add one", reason="no caption")
    data = next((files[name[1:]] for name in PICTURES if name[1:] in files), None)
    status = fields.get("status")
    if data is None and status is not None:
        raise DataError(
            f"{place} has no picture, its status is {str(status)[:40]!r}; download it again",
            reason="missing picture",
        )
    image = None if data is None else picture(data, place)
    return Caption(key=key, text=text, image=image, provenance=said(fields, but=NO_PROVENANCE))


def samples_of(tar: Path, skips: Skips) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    """Yield the keys and files of a tar's samples; damage, and a key's second sample, are skipped.

    Raises:
        DataError: If too many were skipped.
    """
    seen: set[str] = set()
    for key, files in until_damage(_samples(tar), skips):
        if key in seen:
            what = f"{tar}: key {key[:80]!r} comes twice; name each sample once"
            skips.skip(DataError(what, reason="key twice"))
        else:
            seen.add(key)
            yield key, files


def _samples(tar: Path) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    with opened(tar) as file:
        for sample in read_index(tar):
            yield sample.key, read_sample(cast("BinaryIO", file), sample)


def _record(tar: Path, name: str, key: str, files: Mapping[str, bytes]) -> Caption:
    place = f"{tar}: sample {key[:80]!r}"
    fields = parse(files["json"], place) if "json" in files else {}
    return caption_of(key_of(name, key), files, fields, place=place)
