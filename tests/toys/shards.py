"""Small records of each kind, and tars of them and of anything else."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kosmosg.data.records import Caption, Document, Edit, Entity, Example, Record
from kosmosg.data.samples import to_bytes
from kosmosg.data.tars import write_shard


def picture(seed: int, size: tuple[int, int] = (9, 6)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8))


def mask(size: tuple[int, int] = (9, 6)) -> Image.Image:
    image = Image.new("1", size)
    image.paste(1, (2, 2, 5, 5))
    return image


def entity(caption: str, mention: str, **changes: Any) -> Entity:
    start = caption.index(mention)
    made = {"mention": mention, "start": start, "end": start + len(mention)}
    return Entity(**(made | {"crop": picture(1), "cutout": picture(2)} | changes))


def example(key: str = "e0", caption: str = "a dog and a cat on grass", **changes: Any) -> Example:
    if "entities" not in changes:
        changes["entities"] = (entity(caption, "dog", mask=mask()), entity(caption, "cat"))
    made = {"image": picture(3), "provenance": {"source": "toys"}}
    return Example(key=key, caption=caption, **(made | changes))


def one_of_each() -> list[Record]:
    return [
        Document(key="d0", parts=("some words", picture(4), "more")),
        Caption(key="c0", text="a fish", image=picture(5)),
        Caption(key="c1", text="no picture"),
        example(),
        Edit(
            key="i0",
            caption="a pond",
            before=(picture(6), picture(7)),
            instruction="add a duck",
            after=picture(8),
            after_caption="a duck",
        ),
    ]


def write(path: Path, records: Sequence[Record]) -> Path:
    write_shard(path, ((record.key, to_bytes(record)) for record in records))
    return path


def tar_of(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write files under their names, whatever they are."""
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def comparable(value: Any) -> Any:
    """A record as parts that == compares."""
    if isinstance(value, Image.Image):
        return value.size, value.mode, value.tobytes()
    if isinstance(value, tuple):
        return [comparable(one) for one in value]
    if is_dataclass(value):
        parts = [comparable(getattr(value, field.name)) for field in fields(value)]
        return [type(value).__name__, *parts]
    return value
