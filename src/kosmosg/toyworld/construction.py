"""How good the construction of training data is, where the renderer knows the truth.

Pictures of held-out creatures go through the steps of `kosmosg.construct` with nano's models; their
captions, entities and masks are compared with the scenes that were drawn.
"""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
from PIL import Image
from tqdm import tqdm

from kosmosg.construct.example import Source, Steps, construct
from kosmosg.construct.segment import THRESHOLD, largest_part
from kosmosg.data.records import Entity
from kosmosg.errors import ConfigError, DataError
from kosmosg.toyworld.cases import cases, full_name
from kosmosg.toyworld.chain import Told, names, place_told, told
from kosmosg.toyworld.render import render
from kosmosg.toyworld.scenes import Scene, Subject
from kosmosg.toyworld.scores import Row, grid, wilson
from kosmosg.toyworld.segmenter import SIZE
from kosmosg.toyworld.version import VERSION

BATCH = 64
GOOD = 0.8
SAME = 0.5  # a mask that covers so much of a creature, and little else, is of no other
_TOLD = ("shape", "colour", "pattern", "pattern_colour", "accessory")
_CAPTION = ("shape", "colour", "pattern", "accessory", "place", "all")
_CHAIN = (
    "recall",
    "precision",
    "mean_iou",
    f"iou_{GOOD}",
    "iou_named",
    "iou_by_truth",
    "wrong_pairs",
    "in_order",
    "n",
)


def evaluate(steps: Steps, *, limit: int, seed: int) -> dict[str, Row]:
    """Return what the steps make of `limit` pictures of one held-out creature, and of two.

    `shape` to `all`: how often the caption's words for each creature, in their order, and for the
    place are right; a word that is missing is wrong. `recall`, `precision`: the record's entities
    that name a creature of the picture by shape and colour, of the creatures and of the entities.
    `mean_iou` and `iou_0.8`: masks against the renderer's, over all creatures; one that no entity
    means counts 0. `iou_named`: the mean over those that are recalled. `iou_by_truth`: over all,
    with the renderer's words for prompts. `wrong_pairs`: entities whose mask lies on another
    creature than the one that their words mean. `in_order`: pictures with as many entities as
    creatures, from left to right, each with a mask of its own creature, whatever its words: stage 3
    learns from these which of two pictures stands where.

    Raises:
        ConfigError: If `limit` is below 1.
    """
    if limit < 1:
        raise ConfigError(f"limit is {limit}; ask for at least 1 picture")
    report: dict[str, Row] = {}
    with tqdm(total=2 * limit, unit="picture", mininterval=1.0, dynamic_ncols=True) as bar:
        for count, name in ((1, "one_subject"), (2, "two_subjects")):
            scenes = [case.target for case in cases(limit, seed=seed, num_subjects=count)]
            tally = _Tally(count)
            for start in range(0, limit, BATCH):
                tally.add(steps, scenes[start : start + BATCH])
                bar.update(len(scenes[start : start + BATCH]))
            report[name] = tally.row()
    report["settings"] = {"limit": limit, "seed": seed, "toyworld": VERSION}
    return report


def table(report: dict[str, Row]) -> str:
    """Return the rows as text: the captions, then the entities and masks."""
    rows = {name: row for name, row in report.items() if name != "settings"}
    return "\n\n".join(grid(("", *columns), rows) for columns in (_CAPTION, _CHAIN))


class _Tally:
    """Counts over the pictures of one row."""

    def __init__(self, num_subjects: int) -> None:
        self.num_subjects = num_subjects
        self.right: dict[str, list[bool]] = {
            what: [] for what in (*_CAPTION, "wrong_pairs", "in_order")
        }
        self.overlaps: list[float] = []
        self.overlaps_named: list[float] = []
        self.overlaps_by_truth: list[float] = []
        self.num_entities = 0

    def add(self, steps: Steps, scenes: Sequence[Scene]) -> None:
        pixels, masks = render(scenes, SIZE)
        pictures = [Image.fromarray(picture) for picture in pixels]
        sources = [Source(key=f"{n}", image=picture) for n, picture in enumerate(pictures)]
        made = construct(sources, steps, size=SIZE, without_entities="keep")
        for scene, record, truth in zip(scenes, made, masks, strict=True):
            caption, entities = "", ()
            if not isinstance(record, DataError):  # an empty caption is the only fault there can be
                caption, entities = record.caption, record.entities
            self._read(scene, caption)
            self._look(scene, entities, truth)
        self._look_by_truth(steps, scenes, pictures, masks)

    def _read(self, scene: Scene, caption: str) -> None:
        said_of = [told(name) for name in names(caption)]
        place = place_told(caption) == scene.place
        everything = place and len(said_of) == len(scene.subjects)
        self.right["place"].append(place)
        for slot, subject in enumerate(scene.subjects):
            said = said_of[slot] if slot < len(said_of) else None
            verdict = {what: said is not None and _is(subject, said, what) for what in _TOLD}
            verdict["pattern"] &= verdict.pop("pattern_colour")
            everything = everything and all(verdict.values())
            for what, right in verdict.items():
                self.right[what].append(right)
        self.right["all"].append(everything)

    def _look(self, scene: Scene, entities: Sequence[Entity], truth: np.ndarray) -> None:
        said_of = [told(entity.mention) for entity in entities]
        masks = [np.asarray(entity.mask) > 0 for entity in entities]
        owners = _owners(scene.subjects, said_of)
        self.num_entities += len(said_of)
        self.right["in_order"].append(
            len(masks) == len(scene.subjects)
            and all(_iou(mask, truth[slot]) > SAME for slot, mask in enumerate(masks))
        )
        for slot, subject in enumerate(scene.subjects):
            if slot not in owners:
                self.overlaps.append(0.0)
                continue
            said, mask = said_of[owners[slot]], masks[owners[slot]]
            overlaps = [_iou(mask, other) for other in truth[: len(scene.subjects)]]
            self.overlaps.append(overlaps[slot])
            if _is(subject, said, "shape") and _is(subject, said, "colour"):
                self.overlaps_named.append(overlaps[slot])
            self.right["wrong_pairs"].append(max(overlaps) > overlaps[slot])

    def _look_by_truth(
        self,
        steps: Steps,
        scenes: Sequence[Scene],
        pictures: Sequence[Image.Image],
        masks: np.ndarray,
    ) -> None:
        asked = [(i, slot) for i, scene in enumerate(scenes) for slot in range(len(scene.subjects))]
        words = [full_name(scenes[i].subjects[slot]) for i, slot in asked]
        maps = steps.segmenter([pictures[i] for i, _ in asked], words)
        for (i, slot), probabilities in zip(asked, maps, strict=True):
            mask = largest_part(probabilities > THRESHOLD)
            self.overlaps_by_truth.append(_iou(mask, masks[i, slot]))

    def row(self) -> Row:
        num_subjects, num_named = len(self.overlaps), len(self.overlaps_named)
        counts = {what: (sum(answers), len(answers)) for what, answers in self.right.items()}
        counts["recall"] = (num_named, num_subjects)
        counts["precision"] = (num_named, self.num_entities)
        counts[f"iou_{GOOD}"] = (sum(overlap > GOOD for overlap in self.overlaps), num_subjects)
        row: Row = {what: right / n if n else 0.0 for what, (right, n) in counts.items()}
        row["mean_iou"] = float(np.mean(self.overlaps))
        row["iou_named"] = float(np.mean(self.overlaps_named)) if num_named else 0.0
        row["iou_by_truth"] = float(np.mean(self.overlaps_by_truth))
        row["n"] = num_subjects // self.num_subjects
        row["intervals"] = {what: wilson(right, n) for what, (right, n) in counts.items() if n}
        return row


def _is(subject: Subject, said: Told, what: str) -> bool:
    if what == "pattern_colour" and subject.pattern == "plain":
        return True
    return getattr(subject, what) == said[what]


def _owners(subjects: Sequence[Subject], said_of: Sequence[Told]) -> dict[int, int]:
    """Return which name means each subject: the assignment in which most words are true.

    Of more names than subjects the first ones count.
    """
    said_of = said_of[: len(subjects)]

    def agreement(slots: Sequence[int]) -> int:
        return sum(
            _is(subjects[slot], said, what)
            for slot, said in zip(slots, said_of, strict=False)
            for what in _TOLD
        )

    # Of equal ones the first: the order of the caption.
    best = max(permutations(range(len(subjects))), key=agreement)
    return {slot: index for index, slot in enumerate(best[: len(said_of)])}


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))
