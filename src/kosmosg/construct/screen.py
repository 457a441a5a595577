"""What may become an example: filters before the models look, leaks and captions after."""

import dataclasses
from collections.abc import Iterable, Iterator

from kosmosg.construct.example import Source
from kosmosg.construct.filters import FilterConfig, Judge, refuse_caption, refuse_picture
from kosmosg.construct.job import PHASH
from kosmosg.construct.leaks import LEAK, Leaks
from kosmosg.construct.phash import phash
from kosmosg.data.records import Example
from kosmosg.data.skips import Skips


def passing(
    sources: Iterable[Source], filters: FilterConfig, judge: Judge | None, skips: Skips
) -> Iterator[Source]:
    """Yield the pictures that the filters take; the others are dropped by rule."""
    for source in sources:
        reason = refuse_picture(source.image, source.provenance, filters, judge)
        if reason is None:
            yield source
        else:
            skips.drop(reason, f"picture {source.key}")


def screened(
    examples: Iterable[Example], filters: FilterConfig, leaks: Leaks | None, skips: Skips
) -> Iterator[Example]:
    """Yield the examples that may be trained on, with their hash among the provenance.

    Dropped are those whose caption does not pass, and pictures of evaluation sets.
    """
    for example in examples:
        reason = refuse_caption(example.caption, filters)
        if reason is not None:
            skips.drop(reason, f"picture {example.key}: {example.caption[:80]!r}")
            continue
        image_hash = phash(example.image)
        leak = leaks.find(image_hash, example.provenance) if leaks is not None else None
        if leak is not None:
            skips.drop(LEAK, f"picture {example.key} is {leak}")
            continue
        provenance = {**example.provenance, PHASH: f"{image_hash:016x}"}
        yield dataclasses.replace(example, provenance=provenance)
