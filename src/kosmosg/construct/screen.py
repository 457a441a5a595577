"""What may become a record: filters before the models look, leaks and captions after."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from PIL import Image

from kosmosg.construct.filters import FilterConfig, Judge, refuse_caption, refuse_picture
from kosmosg.construct.job import PHASH
from kosmosg.construct.leaks import LEAK, Leaks
from kosmosg.construct.phash import phash
from kosmosg.data.records import Caption, Edit, Example
from kosmosg.data.skips import Skips

if TYPE_CHECKING:  # it loads torch, which nobody needs who screens edits
    from kosmosg.construct.example import Source

R = TypeVar("R", Example, Caption | Edit)


def passing(
    sources: "Iterable[Source]", filters: FilterConfig, judge: Judge | None, skips: Skips
) -> "Iterator[Source]":
    """Yield the pictures that the filters take; the others are dropped by rule."""
    for source in sources:
        reason = refuse_picture(source.image, source.provenance, filters, judge)
        if reason is None:
            yield source
        else:
            skips.drop(reason, f"picture {source.key}")


def passing_records(
    records: Iterable[Caption | Edit], filters: FilterConfig, judge: Judge | None, skips: Skips
) -> Iterator[Caption | Edit]:
    """Yield the records of which the filters take every picture; an edit has two and more."""
    for record in records:
        refused = (
            refuse_picture(image, record.provenance, filters, judge)
            for image in pictures_of(record)
        )
        reason = next((one for one in refused if one is not None), None)
        if reason is None:
            yield record
        else:
            skips.drop(reason, _name(record))


def screened(
    records: Iterable[R], filters: FilterConfig, leaks: Leaks | None, skips: Skips
) -> Iterator[R]:
    """Yield the records that may be trained on, with their hash among the provenance.

    Dropped are those whose caption, or an edit's instruction, does not pass, and those of which any
    picture is one of an evaluation set.
    """
    for record in records:
        text = _text_of(record)
        reason = refuse_caption(text, filters)
        if reason is not None:
            skips.drop(reason, f"{_name(record)}: {text[:80]!r}")
            continue
        hashes = [phash(image) for image in pictures_of(record)]
        found = (leaks.find(one, record.provenance) for one in hashes) if leaks is not None else ()
        leak = next((one for one in found if one is not None), None)
        if leak is not None:
            skips.drop(LEAK, f"{_name(record)} is {leak}")
            continue
        if isinstance(record, Edit):  # the same pictures with other words are another edit
            digest = hashlib.sha256(record.instruction.encode("utf-8", "replace")).digest()
            hashes.append(int.from_bytes(digest[:8], "big"))
        if hashes:
            said = {**record.provenance, PHASH: " ".join(f"{one:016x}" for one in hashes)}
            record = dataclasses.replace(record, provenance=said)
        yield record


def pictures_of(record: Example | Caption | Edit) -> list[Image.Image]:
    """Return what training may see: the target, then an edit's pictures before."""
    if isinstance(record, Edit):
        return [record.after, *record.before]
    return [] if record.image is None else [record.image]


def _text_of(record: Example | Caption | Edit) -> str:
    match record:
        case Example():
            return record.caption
        case Caption():
            return record.text
        case Edit():
            return record.instruction


def _name(record: Example | Caption | Edit) -> str:
    return f"{'edit' if isinstance(record, Edit) else 'picture'} {record.key}"
