"""The chain of paper section 3.1 with the toy world's models: picture, caption, things, masks.

Each step is a function on a batch, so any model can take any place. What is here knows the grammar
of `captions.py` and nothing of the scenes that pictures were drawn from.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from kosmosg import sequence
from kosmosg.data.records import Entity, Example
from kosmosg.model.mllm import MLLM
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld.captions import NOUNS, PLACE_PHRASES
from kosmosg.toyworld.scenes import ACCESSORIES, COLOURS, PATTERN_COLOURS, PATTERNS, RADII, SHAPES
from kosmosg.toyworld.segmenter import THRESHOLD, Segmenter, nano_segmenter
from kosmosg.toyworld.streams import cut
from kosmosg.toyworld.world import load_part
from kosmosg.verify.loaders import mentions

Captioner = Callable[[Sequence[Image.Image]], list[str]]
EntityFinder = Callable[[Sequence[str]], list[list[str]]]
Mask = Bool[np.ndarray, "height width"]
MAX_WORDS = 60  # four creatures take fewer


def _one(name: str, words: Sequence[str]) -> str:
    return f"(?P<{name}>{'|'.join(words)})"


# A name as `captions.name` writes it.
_NAME = re.compile(
    rf"\ban? (?:{_one('size', tuple(RADII))} )?(?:{_one('colour', tuple(COLOURS))} )?"
    rf"{_one('shape', (*SHAPES, *NOUNS))}\b"
    rf"(?: with {_one('pattern_colour', tuple(PATTERN_COLOURS))} {_one('pattern', PATTERNS[1:])})?"
    rf"(?: (?:wearing|with|in|and) (?:an? )?{_one('accessory', ACCESSORIES[1:])}\b)?"
)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The models of the three steps."""

    captioner: Captioner
    finder: EntityFinder
    segmenter: Segmenter


def nano_chain(directory: Path) -> Chain:
    """Return the chain of a model's directory, such as `release.find("nano")`.

    Raises:
        CheckpointError: If a part is missing or damaged.
    """
    return Chain(
        captioner=nano_captioner(directory),
        finder=nano_finder(),
        segmenter=nano_segmenter(directory),
    )


def nano_captioner(directory: Path) -> Captioner:
    """Return the language model after stage 1, which is what it was up to stage 3, as a captioner.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    mllm = load_part(MLLM, directory / "stage2", "mllm")
    tokenizer = Tokenizer.from_pretrained(directory / "tokenizer")
    sizes = {"num_latents": mllm.config["num_latents"], "image_size": mllm.config["image_size"]}

    def caption(pictures: Sequence[Image.Image]) -> list[str]:
        encoded = [sequence.encode([picture], tokenizer, **sizes) for picture in pictures]
        batch = sequence.collate(encoded, pad_id=tokenizer.pad_id)
        ids = mllm.generate(batch, max_new_tokens=MAX_WORDS, eos_id=tokenizer.eos_id)
        return [tokenizer.decode(row) for row in ids.tolist()]

    return caption


def nano_finder() -> EntityFinder:
    """Return a finder of the grammar's names, patterns and accessories included."""
    return lambda captions: [
        [match.group() for match in _NAME.finditer(caption)] for caption in captions
    ]


def told(mention: str) -> dict[str, str | None]:
    """Return the attributes that a name tells, None for those that it does not.

    Without a word for it the pattern is plain, and nothing is worn.

    Example:
        >>> told("a red star with white dots")["pattern"], told("a red star")["accessory"]
        ('dots', 'none')
    """
    match = _NAME.fullmatch(mention)
    attributes = match.groupdict() if match else {}
    return {
        "shape": attributes.get("shape"),
        "colour": attributes.get("colour"),
        "pattern": attributes.get("pattern") or "plain",
        "pattern_colour": attributes.get("pattern_colour"),
        "accessory": attributes.get("accessory") or "none",
    }


def place_told(caption: str) -> str | None:
    """Return the place that a caption names."""
    for place, phrases in PLACE_PHRASES.items():
        if any(phrase in caption for phrase in phrases):
            return place
    return None


def construct(
    pictures: Sequence[Image.Image], chain: Chain, *, keys: Sequence[str]
) -> list[Example]:
    """Return an example of each picture; what the segmenter does not see stays words.

    Source:
        Paper section 3.1, figure 4; NUMERICS section 9.
    """
    captions = chain.captioner(pictures)
    places = [
        [(place[0], place[1]) for place in mentions(caption, tags)]
        for caption, tags in zip(captions, chain.finder(captions), strict=True)
    ]
    owners = [index for index, found in enumerate(places) for _ in found]
    phrases = [captions[i][start:end] for i, found in enumerate(places) for start, end in found]
    maps = iter(chain.segmenter([pictures[index] for index in owners], phrases))
    return [
        example(
            key, picture, caption, [(place, main_component(next(maps))) for place in found], "chain"
        )
        for key, picture, caption, found in zip(keys, pictures, captions, places, strict=True)
    ]


def example(
    key: str,
    picture: Image.Image,
    caption: str,
    found: Sequence[tuple[tuple[int, int], Mask | None]],
    source: str,
) -> Example:
    """Return the record of a picture.

    Args:
        found: Where the caption mentions things, and their pixels; without any it stays words.
        source: Who said so, kept in the record's provenance.
    """
    entities = []
    for (start, end), mask in found:
        if mask is not None and mask.any():
            crop, cutout = cut(picture, mask)
            entities.append(
                Entity(
                    mention=caption[start:end],
                    start=start,
                    end=end,
                    crop=crop,
                    cutout=cutout,
                    mask=Image.fromarray(mask),
                )
            )
    return Example(
        key=key,
        caption=caption,
        entities=tuple(entities),
        image=picture,
        provenance={"source": "toyworld", "constructed_by": source},
    )


def main_component(probabilities: Float[np.ndarray, "height width"]) -> Mask | None:
    """Return the largest connected part of what is likely enough, None if nothing is.

    Pixels are connected where they share a side. At 64 px the release's dilation by a hundredth
    of the side is none.

    Source:
        NUMERICS section 9: threshold 0.3, grey dilation by side/100, largest component.
    """
    likely = probabilities > THRESHOLD
    if not likely.any():
        return None
    # Every pixel takes the highest number among its neighbours, until none changes.
    labels = np.where(likely, np.arange(1, likely.size + 1).reshape(likely.shape), 0)
    while True:
        before = labels
        padded = np.pad(before, 1)
        around = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
        labels = np.where(likely, np.maximum.reduce([before, *around]), 0)
        if (labels == before).all():
            break
    largest = np.bincount(labels[likely]).argmax()
    return labels == largest
