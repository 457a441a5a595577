"""What the toy world is: its version, and the digest that notices when it has changed.

Recorded figures and weights belong to one version. Renderer, grammar and split are frozen; whoever
changes one of them writes the new digest into VERSION, and every old figure is void.
"""

import hashlib
from importlib.resources import files

import numpy as np

from kosmosg.toyworld.captions import SOME, describe, words
from kosmosg.toyworld.render import render
from kosmosg.toyworld.scenes import (
    BLANK,
    COLOURS,
    PATTERNS,
    SHAPES,
    Scene,
    is_held_out,
    sample_scene,
    sample_subject,
    stand,
)

VERSION = (files("kosmosg.toyworld") / "VERSION").read_text(encoding="utf-8").strip()
_SEED = 56  # whose numbers stay far from where rounding would turn: see margin()
_LEVELS = 2  # steps of the digest for each of a picture's 256 levels


def digest() -> str:
    """Return the sha256 of 64 pictures, their captions, the word list and the held-out split.

    Of each picture its mean colour and the area of its masks are digested, coarsely: the last bits
    of sines differ between processors, and must not.
    """
    scenes, captions = _examples()
    pixels, masks = render(scenes)
    text = [*captions, *words()]
    text += [
        f"{shape} {colour} {pattern}"
        for shape in SHAPES
        for colour in COLOURS
        for pattern in PATTERNS
        if is_held_out(shape, colour, pattern)
    ]
    text += [repr(scene) for scene in scenes]
    numbers = _levels(pixels, masks).round().astype("<i8")
    return hashlib.sha256("\n".join(text).encode() + numbers.tobytes()).hexdigest()


def margin() -> float:
    """Return how far the digested numbers stay from where rounding would turn, at least."""
    scenes, _ = _examples()
    levels = _levels(*render(scenes))
    return float(np.abs(levels - np.floor(levels) - 0.5).min())


def _levels(pixels: np.ndarray, masks: np.ndarray) -> np.ndarray:
    colours = pixels.mean((1, 2), dtype=np.float64) * _LEVELS
    areas = masks.mean((2, 3), dtype=np.float64) * 16  # units of 256 pixels
    return np.concatenate([colours, areas], axis=1)


def _examples() -> tuple[list[Scene], list[str]]:
    scenes, captions = [], []
    for index in range(64):
        rng = np.random.default_rng([_SEED, index])
        if index % 8:
            scene = sample_scene(rng, held_out=bool(index % 2), style_probability=0.4)
        else:
            scene = Scene(subjects=stand((sample_subject(rng),), rng), place=BLANK)
        scenes.append(scene)
        captions.append(describe(scene, rng, SOME))
    return scenes, captions
