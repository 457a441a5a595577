"""Records: what training data is made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from PIL import Image

from kosmosg.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Document:
    """Stage 1: words and pictures in the order of the page.

    Raises:
        DataError: If it has no parts.
    """

    key: str
    parts: tuple[str | Image.Image, ...]
    provenance: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if not self.parts:
            raise DataError(f"document {self.key}: it has no parts", reason="empty document")


@dataclass(frozen=True, kw_only=True, eq=False)
class Caption:
    """Stage 2, and the plain third of stage 3: a text and the picture it tells of.

    Stage 2 never looks at the picture, so it may be missing.
    """

    key: str
    text: str
    image: Image.Image | None = None
    provenance: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True, eq=False)
class Entity:
    """A thing that a caption mentions, cut out of a picture.

    `start` and `end` are the mention's place in the caption; `crop` shows the thing on its own
    background, `cutout` on white. `mask`, where it is known, says which pixels of the example's
    picture are the thing: white on black, of the picture's size.

    Pictures of an entity that was read from a shard are decoded when they are first used, as a
    prompt shows one of them and training looks at no mask; `images.to_rgb` does it.
    """

    mention: str
    start: int
    end: int
    crop: Image.Image
    cutout: Image.Image
    mask: Image.Image | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """Stage 3: a picture, its caption, and the caption's entities from left to right.

    Raises:
        DataError: If a mention is not where it says, or two overlap or are out of order.
    """

    key: str
    caption: str
    entities: tuple[Entity, ...]
    image: Image.Image
    provenance: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        position = 0
        for entity in self.entities:
            if entity.mask is not None and entity.mask.size != self.image.size:
                raise DataError(
                    f"example {self.key}: the mask of {entity.mention[:40]!r} is"
                    f" {_by(entity.mask)}, the picture {_by(self.image)}; make them one size",
                    reason="mask of another size",
                )
            if not position <= entity.start < entity.end <= len(self.caption):
                raise DataError(
                    f"example {self.key}: mention {entity.mention[:40]!r} at {entity.start} to"
                    f" {entity.end} overlaps another or leaves the caption; order the entities",
                    reason="mentions overlap",
                )
            if self.caption[entity.start : entity.end] != entity.mention:
                raise DataError(
                    f"example {self.key}: the caption reads"
                    f" {self.caption[entity.start : entity.end][:40]!r} where the mention"
                    f" {entity.mention[:40]!r} should stand; correct start and end",
                    reason="mention not in caption",
                )
            position = entity.end


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """Stage 3, in InstructPix2Pix's form: a picture, what to change, and the changed picture.

    There may be several pictures before: the controls of a multi-control data set, shown in their
    order. `caption` tells of them (it may be empty), `after_caption` of the one after, where it is
    known.

    Raises:
        DataError: If there is no picture before.
    """

    key: str
    caption: str
    before: tuple[Image.Image, ...]
    instruction: str
    after: Image.Image
    after_caption: str | None = None
    provenance: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if not self.before:
            raise DataError(f"edit {self.key} shows no picture", reason="no picture before")


Record: TypeAlias = Document | Caption | Example | Edit


def _by(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"
