"""Samples as img2dataset writes them, which we read as captions: a picture, a txt, a json."""

import json
from collections.abc import Mapping
from typing import Any, cast

from kosmosg.data.readers.img2dataset import caption_from_img2dataset
from kosmosg.data.records import Record
from kosmosg.data.samples import JSON, MAX_JSON_BYTES, check_fits, from_bytes

PICTURES = ("jpg", "jpeg", "png", "webp")
TEXT = "txt"


def record_of(key: str, files: Mapping[str, bytes]) -> Record:
    """Return the record of a sample of ours or of img2dataset.

    Raises:
        DataError: As `from_bytes`, or if picture or text of an img2dataset sample are damaged.
    """
    if is_img2dataset(files):
        caption = caption_from_img2dataset(key, files)
        check_fits(caption)
        return caption
    return from_bytes(key, files)


def is_img2dataset(files: Mapping[str, bytes]) -> bool:
    """Return whether a sample is no record of ours, but a picture or a caption in its place.

    A json without `kind` and `format_version` is not ours, nor is a txt without a json.
    """
    if JSON not in files:
        return TEXT in files
    fields = _fields(files[JSON])
    if fields is None or "kind" in fields or "format_version" in fields:
        return False
    return TEXT in files or "caption" in fields


def picture_of(files: Mapping[str, bytes]) -> str | None:
    """Return the extension of an img2dataset sample's picture, if it has one."""
    return next((name for name in PICTURES if name in files), None)


def _fields(data: bytes) -> dict[str, Any] | None:
    """Return a json's fields, or None if it is damaged, too large, or no object."""
    if len(data) > MAX_JSON_BYTES:
        return None
    try:
        fields: object = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", fields) if isinstance(fields, dict) else None
