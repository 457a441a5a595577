"""Small data sets in other people's formats, laid out on disk as those write them."""

import base64
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from kosmosg.data.records import Caption, Document, Edit, Entity, Example


def picture(seed: int, size: tuple[int, int] = (7, 5)) -> Image.Image:
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def png(seed: int, size: tuple[int, int] = (7, 5)) -> bytes:
    buffer = io.BytesIO()
    picture(seed, size).save(buffer, "PNG")
    return buffer.getvalue()


def base64_png(seed: int) -> str:
    return base64.b64encode(png(seed)).decode()


def write(path: Path, data: bytes | str | object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        text = data if isinstance(data, str) else json.dumps(data)
        path.write_bytes(text.encode())
    return path


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def noted(number: int, **changes) -> dict:
    """What img2dataset says of a sample."""
    return {
        "caption": f"caption {number}",
        "url": f"http://a.example/{number}.jpg",
        "key": f"{number:09d}",
        "status": "success",
        "error_message": None,
        "width": 7,
        "height": 5,
        "original_width": 70,
        "original_height": 50,
        "exif": "{}",
        "sha256": f"{number:064x}",
    } | changes


def img2dataset_tar(path: Path, numbers: range, **changes) -> Path:
    members: dict[str, bytes] = {}
    for number in numbers:
        note = noted(number, **changes)
        members[f"{number:09d}.jpg"] = png(number)
        members[f"{number:09d}.txt"] = note["caption"].encode()
        members[f"{number:09d}.json"] = json.dumps(note, indent=4).encode()
    return write_tar(path, members)


def plain(value):
    """A value that can be compared: pictures as their pixels."""
    match value:
        case Image.Image():
            return value.convert("RGB").size, value.convert("RGB").tobytes()
        case tuple():
            return tuple(plain(part) for part in value)
        case Document() | Caption() | Example() | Edit() | Entity():
            return type(value).__name__, {name: plain(part) for name, part in vars(value).items()}
    return value
