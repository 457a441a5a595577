"""Pictures into files: whole or not at all, with a note of how they were made."""

import contextlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from kosmosg.errors import ConfigError

NOTE = "kosmosg"


def check_output(path: Path, pictures: Sequence[Path]) -> None:
    """Pass a path where a picture can be written, before any work is done for it.

    Args:
        path: Where the picture will go; an existing file there is replaced.
        pictures: Files that must not be.

    Raises:
        ConfigError: If it is not a PNG's, its directory does not exist or may not be written to, or
            it is a picture of the prompt.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{path} does not end in .png; pictures are written as PNG")
    if path.is_dir():
        raise ConfigError(f"{path} is a directory; name a file in it")
    if not path.parent.is_dir():
        raise ConfigError(f"there is no directory {path.parent}; make it first, or name another")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path.parent} may not be written to; name another directory")
    if any(path.resolve() == picture.resolve() for picture in pictures):
        raise ConfigError(f"{path} is a picture of the prompt; write to another file")


def png(image: Image.Image, note: Mapping[str, Any]) -> bytes:
    """Return a picture as the bytes of a PNG file that carries `note` as JSON."""
    text = PngImagePlugin.PngInfo()
    text.add_text(NOTE, json.dumps(note))
    data = io.BytesIO()
    image.save(data, "PNG", pnginfo=text)
    return data.getvalue()


def grid(images: Sequence[Image.Image], gap: int = 4) -> Image.Image:
    """Return the pictures side by side, as square an arrangement as their number allows."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    sheet = Image.new(
        "RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), (255, 255, 255)
    )
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(image, (column * (width + gap), row * (height + gap)))
    return sheet


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write every file under a passing name, then give all of them their own.

    Raises:
        OSError: If one cannot be written; then none appears, and what stood there stays.
    """
    passing = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in files}
    try:
        for path, data in files.items():
            try:
                passing[path].write_bytes(data)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
        for path, part in passing.items():
            part.replace(path)
    finally:
        for part in passing.values():
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
