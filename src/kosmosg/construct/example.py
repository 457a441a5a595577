"""Pictures to examples: every step of the paper's figure 4, on a batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from kosmosg.construct.caption import Captioner
from kosmosg.construct.entities import EntityFinder
from kosmosg.construct.segment import THRESHOLD, Segmenter, cut, largest_overlap
from kosmosg.data.mentions import mentions
from kosmosg.data.records import Entity, Example
from kosmosg.errors import DataError, PromptError
from kosmosg.images import to_rgb

NO_ENTITIES = "no entities"
ONE_MASK = "one mask for two entities"
# Under this name an example's provenance lists the things that the segmenter did not find.
NOT_FOUND = "not_found"
# Crops of 512 pixels need no larger picture, and a step's memory grows with its area.
MAX_SIDE = 2048
MAX_PHRASES = 32
MAX_CAPTION = 2_000  # characters; the models read far fewer


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A picture to make an example of, and what is known of it.

    Args:
        key: Of the example.
        image: As it was opened.
        caption: Where it is known already; None has the captioner make one.
        provenance: Such as source, source_id, url and license.
    """

    key: str
    image: Image.Image
    caption: str | None = None
    provenance: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True, eq=False)
class Steps:
    """What looks at the pictures and captions."""

    captioner: Captioner | None
    finder: EntityFinder
    segmenter: Segmenter


def construct(
    sources: Sequence[Source],
    steps: Steps,
    *,
    size: int = 512,
    threshold: float = THRESHOLD,
    max_overlap: float | None = None,
    picture: Literal["square", "whole"] = "square",
    without_entities: Literal["leave_out", "keep"] = "leave_out",
    provenance: Mapping[str, str] | None = None,
) -> list[Example | DataError]:
    """Return the examples of a batch of pictures, or in a picture's place why there is none.

    Args:
        sources: With keys of their own.
        steps: What makes captions, tags and masks.
        size: Of crops, and of a picture's shorter side, in pixels.
        threshold: Above which a pixel is an entity's.
        max_overlap: Of any two entities' masks; a picture with more gives a DataError with the
            reason ONE_MASK, as its example would show one thing under two names. None takes all, as
            the paper, which names no such rule.
        picture: `square` keeps the centre square, `whole` all of it.
        without_entities: `leave_out` gives a DataError with the reason NO_ENTITIES.
        provenance: Added to that of each source.

    Source:
        Paper section 3.1, figure 4; NUMERICS section 9. Deviation: colours and ambiguous tags go
        before the segmenter sees them, not when the shards are read.
    """
    errors: dict[int, DataError] = {}
    pictures = _pictures(sources, picture, errors)
    captions = _captions(sources, pictures, steps.captioner, errors)
    tags = _tags(captions, steps.finder, errors)
    found = {index: mentions(captions[index], of_one) for index, of_one in tags.items()}
    phrases = [(index, tags[index][one.tag]) for index, some in found.items() for one in some]
    maps = _maps(phrases, pictures, steps.segmenter)
    made: dict[int, Example] = {}
    for index, places in found.items():
        source, caption, image = sources[index], captions[index], pictures[index]
        target = _resized(image, size)
        entities: list[Entity] = []
        missed: list[str] = []
        masks: list[np.ndarray] = []
        for start, end, _ in places:
            part = cut(image, next(maps), threshold=threshold, size=size)
            if part is None:
                missed.append(caption[start:end])
                continue
            masks.append(part.mask)
            mask = Image.fromarray(part.mask).resize(target.size, Image.Resampling.NEAREST)
            entities.append(
                Entity(
                    mention=caption[start:end],
                    start=start,
                    end=end,
                    crop=part.crop,
                    cutout=part.cutout,
                    mask=mask,
                )
            )
        if not entities and without_entities == "leave_out":
            errors[index] = DataError(
                f"picture {source.key}: nothing of {caption[:80]!r} was found in it; set"
                " without_entities=keep to keep it",
                reason=NO_ENTITIES,
            )
            continue
        if max_overlap is not None and (overlap := largest_overlap(masks)) > max_overlap:
            errors[index] = DataError(
                f"picture {source.key}: two things of {caption[:80]!r} have one mask (overlap"
                f" {overlap:.2f}); raise max_overlap={max_overlap} to keep it",
                reason=ONE_MASK,
            )
            continue
        made[index] = Example(
            key=source.key,
            caption=caption,
            entities=tuple(entities),
            image=target,
            provenance={
                **source.provenance,
                **(provenance or {}),
                **({NOT_FOUND: ", ".join(missed)} if missed else {}),
            },
        )
    return [errors[index] if index in errors else made[index] for index in range(len(sources))]


def _pictures(
    sources: Sequence[Source], picture: str, errors: dict[int, DataError]
) -> dict[int, Image.Image]:
    pictures: dict[int, Image.Image] = {}
    for index, source in enumerate(sources):
        try:
            image = to_rgb(source.image)
        except PromptError as error:
            what = f"picture {source.key}: {error}"
            errors[index] = DataError(what, reason="unreadable picture")
            continue
        if picture == "square":
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        pictures[index] = (
            ImageOps.contain(image, (MAX_SIDE, MAX_SIDE)) if _is_large(image) else image
        )
    return pictures


def _captions(
    sources: Sequence[Source],
    pictures: Mapping[int, Image.Image],
    captioner: Captioner | None,
    errors: dict[int, DataError],
) -> dict[int, str]:
    captions = {index: sources[index].caption for index in pictures}
    wanted = [index for index, caption in captions.items() if caption is None]
    if captioner is not None and wanted:
        made = captioner([pictures[index] for index in wanted])
        captions |= dict(zip(wanted, made, strict=True))
    known: dict[int, str] = {}
    for index, caption in captions.items():
        text = " ".join((caption or "").split())
        if len(text) > MAX_CAPTION:
            what = f"{len(text)} characters, at most {MAX_CAPTION} are used; shorten it"
            errors[index] = DataError(
                f"picture {sources[index].key}: its caption has {what}", reason="caption too long"
            )
            continue
        if text:
            known[index] = text
            continue
        what = "has no caption beside it; add one, or name a captioner"
        if captioner is not None:
            what = "has an empty caption; write one, or leave the picture out"
        errors[index] = DataError(f"picture {sources[index].key} {what}", reason="no caption")
    return known


def _tags(
    captions: Mapping[int, str], finder: EntityFinder, errors: dict[int, DataError]
) -> dict[int, list[str]]:
    answers = finder(list(captions.values())) if captions else []
    tags: dict[int, list[str]] = {}
    for index, answer in zip(captions, answers, strict=True):
        if isinstance(answer, DataError):
            errors[index] = answer
        else:
            tags[index] = answer
    return tags


def _maps(
    phrases: Sequence[tuple[int, str]], pictures: Mapping[int, Image.Image], segmenter: Segmenter
) -> Iterator[np.ndarray]:
    for start in range(0, len(phrases), MAX_PHRASES):
        some = phrases[start : start + MAX_PHRASES]
        shown = [pictures[index] for index, _ in some]
        yield from segmenter(shown, [tag for _, tag in some])


def _is_large(image: Image.Image) -> bool:
    return max(image.size) > MAX_SIDE


def _resized(image: Image.Image, size: int) -> Image.Image:
    """Return the picture with a shorter side of `size`."""
    short = min(image.size)
    width, height = (round(side * size / short) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
