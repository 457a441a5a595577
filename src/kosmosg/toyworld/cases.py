"""What the judge asks: held-out creatures, pictures of them, and where they should be drawn.

Each case is a function of (seed, index). Pictures shown to the model are never the target: the
creature is larger there, stands elsewhere, and is on white or in another place than the one asked
for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from kosmosg.sequence import Prompt
from kosmosg.toyworld.captions import ACCESSORY_PHRASES, PLACE_PHRASES, article, pattern_phrase
from kosmosg.toyworld.render import render
from kosmosg.toyworld.scenes import (
    BLANK,
    PLACES,
    RADII,
    Scene,
    Subject,
    sample_subject,
    stand,
)

NOUN = "a creature"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A question and its answer: `references` show each subject of `target` alone."""

    index: int
    target: Scene
    references: tuple[Scene, ...]

    @property
    def where(self) -> str:
        """The words for the place."""
        return PLACE_PHRASES[self.target.place][0]

    @property
    def caption(self) -> str:
        """Everything in words, as a caption of the training grammar would say it."""
        return " and ".join(full_name(s) for s in self.target.subjects) + f" {self.where}"

    @property
    def without_pictures(self) -> str:
        """What is left of the prompt when nobody shows the creatures: the floor."""
        return " and ".join(NOUN for _ in self.target.subjects) + f" {self.where}"

    def prompt(self, pictures: Sequence[Image.Image]) -> Prompt:
        """Return the prompt that shows the creatures and does not describe them."""
        parts: list[str | Image.Image] = []
        for picture in pictures:
            parts += [f"and {NOUN}" if parts else NOUN, picture]
        return [*parts, self.where]


def full_name(subject: Subject) -> str:
    """Return all that the judge asks about a creature, such as `a red star with white dots`."""
    words = article(f"{subject.colour} {subject.shape}")
    if subject.pattern != "plain":
        words += f" with {pattern_phrase(subject)}"
    if subject.accessory != "none":
        words += f" {ACCESSORY_PHRASES[subject.accessory][0]}"
    return words


def cases(count: int, *, seed: int, num_subjects: int = 1) -> list[Case]:
    """Return cases number 0 to `count` - 1; half of the creatures are shown on white.

    Args:
        num_subjects: 1, or 2 of different body colours, side by side.
    """
    return [_case(index, seed, num_subjects) for index in range(count)]


def _case(index: int, seed: int, num_subjects: int) -> Case:
    rng = np.random.default_rng([seed, num_subjects, index])
    subjects = (sample_subject(rng, held_out=True),)
    while len(subjects) < num_subjects:
        other = sample_subject(rng, held_out=True)
        if other.colour != subjects[0].colour:  # else no side could be wrong
            subjects += (other,)
    place = PLACES[int(rng.integers(len(PLACES)))]
    if num_subjects == 1:
        # In the middle and of medium size: what a caption without such words would mean.
        dx, dy = rng.uniform(-0.04, 0.04), rng.uniform(-0.03, 0.03)
        standing = (replace(subjects[0], x=0.5 + dx, y=0.6 + dy, radius=RADII["medium"]),)
    else:
        standing = stand(subjects, rng)
    target = Scene(subjects=standing, place=place, seed=int(rng.integers(1 << 31)))
    references = tuple(
        _reference(subject, BLANK if index >> slot & 1 else _another(place, rng), rng)
        for slot, subject in enumerate(subjects)
    )
    return Case(index=index, target=target, references=references)


def _reference(subject: Subject, place: str, rng: np.random.Generator) -> Scene:
    larger = replace(subject, radius=float(rng.uniform(0.26, 0.3)))
    return Scene(subjects=stand((larger,), rng), place=place, seed=int(rng.integers(1 << 31)))


def _another(place: str, rng: np.random.Generator) -> str:
    rest = [other for other in PLACES if other != place]
    return rest[int(rng.integers(len(rest)))]


def draw(scenes: Sequence[Scene], size: int) -> list[Image.Image]:
    """Return the scenes as pictures of `size` pixels a side."""
    pixels, _ = render(scenes, size)
    return [Image.fromarray(picture) for picture in pixels]
