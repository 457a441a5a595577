"""Documents of words and pictures: MMC4's and OBELICS' files, with the pictures beside or in them.

A picture that nobody has downloaded is dropped and counted, and so is the next; the document keeps
its words. One that is there and damaged is skipped.
"""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import cast

from PIL import Image

from kosmosg.data.readers.files import (
    files_in,
    is_object,
    picture,
    read_objects,
    root_of,
    said,
    tried,
    words,
)
from kosmosg.data.readers.names import key_of, stems
from kosmosg.data.readers.pictures import Pictures
from kosmosg.data.readers.tables import read_rows
from kosmosg.data.records import Document
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zip")


def read_mmc4(path: Path, *, skips: Skips) -> Iterator[Document]:
    """Yield the documents of MMC4's JSON lines, as they are, in .gz or in .zip.

    Sentences that follow each other are one text, with a blank between them. A picture stands
    before the sentence that it was matched to, several in the order of `image_info`. They are
    looked for below the directory by `image_name` and `raw_url`, in files and in tars; some copies
    hold them themselves, as `image_base64`.

    Raises:
        DataError: If there is no file, or too many lines were skipped.

    Source:
        Layout: github.com/allenai/mmc4, README.
    """
    pictures = Pictures(root_of(path), skips)
    for file, name in _files(path, *JSON_LINES):
        for number, fields in read_objects(file, skips):
            place = f"{file} line {number}"
            yield from tried(skips, _mmc4, key_of(name, number), fields, place, pictures, skips)


def read_obelics(path: Path, *, skips: Skips) -> Iterator[Document]:
    """Yield the documents of OBELICS: parquet files, or the same rows as JSON lines.

    `images` and `texts` are parallel, with nothing in one where the other has something. A picture
    is an address, looked for below the directory, or it is there as bytes or {bytes, path}.

    Raises:
        ConfigError: If pyarrow is not installed and needed.
        DataError: If there is no file, or too many rows were skipped.

    Source:
        Layout: the data set's card, HuggingFaceM4/OBELICS.
    """
    pictures = Pictures(root_of(path), skips)
    for file, name in _files(path, ".parquet", *JSON_LINES):
        if file.suffix == ".parquet":
            rows, unit = read_rows(file, skips), "row"
        else:
            rows, unit = read_objects(file, skips), "line"
        for number, fields in rows:
            place = f"{file} {unit} {number}"
            yield from tried(skips, _obelics, key_of(name, number), fields, place, pictures, skips)


def _files(path: Path, *suffixes: str) -> Iterator[tuple[Path, str]]:
    files = files_in(path, *suffixes)
    if not files:
        expected = " or ".join(suffixes)
        raise DataError(f"{path} holds no {expected}; name the documents", reason="missing file")
    yield from stems(files, root_of(path)).items()


def _mmc4(
    key: str, fields: Mapping[str, object], place: str, pictures: Pictures, skips: Skips
) -> Document:
    texts = _list(fields, "text_list", place)
    shown: dict[int, list[Image.Image]] = {}
    for info in _list(fields, "image_info", place):
        index = info.get("matched_text_index") if is_object(info) else None
        if not is_object(info) or not isinstance(index, int) or not 0 <= index < len(texts):
            raise DataError(
                f"{place}: a picture is matched to sentence {str(index)[:40]} of {len(texts)}",
                reason="bad field image_info",
            )
        shown.setdefault(index, []).extend(_shown(info, place, pictures, skips))
    parts: list[str | Image.Image] = []
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"{place}: sentence {index} is {str(text)[:40]!r}, no text",
                reason="bad field text_list",
            )
        parts += [*shown.get(index, []), *([text] if text else [])]
    provenance = {"url": address} if (address := words(fields, "url")) else {}
    return Document(key=key, parts=_joined(parts, " "), provenance=provenance)


def _obelics(
    key: str, fields: Mapping[str, object], place: str, pictures: Pictures, skips: Skips
) -> Document:
    images, texts = _list(fields, "images", place), _list(fields, "texts", place)
    if len(images) != len(texts):
        raise DataError(
            f"{place} has {len(images)} images and {len(texts)} texts; they must be parallel",
            reason="not parallel",
        )
    parts: list[str | Image.Image] = []
    for index, (image, text) in enumerate(zip(images, texts, strict=True)):
        if text is not None and (image is not None or not isinstance(text, str)):
            raise DataError(
                f"{place}: texts[{index}] is {str(text)[:40]!r}, expected a text where there is no"
                " image",
                reason="not parallel",
            )
        if isinstance(text, str):
            parts += [text] if text else []
        elif image is not None:
            parts += _shown(image, place, pictures, skips)
    return Document(key=key, parts=_joined(parts, "\n\n"), provenance=_known(fields))


def _joined(parts: Sequence[str | Image.Image], glue: str) -> tuple[str | Image.Image, ...]:
    """Return the parts, with texts that follow each other made one."""
    joined: list[str | Image.Image] = []
    for is_text, group in groupby(parts, key=lambda part: isinstance(part, str)):
        several = list(group)
        joined += [glue.join(map(str, several))] if is_text else several
    return tuple(joined)


def _shown(image: object, place: str, pictures: Pictures, skips: Skips) -> list[Image.Image]:
    """Return a picture, or nothing where it was not downloaded or is damaged."""
    try:
        data = _bytes(image, place, pictures)
        if data is not None:
            return [picture(data, place)]
    except DataError as error:
        skips.skip(error)
    else:
        skips.drop("picture not downloaded")
    return []


def _bytes(image: object, place: str, pictures: Pictures) -> bytes | None:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str):
        return pictures.find(image)
    if not is_object(image):
        raise DataError(
            f"{place}: {str(image)[:40]!r} is no picture; give its address or its bytes",
            reason="bad field images",
        )
    if isinstance(data := image.get("bytes"), bytes):
        return data
    if isinstance(encoded := image.get("image_base64"), str):
        try:
            return base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise DataError(f"{place}: image_base64: {error}", reason="bad base64") from error
    names = [image.get(name) for name in ("image_name", "raw_url", "path")]
    return pictures.find(*(name for name in names if isinstance(name, str)))


def _known(fields: Mapping[str, object]) -> Mapping[str, str]:
    try:
        general: object = json.loads(words(fields, "general_metadata") or "{}")
    except (ValueError, RecursionError):  # a note beside the document, which is whole
        return {}
    return said({"url": general.get("url")}, but=()) if is_object(general) else {}


def _list(fields: Mapping[str, object], name: str, place: str) -> Sequence[object]:
    value = fields.get(name)
    if not isinstance(value, list):
        raise DataError(
            f"{place}: {name} is {str(value)[:40]!r}, expected a list", reason=f"bad field {name}"
        )
    return cast("list[object]", value)
