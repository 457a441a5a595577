"""Samples as img2dataset writes them, which we read as captions: a picture, a txt, a json."""

import json
from collections.abc import Mapping
from typing import Any, cast

from kosmosg.data.records import Caption, Record
from kosmosg.data.samples import JSON, MAX_JSON_BYTES, MAX_TEXT_LENGTH, from_bytes
from kosmosg.errors import DataError, PromptError
from kosmosg.images import open_image

PICTURES = ("jpg", "jpeg", "png", "webp")
TEXT = "txt"
_KEPT = ("url", "license", "sha256")


def record_of(key: str, files: Mapping[str, bytes]) -> Record:
    """Return the record of a sample of ours or of img2dataset.

    Raises:
        DataError: As `from_bytes`, or if picture or text of an img2dataset sample are damaged.
    """
    if is_img2dataset(files):
        return caption_from_img2dataset(key, files)
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


def caption_from_img2dataset(key: str, files: Mapping[str, bytes]) -> Caption:
    """Return picture and text of an img2dataset sample; the txt wins over the json's caption.

    Raises:
        DataError: If the text is no UTF-8 or too long, or the picture is damaged.
    """
    fields = (_fields(files[JSON]) if JSON in files else None) or {}
    text = _decoded(key, files[TEXT]) if TEXT in files else fields.get("caption")
    if not isinstance(text, str) or len(text) > MAX_TEXT_LENGTH:
        raise DataError(
            f"record {key}: its caption is {repr(text)[:40]}, expected a text of at most"
            f" {MAX_TEXT_LENGTH} characters",
            reason="bad caption",
        )
    image = None
    if name := picture_of(files):
        try:
            image = open_image(files[name])
        except PromptError as error:
            raise DataError(
                f"record {key}: {name!r}: {error}", reason="unreadable picture"
            ) from error
    provenance = {name: fields[name] for name in _KEPT if isinstance(fields.get(name), str)}
    return Caption(key=key, text=text, image=image, provenance=provenance)


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


def _decoded(key: str, data: bytes) -> str:
    try:
        return data.decode().strip()
    except UnicodeDecodeError as error:
        raise DataError(
            f"record {key}: its txt is not UTF-8 ({error.reason}); save it as UTF-8",
            reason="text is not UTF-8",
        ) from error
