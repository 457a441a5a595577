"""What is asked: prompts of words and pictures, each with the scene that would be right.

Creatures are held out; noise and scene of a question depend on the seed and its number alone, so
rows that ask the same thing in other ways are pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from kosmosg.sequence import Prompt
from kosmosg.toyworld.captions import STYLE_PREFIXES, article, instruction
from kosmosg.toyworld.cases import NOUN, Case, cases, draw, full_name
from kosmosg.toyworld.render import render
from kosmosg.toyworld.scenes import (
    ACCESSORIES,
    BLANK,
    COLOURS,
    PLACES,
    STYLES,
    Scene,
    Subject,
    sample_subject,
    stand,
)

Edit = Literal["place", "accessory", "remove", "colour", "style"]
# An entity's words and its picture, or the picture alone.
Words = Literal["said", "dropped"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """A prompt and what it asks for; `before` is the scene of an edit's picture."""

    index: int
    prompt: Prompt
    target: Scene
    before: Scene | None = None

    @property
    def shown(self) -> list[Image.Image]:
        """The pictures of the prompt."""
        return [part for part in self.prompt if not isinstance(part, str)]


Ask = Callable[[int, int, int], list[Question]]  # of how many, the seed, the pictures' side


def pictured(count: int, seed: int, size: int) -> list[Question]:
    """Return prompts that show a creature and name another place: `a creature [picture] ...`."""
    return of_cases(cases(count, seed=seed), size)


def pictured_two(count: int, seed: int, size: int) -> list[Question]:
    """Return the same with two creatures of different colours."""
    return of_cases(cases(count, seed=seed, num_subjects=2), size)


def without_noun(count: int, seed: int, size: int) -> list[Question]:
    """Return the prompts of `pictured` that do not even say that there is a creature."""
    asked = pictured(count, seed, size)
    return [replace(one, prompt=one.prompt[1:]) for one in asked]


def captioned(count: int, seed: int, _size: int) -> list[Question]:
    """Return the targets of `pictured` in words."""
    return [
        Question(index=case.index, prompt=[case.caption], target=case.target)
        for case in cases(count, seed=seed)
    ]


def captioned_two(count: int, seed: int, _size: int) -> list[Question]:
    """Return the targets of `pictured_two` in words."""
    return [
        Question(index=case.index, prompt=[case.caption], target=case.target)
        for case in cases(count, seed=seed, num_subjects=2)
    ]


def unshown(count: int, seed: int, _size: int) -> list[Question]:
    """Return the words of `pictured` without the picture: the floor."""
    return [
        Question(index=case.index, prompt=[case.without_pictures], target=case.target)
        for case in cases(count, seed=seed)
    ]


def several(num_subjects: int, *, in_words: bool = False) -> Ask:
    """Return what asks for three or four creatures, from left to right, then the next row."""

    def ask(count: int, seed: int, size: int) -> list[Question]:
        return [_several(index, seed, size, num_subjects, in_words) for index in range(count)]

    return ask


def _several(index: int, seed: int, size: int, num_subjects: int, in_words: bool) -> Question:
    rng = np.random.default_rng([seed, 20 + num_subjects, index])
    subjects: list[Subject] = []
    while len(subjects) < num_subjects:
        other = sample_subject(rng, held_out=True)
        if other.colour not in {subject.colour for subject in subjects}:
            subjects.append(other)
    place = PLACES[int(rng.integers(len(PLACES)))]
    target = Scene(
        subjects=stand(tuple(subjects), rng), place=place, seed=int(rng.integers(1 << 31))
    )
    case = Case(
        index=index,
        target=target,
        references=tuple(_alone(subject, place, rng) for subject in subjects),
    )
    joints = ["", *[", "] * (num_subjects - 2), " and "]
    if in_words:
        said = "".join(j + full_name(s) for j, s in zip(joints, subjects, strict=True))
        return Question(index=index, prompt=[f"{said} {case.where}"], target=target)
    prompt: list[str | Image.Image] = []
    for joint, picture in zip(joints, draw(case.references, size), strict=True):
        prompt += [joint + NOUN, picture]
    return Question(index=index, prompt=[*prompt, case.where], target=target)


def with_accessory(words: Words) -> Ask:
    """Return what shows a bare creature, and on white what it is to wear."""

    def ask(count: int, seed: int, size: int) -> list[Question]:
        asked = []
        for case in cases(count, seed=seed):
            rng = np.random.default_rng([seed, 31, case.index])
            bare = replace(case.target.subjects[0], accessory="none")
            accessory = ACCESSORIES[1 + int(rng.integers(4))]
            target = replace(case.target, subjects=(replace(bare, accessory=accessory),))
            shown = draw([_alone(bare, case.target.place, rng)], size)[0]
            worn = accessory_picture(accessory, rng, size)
            named = accessory if accessory == "sunglasses" else article(accessory)
            wearing = f"wearing {named}" if words == "said" else "wearing"
            prompt = [NOUN, shown, wearing, worn, case.where]
            asked.append(Question(index=case.index, prompt=prompt, target=target))
        return asked

    return ask


def accessory_picture(accessory: str, rng: np.random.Generator, size: int) -> Image.Image:
    """Return an accessory alone on white: what of a creature's picture is not there without it."""
    wearer = replace(sample_subject(rng), accessory=accessory, radius=0.3, x=0.5, y=0.6)
    scenes = [
        Scene(subjects=(replace(wearer, accessory=a),), place=BLANK) for a in (accessory, "none")
    ]
    pixels, _ = render(scenes, size)
    differs = (pixels[0] != pixels[1]).any(-1, keepdims=True)
    return Image.fromarray(np.where(differs, pixels[0], 255).astype(np.uint8))


def with_scene(words: Words) -> Ask:
    """Return what shows a creature, and a place without one."""

    def ask(count: int, seed: int, size: int) -> list[Question]:
        asked = []
        for case in cases(count, seed=seed):
            rng = np.random.default_rng([seed, 32, case.index])
            empty = Scene(subjects=(), place=case.target.place, seed=int(rng.integers(1 << 31)))
            shown, place = draw([case.references[0], empty], size)
            where = case.where if words == "said" else "in"
            prompt = [NOUN, shown, where, place]
            asked.append(Question(index=case.index, prompt=prompt, target=case.target))
        return asked

    return ask


def with_style(words: Words) -> Ask:
    """Return what shows a creature, and another creature's picture in the style that is wanted."""

    def ask(count: int, seed: int, size: int) -> list[Question]:
        asked = []
        for case in cases(count, seed=seed):
            rng = np.random.default_rng([seed, 33, case.index])
            style = STYLES[1 + int(rng.integers(3))]
            other = _alone(sample_subject(rng), case.target.place, rng)
            elsewhere = PLACES[int(rng.integers(len(PLACES)))]
            shown, styled = draw(
                [case.references[0], replace(other, style=style, place=elsewhere)], size
            )
            medium = (
                STYLE_PREFIXES[style][0].removesuffix(" of ") if words == "said" else "a picture"
            )
            prompt = [medium, styled, f"of {NOUN}", shown, case.where]
            target = replace(case.target, style=style)
            asked.append(Question(index=case.index, prompt=prompt, target=target))
        return asked

    return ask


def edits(kind: Edit) -> Ask:
    """Return a creature's picture and words that ask for one change of it."""

    def ask(count: int, seed: int, size: int) -> list[Question]:
        return [_edit(case, seed, size, kind) for case in cases(count, seed=seed)]

    return ask


def mixed_edits(count: int, seed: int, size: int) -> list[Question]:
    """Return edits of a place, an accessory and a colour in turn."""
    kinds: tuple[Edit, ...] = ("place", "accessory", "colour")
    return [
        _edit(case, seed, size, kinds[case.index % len(kinds)]) for case in cases(count, seed=seed)
    ]


def _edit(case: Case, seed: int, size: int, kind: Edit) -> Question:
    rng = np.random.default_rng([seed, 40, case.index])
    before = replace(case.target, place=_other(PLACES, "", rng))
    (subject,) = before.subjects
    match kind:
        case "place":
            thing = _other(PLACES, before.place, rng)
            after = replace(before, place=thing)
        case "style":
            thing = _other(STYLES, "plain", rng)
            after = replace(before, style=thing)
        case "accessory":
            subject = replace(subject, accessory="none")
            thing = _other(ACCESSORIES, "none", rng)
            after = replace(before, subjects=(replace(subject, accessory=thing),))
        case "remove":
            thing = _other(ACCESSORIES, "none", rng)
            subject = replace(subject, accessory=thing)
            after = replace(before, subjects=(replace(subject, accessory="none"),))
        case "colour":
            thing = _other(tuple(COLOURS), subject.colour, rng)
            after = replace(before, subjects=(replace(subject, colour=thing),))
    before = replace(before, subjects=(subject,))
    (picture,) = draw([before], size)
    prompt = [picture, instruction(kind, thing, rng)]
    return Question(index=case.index, prompt=prompt, target=after, before=before)


def of_cases(asked: Sequence[Case], size: int) -> list[Question]:
    """Return questions that show these cases' references."""
    drawn = iter(draw([scene for case in asked for scene in case.references], size))
    return [
        Question(
            index=case.index,
            prompt=case.prompt([next(drawn) for _ in case.references]),
            target=case.target,
        )
        for case in asked
    ]


def _alone(subject: Subject, place: str, rng: np.random.Generator) -> Scene:
    """Return a larger picture of a creature, half of the time on white, else in another place."""
    larger = replace(subject, radius=float(rng.uniform(0.26, 0.3)))
    ground = BLANK if rng.random() < 0.5 else _other(PLACES, place, rng)
    return Scene(subjects=stand((larger,), rng), place=ground, seed=int(rng.integers(1 << 31)))


def _other(options: Sequence[str], current: str, rng: np.random.Generator) -> str:
    rest = [option for option in options if option != current]
    return rest[int(rng.integers(len(rest)))]
