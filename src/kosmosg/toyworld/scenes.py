"""What can be in a toy picture, which combinations are held out, and scenes drawn at random."""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "oval")
COLOURS = {
    "red": (222, 38, 38),
    "orange": (250, 140, 22),
    "yellow": (248, 222, 46),
    "green": (36, 160, 60),
    "cyan": (60, 205, 220),
    "blue": (42, 72, 220),
    "purple": (136, 48, 176),
    "pink": (250, 130, 190),
}
PATTERNS = ("plain", "stripes", "dots", "checks", "rings")
PATTERN_COLOURS = {"white": (250, 250, 250), "black": (22, 22, 22)}
ACCESSORIES = ("none", "hat", "crown", "sunglasses", "scarf")
PLACES = ("beach", "snow", "forest", "desert", "night", "city", "underwater", "meadow")
BLANK = "blank"  # a white ground, for cut-out subjects; never named in a caption
STYLES = ("plain", "pastel", "framed", "sticker")
RADII = {"small": 0.19, "medium": 0.24, "big": 0.29}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One creature. `x`, `y` and `radius` are fractions of the picture's side."""

    shape: str
    colour: str
    pattern: str
    pattern_colour: str
    accessory: str
    x: float = 0.5
    y: float = 0.58
    radius: float = 0.24


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is in one picture; `seed` moves stars, trees and bubbles about."""

    subjects: tuple[Subject, ...]
    place: str
    style: str = "plain"
    seed: int = 0


def is_held_out(shape: str, colour: str, pattern: str) -> bool:
    """Return whether this combination appears in no stage of training, foundation included.

    One pattern in five is held out for each shape and colour (20% of the combinations), so every
    shape, every colour and every pair of them is still seen.
    """
    index = SHAPES.index(shape) + 2 * list(COLOURS).index(colour) + PATTERNS.index(pattern)
    return index % 5 == 0


_ALL = tuple(product(SHAPES, COLOURS, PATTERNS))
_COMBINATIONS = {
    held_out: tuple(c for c in _ALL if is_held_out(*c) == held_out) for held_out in (False, True)
}


def sample_subject(rng: np.random.Generator, *, held_out: bool = False) -> Subject:
    """Draw a creature in the middle of the picture; `held_out` picks the split."""
    combinations = _COMBINATIONS[held_out]
    numbers = rng.integers(0, 1 << 30, 4).tolist()
    shape, colour, pattern = combinations[numbers[0] % len(combinations)]
    return Subject(
        shape=shape,
        colour=colour,
        pattern=pattern,
        pattern_colour=tuple(PATTERN_COLOURS)[numbers[1] % 2],
        accessory=ACCESSORIES[numbers[2] % 5],
        radius=tuple(RADII.values())[numbers[3] % 3],
    )


# Where subjects stand: (x, y, largest radius) for one, two, three and four of them.
SINGLE = {"left": 0.29, "middle": 0.5, "right": 0.71}
_STANDS = {
    2: ((0.27, 0.6, 0.2), (0.73, 0.6, 0.2)),
    3: ((0.18, 0.6, 0.15), (0.5, 0.6, 0.15), (0.82, 0.6, 0.15)),
    4: ((0.27, 0.33, 0.155), (0.73, 0.33, 0.155), (0.27, 0.8, 0.155), (0.73, 0.8, 0.155)),
}


def stand(subjects: tuple[Subject, ...], rng: np.random.Generator) -> tuple[Subject, ...]:
    """Return the subjects put side by side (four: in two rows), each moved a little."""
    shifts = rng.uniform(-1, 1, (len(subjects), 3)).tolist()
    if len(subjects) == 1:
        side = ("middle", "middle", "left", "right")[int(rng.integers(4))]
        (dx, dy, scale), subject = shifts[0], subjects[0]
        reach = 0.05 if side == "middle" else 0.02
        return (
            replace(
                subject,
                x=SINGLE[side] + reach * dx,
                y=0.6 + 0.03 * dy,
                radius=subject.radius * (1 + 0.04 * scale),
            ),
        )
    placed = []
    for subject, (x, y, radius), (dx, dy, scale) in zip(
        subjects, _STANDS[len(subjects)], shifts, strict=True
    ):
        placed.append(
            replace(
                subject,
                x=x + 0.02 * dx,
                y=y + 0.02 * dy,
                radius=radius * (1 + 0.05 * scale),
            )
        )
    return tuple(placed)


def side_of(subject: Subject) -> str:
    """Return left, middle or right for a subject that stands alone."""
    return min(SINGLE, key=lambda side: abs(SINGLE[side] - subject.x))


def size_of(subject: Subject) -> str:
    """Return small, medium or big for a subject that stands alone."""
    return min(RADII, key=lambda size: abs(RADII[size] - subject.radius))


def sample_scene(
    rng: np.random.Generator,
    *,
    count: int | None = None,
    held_out: bool = False,
    style_probability: float = 0.15,
) -> Scene:
    """Draw a scene; `count` None gives 1 to 4 subjects (52, 34, 8 and 6 in a hundred)."""
    if count is None:
        count = int(np.searchsorted((0.52, 0.86, 0.94), rng.random(), side="right")) + 1
    subjects = tuple(sample_subject(rng, held_out=held_out) for _ in range(count))
    styled = rng.random() < style_probability
    return Scene(
        subjects=stand(subjects, rng),
        place=PLACES[int(rng.integers(len(PLACES)))],
        style=STYLES[1 + int(rng.integers(3))] if styled else "plain",
        seed=int(rng.integers(1 << 31)),
    )
