"""Samples as a page to look at: one HTML file, no script, nothing fetched, all text escaped."""

import base64
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files as resources
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from kosmosg.data.compose import DROP_PROBABILITY, Composed, compose
from kosmosg.data.foreign import record_of
from kosmosg.data.looking import kind_of, plain
from kosmosg.data.mixture import seed_of
from kosmosg.data.records import Caption, Document, Edit, Example, Record
from kosmosg.data.tars import Sample, read_index, read_sample
from kosmosg.errors import DataError, PromptError
from kosmosg.images import to_rgb
from kosmosg.sequence import Prompt

SIDE = 256
MAX_PARTS = 40
MAX_TEXT = 2_000
TINTS = ((230, 60, 60), (40, 120, 240), (30, 170, 80), (240, 160, 20), (170, 70, 220))


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The samples of a page, how many there were, and the shards that broke off."""

    samples: Sequence[tuple[Path, Sample]]
    num_samples: int
    damaged: Sequence[str]


def choose(tars: Sequence[Path], *, limit: int, seed: int) -> Chosen:
    """Return samples drawn evenly from all shards, in their order; reads the tars' headers only."""
    rng = np.random.default_rng(seed)
    kept: list[tuple[int, Path, Sample]] = []
    damaged: list[str] = []
    seen = 0
    for tar in tars:
        try:
            for sample in read_index(tar):
                # A reservoir: each sample so far is kept with the same probability.
                place = seen if seen < limit else int(rng.integers(seen + 1))
                if place < limit:
                    kept[place : place + 1] = [(seen, tar, sample)]
                seen += 1
        except DataError as error:
            damaged.append(str(error))
    ordered = sorted(kept, key=lambda one: one[0])
    return Chosen(
        samples=[(tar, sample) for _, tar, sample in ordered], num_samples=seen, damaged=damaged
    )


def page(chosen: Chosen, *, seed: int) -> Iterator[str]:
    """Yield the page in pieces: it may be long.

    Args:
        seed: Of which pictures of entities the prompts show.
    """
    kinds: Counter[str] = Counter()
    style = (resources("kosmosg.data") / "preview.css").read_text(encoding="utf-8")
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        # Belt and braces: whatever a sample smuggled in, a browser would not run or fetch it.
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Samples</title><style>{style}</style></head><body>\n"
        f"<header><h1>{len(chosen.samples)} of {chosen.num_samples} samples</h1></header>\n"
    )
    for words in chosen.damaged:
        yield f'<p class="wrong">{_text(words)}</p>\n'
    for number, (tar, sample) in enumerate(chosen.samples):
        try:
            with tar.open("rb") as file:
                record = record_of(sample.key, read_sample(file, sample))
            body = "".join(_shown(record, seed_of(seed, number)))
            kind = kind_of(record)
        except DataError as error:
            kind, body = "left out", f'<p class="wrong">{_text(str(error))}</p>'
        kinds[kind] += 1
        key, shard = _text(sample.key), _text(tar.name)
        yield (
            f'<article><h2><span class="kind">{kind}</span> {key} <small>{shard}</small></h2>'
            f"{body}</article>\n"
        )
    total = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    yield f"<footer>{total}</footer></body></html>\n"


def _shown(record: Record, seed: int) -> Iterator[str]:
    match record:
        case Document():
            yield _row("in its order", _pieces(record.parts))
        case Caption(image=None):
            yield _row("text", _pieces([record.text]))
        case Caption() | Example() | Edit():
            yield from _composed(record, seed)
    if isinstance(record, Example):
        yield from _entities(record)
    if record.provenance:
        yield _row("provenance", _pairs(record.provenance))


def _composed(record: Caption | Example | Edit, seed: int) -> Iterator[str]:
    """Yield what the model is shown, with all words and, where it differs, with words dropped."""
    whole, dropped = (_with_words(record, seed, dropped=dropped) for dropped in (False, True))
    yield _row("prompt", _pieces(whole.prompt))
    if _words(dropped.prompt) != _words(whole.prompt):
        yield _row("words dropped", _pieces(dropped.prompt))
    # A caption's own words are its prompt already.
    caption = "" if isinstance(record, Caption) else whole.caption or ""
    told = f'<figcaption class="words">{_text(caption)}</figcaption>'
    yield _row("target", f"<figure>{_picture(whole.target)}{told}</figure>")


def _with_words(record: Record, seed: int, *, dropped: bool) -> Composed:
    """Return the record composed with or without its words: the first coin of `compose` says so."""
    draws = (seed_of(seed, attempt) for attempt in count())
    found = next(
        one for one in draws if (np.random.default_rng(one).random() < DROP_PROBABILITY) == dropped
    )
    return compose(record, np.random.default_rng(found))


def _words(prompt: Prompt) -> list[str]:
    return [part if isinstance(part, str) else "" for part in prompt]


def _entities(record: Example) -> Iterator[str]:
    shown: list[str] = []
    for number, entity in enumerate(record.entities):
        red, green, blue = TINTS[number % len(TINTS)]
        pictures = [("crop", entity.crop), ("cutout", entity.cutout)]
        if entity.mask is not None:
            pictures.append(("mask", entity.mask))
        cells = "".join(
            f"<figure>{_picture(image)}<figcaption>{name}</figcaption></figure>"
            for name, image in pictures
        )
        shown.append(
            f'<div class="entity"><b style="border-color: rgb({red} {green} {blue})">'
            f"{_text(entity.mention)}</b>{cells}</div>"
        )
    if shown:
        yield _row("entities", "".join(shown))
    if any(entity.mask is not None for entity in record.entities):
        yield _row("masks", f"<figure>{_picture(overlaid(record))}</figure>")


def overlaid(record: Example) -> Image.Image:
    """Return an example's picture with each entity's mask in a colour of its own, the rest grey."""
    image = _rgb(record.image).copy()
    image.thumbnail((2 * SIDE, 2 * SIDE))
    pixels = np.asarray(image, np.float64)
    painted = pixels.mean(2, keepdims=True) * 0.5 + 100.0 + 0.0 * pixels
    for number, entity in enumerate(record.entities):
        if entity.mask is not None:
            mask = _rgb(entity.mask).convert("L").resize(image.size)
            share = np.asarray(mask, np.float64)[..., None] / 255
            tinted = 0.6 * pixels + 0.4 * np.array(TINTS[number % len(TINTS)])
            painted = share * tinted + (1 - share) * painted
    return Image.fromarray(painted.clip(0, 255).astype(np.uint8))


def _pieces(parts: Sequence[str | Image.Image]) -> str:
    shown = [
        f'<span class="words">{_text(part)}</span>' if isinstance(part, str) else _picture(part)
        for part in parts[:MAX_PARTS]
    ]
    if more := len(parts) - len(shown):
        shown.append(f"and {more} more parts")
    return "".join(shown)


def _row(name: str, body: str) -> str:
    return f'<div class="row"><h3>{name}</h3><div class="shown">{body}</div></div>'


def _pairs(values: Mapping[str, str]) -> str:
    return "".join(
        f'<span class="said"><i>{_text(name)}</i> {_text(value)}</span>'
        for name, value in values.items()
    )


def _text(text: str) -> str:
    cut = text[:MAX_TEXT]
    more = f" … and {len(text) - len(cut)} more characters" if len(text) > len(cut) else ""
    return escape("\n".join(plain(line) for line in cut.split("\n"))) + more


def _picture(image: Image.Image) -> str:
    """Return an img of the picture drawn anew: a stranger's bytes go into no page."""
    size = f"{image.width} x {image.height}"
    image = Image.fromarray(np.asarray(_rgb(image)))  # the pixels, no comments or profiles
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    # Small pictures are drawn large, and JPEG's blocks would be all that one sees.
    small = max(image.size) <= SIDE // 2
    image.save(buffer, "PNG" if small else "JPEG", **({} if small else {"quality": 90}))
    data = base64.b64encode(buffer.getvalue()).decode()
    form = ("png", ' class="small"') if small else ("jpeg", "")
    return f'<img{form[1]} title="{size}" alt="{size}" src="data:image/{form[0]};base64,{data}">'


def _rgb(image: Image.Image) -> Image.Image:
    try:
        return to_rgb(image)
    except PromptError as error:
        raise DataError(str(error), reason="unreadable picture") from error
