"""Samples of other people's caption tars, as img2dataset writes them, to our records."""

import json
from collections.abc import Mapping
from typing import Literal

from kosmosg.data.records import Caption
from kosmosg.errors import DataError, PromptError
from kosmosg.images import open_image, open_later

PICTURES = ("jpg", "jpeg", "png", "webp")


def caption_from_img2dataset(
    key: str, files: Mapping[str, bytes], *, pictures: Literal["read", "later"] = "read"
) -> Caption:
    """Return a picture and its text: of `txt`, or `caption` in `json` where there is no `txt`.

    Args:
        key: The sample's name in its shard.
        files: File contents by extension.
        pictures: As `samples.from_bytes`.

    Raises:
        DataError: If there is no text or no picture, or one cannot be read.
    """
    try:
        text = files["txt"].decode() if "txt" in files else json.loads(files["json"])["caption"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"sample {key} has no caption in txt or json", reason="no text") from error
    data = next((files[name] for name in PICTURES if name in files), None)
    if data is None or not isinstance(text, str) or not text.strip():
        raise DataError(
            f"sample {key} has {', '.join(sorted(files)[:4])}; it needs a caption and a picture",
            reason="no picture" if data is None else "no text",
        )
    try:
        image = open_image(data) if pictures == "read" else open_later(data)
    except PromptError as error:
        raise DataError(f"sample {key}: {error}", reason="unreadable picture") from error
    return Caption(key=key, text=text.strip(), image=image)
