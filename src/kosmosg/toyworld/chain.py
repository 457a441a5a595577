"""What is particular to the toy world in the construction of its training data.

The steps are those of `kosmosg.construct` with nano's models. What is here knows the grammar of
`captions.py`, and nothing of the scenes that pictures were drawn from.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from kosmosg.construct.caption import mllm_captioner
from kosmosg.construct.entities import EntityFinder, parse_tags
from kosmosg.construct.example import Steps
from kosmosg.construct.segment import Segmenter, clipseg
from kosmosg.errors import CheckpointError
from kosmosg.toyworld.captions import NOUNS, PLACE_PHRASES
from kosmosg.toyworld.scenes import ACCESSORIES, COLOURS, PATTERN_COLOURS, PATTERNS, RADII, SHAPES

MAX_WORDS = 60  # four creatures take fewer
# Of two creatures' masks. Of right ones it is nearly 0, for creatures stand side by side.
MAX_OVERLAP = 0.5
Told = dict[str, str | None]


def _one(name: str, words: Sequence[str]) -> str:
    return f"(?P<{name}>{'|'.join(words)})"


# A name as `captions.name` writes it.
_NAME = re.compile(
    rf"\ban? (?:{_one('size', tuple(RADII))} )?(?:{_one('colour', tuple(COLOURS))} )?"
    rf"{_one('shape', (*SHAPES, *NOUNS))}\b"
    rf"(?: with {_one('pattern_colour', tuple(PATTERN_COLOURS))} {_one('pattern', PATTERNS[1:])})?"
    rf"(?: (?:wearing|with|in|and) (?:an? )?{_one('accessory', ACCESSORIES[1:])}\b)?"
)


def nano_steps(directory: Path) -> Steps:
    """Return the steps of a whole model's directory, such as `release.find("nano")`.

    Raises:
        CheckpointError: If a part is missing or damaged.
    """
    return Steps(
        captioner=mllm_captioner(directory, max_new_tokens=MAX_WORDS),
        finder=nano_finder(),
        segmenter=nano_segmenter(directory),
    )


def nano_segmenter(directory: Path) -> Segmenter:
    """Return the segmenter of a model's directory.

    Raises:
        CheckpointError: If it is not there.
    """
    folder = directory / "segmenter"
    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(
            f"{folder} has no weights: train it (kosmosg train nano-segmenter), or give a model"
            " that has it (nano has)"
        )
    return clipseg(folder, device=torch.device("cpu"), dtype=torch.float32)


def nano_finder() -> EntityFinder:
    """Return a finder of the grammar's names, patterns and accessories included."""
    return lambda captions: [parse_tags(names(caption), caption) for caption in captions]


def names(caption: str) -> list[str]:
    """Return the names of creatures in a caption, in its order.

    Example:
        >>> names("a photo of a big red star with white dots and a toy in the snow")
        ['a big red star with white dots', 'a toy']
    """
    return [match.group() for match in _NAME.finditer(caption)]


def told(name: str) -> Told:
    """Return the attributes that a name tells, None for those that it does not.

    Without a word for it the pattern is plain, and nothing is worn.

    Example:
        >>> told("a red star with white dots")["pattern"], told("a red star")["accessory"]
        ('dots', 'none')
    """
    match = _NAME.fullmatch(name)
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
