"""Endless training records from the toy world: the same records that real data gives.

Each stream is a function of (seed, index) alone, so a resumed run continues with the sample it
would have seen next. A batch's pictures are drawn in one call, which is what makes drawing cheap.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from kosmosg.data.mixture import Mixture, seed_of
from kosmosg.data.records import Caption, Document, Edit, Entity, Example, Record
from kosmosg.toyworld.captions import (
    FULL,
    SOME,
    arrange,
    describe,
    instruction,
    name,
    pattern_phrase,
)
from kosmosg.toyworld.render import render
from kosmosg.toyworld.scenes import (
    ACCESSORIES,
    BLANK,
    COLOURS,
    PATTERNS,
    PLACES,
    SHAPES,
    STYLES,
    Scene,
    Subject,
    is_held_out,
    sample_scene,
    sample_subject,
    stand,
)

# A plan: the scenes to draw for a record, and how to make it from their pictures and masks.
Plan = tuple[list[Scene], Callable[[list[Image.Image], np.ndarray], Record]]
Planner = Callable[[str, np.random.Generator], Plan]


@dataclass(frozen=True, kw_only=True)
class SceneStream:
    """Scenes alone, for the foundation and the judge."""

    seed: int
    held_out: bool = False
    style_probability: float = 0.15

    def batch(self, step: int, size: int) -> list[Scene]:
        """Return the scenes number step * size and following."""
        return [
            sample_scene(
                np.random.default_rng([self.seed, index]),
                held_out=self.held_out,
                style_probability=self.style_probability,
            )
            for index in range(step * size, (step + 1) * size)
        ]


@dataclass(frozen=True, kw_only=True)
class _Plans:
    """Plans of one kind of record, none of them drawn yet."""

    seed: int
    kind: str
    plan: Planner

    def batch(self, step: int, size: int) -> list[Plan]:
        """Return the plans number step * size and following."""
        seed = seed_of(self.seed, self.kind)
        return [
            self.plan(f"toy-{self.seed}-{self.kind}-{index}", np.random.default_rng([seed, index]))
            for index in range(step * size, (step + 1) * size)
        ]


class RecordStream:
    """Records of several kinds in the proportions of a `Mixture`.

    Args:
        seed: Of everything drawn.
        size: Side of the pictures in pixels.
        kinds: The weight of each kind and what plans its records.
    """

    def __init__(self, *, seed: int, size: int, kinds: Mapping[str, tuple[int, Planner]]) -> None:
        self._size = size
        # Plans are blended, not records, so that a batch's pictures are drawn in one call.
        self._plans = Mixture(
            {kind: _Plans(seed=seed, kind=kind, plan=plan) for kind, (_, plan) in kinds.items()},
            {kind: weight for kind, (weight, _) in kinds.items()},
            seed=seed,
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the kinds of records."""
        return self._plans.sources

    def source(self, number: int) -> str:
        """Return the kind of record `number`."""
        return self._plans.source(number)

    def batch(self, step: int, size: int) -> list[Record]:
        """Return the records number step * size and following."""
        plans = self._plans.batch(step, size)
        scenes = [scene for drawn, _ in plans for scene in drawn]
        pixels, masks = render(scenes, self._size) if scenes else (np.empty(0), np.empty(0))
        pictures = [Image.fromarray(np.asarray(picture)) for picture in pixels]
        records, start = [], 0
        for drawn, make in plans:
            end = start + len(drawn)
            records.append(make(pictures[start:end], masks[start:end]))
            start = end
        return records


def _text(key: str, rng: np.random.Generator) -> Plan:
    captions = [describe(sample_scene(rng), rng, SOME) for _ in range(int(rng.integers(1, 3)))]
    return [], lambda _pictures, _masks: Document(key=key, parts=tuple(captions))


def _captioned(key: str, rng: np.random.Generator) -> Plan:
    scene = _sometimes_blank(sample_scene(rng), rng)
    caption = describe(scene, rng, FULL)
    return [scene], lambda pictures, _masks: Document(key=key, parts=(pictures[0], caption))


def _sometimes_blank(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return the scene, or one time in four a lone creature's as a cut-out on white."""
    if len(scene.subjects) == 1 and rng.random() < 0.25:
        return replace(scene, place=BLANK, style="plain")
    return scene


def _looked_at(key: str, rng: np.random.Generator) -> Plan:
    """Plan a picture, mostly of two or three creatures, and all that a caption can say of them."""
    count = 1 + int(np.searchsorted((0.2, 0.75, 0.97), rng.random(), side="right"))
    scene = _sometimes_blank(sample_scene(rng, count=count), rng)
    names = [name(subject, rng, FULL, alone=count == 1) for subject in scene.subjects]
    caption = "".join(arrange(names, scene, rng, FULL))
    return [scene], lambda pictures, _masks: Document(key=key, parts=(pictures[0], caption))


def _interleaved(key: str, rng: np.random.Generator) -> Plan:
    scenes = [sample_scene(rng, count=1) for _ in range(int(rng.integers(2, 4)))]
    captions = [describe(scene, rng, FULL) for scene in scenes]
    numbers = ("first", "second", "this is the same creature")
    spoken = rng.random() < 0.5

    def make(pictures: list[Image.Image], _masks: np.ndarray) -> Document:
        parts: list[str | Image.Image] = []
        for position, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
            if spoken and position < 2:
                parts.append(f"{numbers[position]}:")
            parts += [picture, caption]
        return Document(key=key, parts=tuple(parts))

    return scenes, make


def _caption(key: str, rng: np.random.Generator) -> Plan:
    scene = sample_scene(rng)
    caption = describe(scene, rng, FULL if rng.random() < 0.7 else SOME)
    return [scene], lambda pictures, _masks: Caption(key=key, text=caption, image=pictures[0])


def _words_only(key: str, rng: np.random.Generator) -> Plan:
    caption = describe(sample_scene(rng), rng, FULL if rng.random() < 0.7 else SOME)
    return [], lambda _pictures, _masks: Caption(key=key, text=caption, image=None)


def _example(key: str, rng: np.random.Generator) -> Plan:
    """Plan a compositional example: each subject is an entity with pictures of its own."""
    scene = example_scene(rng)
    alone = len(scene.subjects) == 1
    mentions = [
        "a creature" if stays_generic(rng) else name(subject, rng, SOME, alone=alone)
        for subject in scene.subjects
    ]
    parts = arrange(mentions, scene, rng, FULL)
    scenes = [scene]
    for subject in scene.subjects:
        scenes += entity_scenes(subject, rng)
    same_render = [bool(rng.random() < 0.5) for _ in mentions]

    def make(pictures: list[Image.Image], masks: np.ndarray) -> Example:
        entities = []
        for index, mention in enumerate(mentions):
            start = sum(len(part) for part in parts[: 2 * index + 1])
            crop, cutout = pictures[1 + 2 * index], pictures[2 + 2 * index]
            if same_render[index]:
                crop, cutout = cut(pictures[0], masks[0, index])
            entities.append(
                Entity(
                    mention=mention,
                    start=start,
                    end=start + len(mention),
                    crop=crop,
                    cutout=cutout,
                    mask=seen_mask(masks[0], index),
                )
            )
        return Example(key=key, caption="".join(parts), entities=tuple(entities), image=pictures[0])

    return scenes, make


def example_scene(rng: np.random.Generator) -> Scene:
    """Return a scene of one to three creatures, as compositional examples have them."""
    count = 1 + int(np.searchsorted((0.55, 0.93), rng.random(), side="right"))
    return sample_scene(rng, count=count)


def stays_generic(rng: np.random.Generator) -> bool:
    """Return whether to mention a creature by a noun that says nothing.

    Mostly, so that the picture alone can tell; else by its whole name.
    """
    return rng.random() < 0.75


def seen_mask(masks: np.ndarray, index: int) -> Image.Image | None:
    """Return where a subject is to be seen, or None: those after it are drawn over it."""
    seen = masks[index] & ~masks[index + 1 :].any(0)
    return Image.fromarray(seen) if seen.any() else None


def entity_scenes(subject: Subject, rng: np.random.Generator) -> list[Scene]:
    """Return two more scenes of this subject alone: on some place, and cut out on white."""
    other = replace(subject, radius=float(rng.uniform(0.22, 0.3)))
    place = PLACES[int(rng.integers(len(PLACES)))]
    seeds = rng.integers(0, 1 << 31, 2).tolist()
    return [
        Scene(subjects=stand((other,), rng), place=place, seed=seeds[0]),
        Scene(subjects=stand((other,), rng), place=BLANK, seed=seeds[1]),
    ]


def cut(picture: Image.Image, mask: np.ndarray) -> tuple[Image.Image, Image.Image]:
    """Return the subject's square crop with its ground and on white, at the picture's size."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:  # wholly hidden: the picture itself
        return picture, picture
    size = picture.width
    side = min(size, int(max(np.ptp(rows), np.ptp(columns)) * 1.25) + 3)
    left = int(np.clip((columns[0] + columns[-1] + 1 - side) // 2, 0, size - side))
    top = int(np.clip((rows[0] + rows[-1] + 1 - side) // 2, 0, size - side))
    box = (left, top, left + side, top + side)
    pixels = np.where(mask[..., None], np.asarray(picture), 255).astype(np.uint8)
    square = (size, size)
    return (
        picture.crop(box).resize(square, Image.Resampling.BICUBIC),
        Image.fromarray(pixels).crop(box).resize(square, Image.Resampling.BICUBIC),
    )


def _edit(key: str, rng: np.random.Generator) -> Plan:
    """Plan an edit in InstructPix2Pix's form: one thing changes, all else stays."""
    before = sample_scene(rng, count=1, style_probability=0.1)
    kind = ("place", "accessory", "colour", "pattern", "shape", "style")[int(rng.integers(6))]
    after, words = _change(before, kind, rng)
    caption, after_caption = describe(before, rng, SOME), describe(after, rng, FULL)
    return [before, after], lambda pictures, _masks: Edit(
        key=key,
        caption=caption,
        before=(pictures[0],),
        instruction=words,
        after=pictures[1],
        after_caption=after_caption,
    )


def _other(options: Sequence[str], current: str, rng: np.random.Generator) -> str:
    rest = [option for option in options if option != current]
    return rest[int(rng.integers(len(rest)))]


def _change(scene: Scene, kind: str, rng: np.random.Generator) -> tuple[Scene, str]:
    """Return the changed scene and the words that ask for it; never a held-out creature."""
    subject = scene.subjects[0]
    if kind == "place":
        place = _other(PLACES, scene.place, rng)
        return replace(scene, place=place), instruction("place", place, rng)
    if kind == "style":
        style = _other(STYLES, scene.style, rng)
        return replace(scene, style=style), instruction("style", style, rng)
    if kind == "accessory":
        accessory = _other(ACCESSORIES, subject.accessory, rng)
        changed = replace(subject, accessory=accessory)
        if accessory == "none":
            words = instruction("remove", subject.accessory, rng)
        else:
            words = instruction("accessory", accessory, rng)
        return replace(scene, subjects=(changed,)), words
    options = {"colour": tuple(COLOURS), "pattern": PATTERNS[1:], "shape": SHAPES}[kind]
    while True:  # four options in five are not held out
        value = _other(options, getattr(subject, kind), rng)
        changed = replace(subject, **{kind: value})
        if not is_held_out(changed.shape, changed.colour, changed.pattern):
            break
    said = pattern_phrase(changed) if kind == "pattern" else value
    return replace(scene, subjects=(changed,)), instruction(kind, said, rng)


def stage1_stream(seed: int, size: int = 64) -> RecordStream:
    """Return text, caption pairs and interleaved pages."""
    kinds = {"text": (3, _text), "pair": (12, _captioned), "page": (5, _interleaved)}
    return RecordStream(seed=seed, size=size, kinds=kinds)


def captioner_stream(seed: int, size: int = 64) -> RecordStream:
    """Return pictures with their captions: every creature's whole name, from left to right."""
    return RecordStream(seed=seed, size=size, kinds={"look": (1, _looked_at)})


def stage2_stream(seed: int, size: int = 64) -> RecordStream:
    """Return captions without their pictures (stage 2 never opens one)."""
    return RecordStream(seed=seed, size=size, kinds={"caption": (1, _words_only)})


def stage3_stream(
    seed: int, size: int = 64, *, weights: tuple[int, int, int] = (2, 2, 1)
) -> RecordStream:
    """Return compositional examples, edits and captions, by these weights; 0 leaves one out.

    Source:
        Paper section 3.2.
    """
    planners = {"example": _example, "edit": _edit, "caption": _caption}
    kinds = {
        name: (weight, planner)
        for (name, planner), weight in zip(planners.items(), weights, strict=True)
        if weight
    }
    return RecordStream(seed=seed, size=size, kinds=kinds)


def edit_stream(seed: int, size: int = 64) -> RecordStream:
    """Return stage 3's edits alone."""
    return RecordStream(seed=seed, size=size, kinds={"edit": (1, _edit)})


def caption_stream(seed: int, size: int = 64) -> RecordStream:
    """Return stage 3's captions alone, with their pictures."""
    return RecordStream(seed=seed, size=size, kinds={"caption": (1, _caption)})


def held_out_subject(rng: np.random.Generator) -> Subject:
    """Return a creature that no stage has seen."""
    return sample_subject(rng, held_out=True)
