"""The optional mark: nothing to see, and it says that a picture was generated.

A fixed pattern of blocks of 2 x 2 pixels is added to the brightness, two steps of 255 up or down.
It outlives JPEG of good quality, but neither scaling nor anybody who wants it gone: a label, no
proof.
"""

import functools

import numpy as np
from jaxtyping import Float
from PIL import Image

STRENGTH = 2.0
FOUND = 4.0  # a picture without the mark scores more once in 30,000
_BLOCK = 2
_SIDE = 1024  # of the pattern, in blocks
_SEED = 0x6B6F736D6F73  # "kosmos"
# IPTC's digital source type, in XMP.
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    "Iptc4xmpExt:DigitalSourceType="
    '"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/>'
    "</rdf:RDF></x:xmpmeta>"
)


def marked(image: Image.Image) -> Image.Image:
    """Return an RGB picture with the mark in it."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    pattern = _pattern(image.height, image.width)
    return Image.fromarray(
        (pixels + STRENGTH * pattern[..., None]).round().clip(0, 255).astype(np.uint8)
    )


def score(image: Image.Image) -> float:
    """Return how surely a picture carries the mark: above `FOUND` it does."""
    grey = np.asarray(image.convert("L"), np.float32)
    height, width = (side // _BLOCK * _BLOCK for side in grey.shape)
    blocks = grey[:height, :width].reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
    means = blocks.mean(axis=(1, 3))
    if min(means.shape) < 3:
        return 0.0
    # What a picture is like is like its surroundings; the pattern is not.
    around = (means[:-2, 1:-1] + means[2:, 1:-1] + means[1:-1, :-2] + means[1:-1, 2:]) / 4
    rest = means[1:-1, 1:-1] - around
    pattern = _pattern(height, width)[_BLOCK:-_BLOCK:_BLOCK, _BLOCK:-_BLOCK:_BLOCK]
    spread = float(np.sqrt((rest**2).sum()))  # of the sum below, over all patterns there could be
    return float((rest * pattern).sum()) / spread if spread else 0.0


@functools.cache
def _signs() -> np.ndarray:
    return np.random.default_rng(_SEED).integers(0, 2, (_SIDE, _SIDE), np.int8) * 2 - 1


def _pattern(height: int, width: int) -> Float[np.ndarray, "height width"]:
    """Return plus and minus ones, the same in the top left corner whatever the size."""
    repeats = -(-max(height, width) // (_SIDE * _BLOCK))
    signs = np.tile(_signs(), (repeats, repeats))[: -(-height // _BLOCK), : -(-width // _BLOCK)]
    return signs.repeat(_BLOCK, 0).repeat(_BLOCK, 1)[:height, :width].astype(np.float32)
