"""A picture's perceptual hash: 64 bits that resizing and compression hardly change."""

from functools import lru_cache

import numpy as np
from PIL import Image

from kosmosg.data.records import Caption, Document, Edit, Example, Record
from kosmosg.images import to_rgb

BITS = 64
MAX_DISTANCE = 3  # bits; what `dedupe.Near` can find without comparing all with all

_SIDE, _KEPT = 32, 8


def phash(image: Image.Image) -> int:
    """Return the 64-bit hash of a picture's coarse shape in grey; colour does not count.

    The picture as 32 x 32 grey, its discrete cosine transform, the 8 x 8 lowest frequencies: a bit
    says whether one is above their median. The hash of `imagehash.phash`, except that pictures
    without any shape, of whatever one colour, all have the same.

    Raises:
        PromptError: If the picture's file turns out to be damaged.

    Example:
        >>> f"{phash(Image.new('RGB', (64, 48), 'red')):016x}"
        '8000000000000000'
    """
    grey = to_rgb(image).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    waves = _waves()
    lowest = waves @ np.asarray(grey, np.float64) @ waves.T
    lowest = lowest.round(3)  # what is left of rounding differs from machine to machine
    bits = (lowest > np.median(lowest)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def centre_square(image: Image.Image) -> Image.Image:
    """Return the square in the middle of a picture, as constructed examples keep it."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def target_of(record: Record) -> Image.Image | None:
    """Return the picture that training on the record aims at; None if there is none."""
    match record:
        case Example() | Caption():
            return record.image
        case Edit():
            return record.after
        case Document():
            return None


@lru_cache(1)
def _waves() -> np.ndarray:
    places = (np.arange(_SIDE) + 0.5) / _SIDE
    return np.cos(np.pi * np.arange(_KEPT)[:, None] * places)
