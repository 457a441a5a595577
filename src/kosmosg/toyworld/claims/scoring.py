"""What pictures get: the judge's answers, copies of what was shown, features, and FID.

Each function gives a value for each picture, or a score of a whole set; the same functions on the
renderer's own pictures say how far the judge can be trusted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from kosmosg.evaluate.metrics import Moments, Score, frechet_distance
from kosmosg.toyworld.claims.drawing import Pictures, wanted
from kosmosg.toyworld.claims.questions import Question
from kosmosg.toyworld.claims.rows import Values, scores_of
from kosmosg.toyworld.evaluate import BATCH
from kosmosg.toyworld.foundation import in_range, pictures
from kosmosg.toyworld.judge import ANSWERS, Judge, read, truth, window
from kosmosg.toyworld.scenes import Scene

CREATURE = ("shape", "body_colour", "pattern", "accessory")
COPY = 0.9  # correlation of small pictures from which one is a near copy of the other
SMALL = 16
NUM_GROUPS = 10  # of the jackknife
# Where three and four creatures stand, as the renderer puts them, and their radius.
_STANDS = {
    3: tuple((x, 0.6, 0.15) for x in (0.18, 0.5, 0.82)),
    4: tuple((x, y, 0.155) for y in (0.33, 0.8) for x in (0.27, 0.73)),
}
_MIDDLE, _RADIUS, _REACH = (0.5, 0.6), 0.24, 0.16 / 0.15


def answered(judge: Judge, images: Pictures, asked: Sequence[Question]) -> dict[str, Values]:
    """Return what is right in each picture.

    `shape` to `accessory`: of one creature, or the share of several of which it is right in the
    place where each should stand; `creature`: all four at once, likewise; `place`; `all`: the place
    and every creature. With several, `colours_in_place`: all bodies' colours.
    """
    count = len(asked[0].target.subjects)
    device = next(judge.parameters()).device
    slots = []
    for slot in range(count):
        seen = closeup(images, slot, count)
        slots.append(_right(judge, seen.to(device), asked, slot))
    right = {name: np.stack([one[name] for one in slots]) for name in CREATURE}
    creature = np.logical_and.reduce([right[name] for name in CREATURE])
    place = slots[0]["place"] if count <= 2 else _right(judge, images.to(device), asked, 0)["place"]
    values = {name: _share(each) for name, each in {**right, "creature": creature}.items()}
    values |= {"place": place, "all": np.logical_and.reduce(creature) & place}
    if count > 1:
        values["colours_in_place"] = np.logical_and.reduce(right["body_colour"])
    return values


def styled(judge: Judge, images: Pictures, asked: Sequence[Question]) -> Values:
    """Return whether each picture is in the style that was asked for."""
    device = next(judge.parameters()).device
    return _right(judge, images.to(device), asked, 0)["style"]


def edited(judge: Judge, images: Pictures, asked: Sequence[Question]) -> dict[str, Values]:
    """Return of each edit whether what was asked for is done, and all else kept.

    `unchanged`: the picture still has what was to change.
    """
    device = next(judge.parameters()).device
    after = _right(judge, images.to(device), asked, 0)
    old = [Question(index=one.index, prompt=[], target=_before(one)) for one in asked]
    before = _right(judge, images.to(device), old, 0)
    fields = {"shape": "shape", "body_colour": "colour", "pattern": "pattern"}
    fields |= {"accessory": "accessory"}
    done, kept, unchanged = [], [], []
    for number, one in enumerate(asked):
        now, then = one.target, _before(one)
        (a,), (b,) = now.subjects, then.subjects
        differs = {question: getattr(a, f) != getattr(b, f) for question, f in fields.items()}
        differs |= {"place": now.place != then.place, "style": now.style != then.style}
        done.append(all(after[q][number] for q, changed in differs.items() if changed))
        kept.append(all(after[q][number] for q, changed in differs.items() if not changed))
        unchanged.append(all(before[q][number] for q, changed in differs.items() if changed))
    values = {"done": np.array(done), "kept": np.array(kept), "unchanged": np.array(unchanged)}
    return {"done": values["done"], "kept": values["kept"]} | {
        "both": values["done"] & values["kept"],
        "unchanged": values["unchanged"],
    }


def likeness(judge: Judge, images: Pictures, asked: Sequence[Question]) -> dict[str, Values]:
    """Return how alike each picture is to those shown, on average, and to the one wanted.

    Cosines of the features from which the judge answers, centred: what DINO is for photographs.
    `near_copy`: whether its pixels are those of a picture that was shown. A picture is never to
    be one: the creature is larger there, and the place another.
    """
    size = images.shape[-1]
    drawn, right = features(judge, images), features(judge, wanted(asked, size))
    centre = right.mean(0)
    every = [shown_pictures(asked, size, number) for number in range(len(asked[0].shown))]
    return {
        "like_shown": np.mean([_cosine(drawn, features(judge, one), centre) for one in every], 0),
        "like_wanted": _cosine(drawn, right, centre),
        "near_copy": np.any([correlation(images, one) >= COPY for one in every], 0),
    }


def with_fid(
    judge: Judge, images: Pictures, asked: Sequence[Question], *, seed: int
) -> tuple[dict[str, Score], dict[str, float]]:
    """Return the scores of pictures of captions, and the renderer's own.

    Its FID is that of the same captions drawn again: creatures and trees stand elsewhere.
    """
    real = wanted(asked, images.shape[-1])
    again = pictures([_moved(one.target, seed, one.index) for one in asked], images.shape[-1])
    scores = scores_of(answered(judge, images, asked))
    true, drawn, other = (features(judge, one) for one in (real, images, again))
    scores["fid"] = fid(true, drawn)
    return scores, means(answered(judge, real, asked)) | {"fid": fid(true, other).mean}


def _moved(scene: Scene, seed: int, index: int) -> Scene:
    rng = np.random.default_rng([seed, 50, index])
    dx, dy = rng.uniform(-0.04, 0.04), rng.uniform(-0.03, 0.03)
    (subject,) = scene.subjects
    subject = replace(subject, x=0.5 + dx, y=0.6 + dy)
    return replace(scene, subjects=(subject,), seed=int(rng.integers(1 << 31)))


def means(values: Mapping[str, Values]) -> dict[str, float]:
    """Return the mean of each."""
    return {name: float(each.mean()) for name, each in values.items()}


def shown_pictures(asked: Sequence[Question], size: int, number: int = 0) -> Pictures:
    """Return one picture of each prompt, the first or another."""
    resized = [
        one.shown[number].convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        for one in asked
    ]
    return in_range(np.stack([np.asarray(picture) for picture in resized]))


def correlation(images: Pictures, others: Pictures) -> Values:
    """Return how each picture's pixels go with the other's, -1 to 1, both made small.

    Small pictures still are alike when a creature has moved by a pixel or its edges are soft.
    """
    rows = [
        F.interpolate(one, size=(SMALL, SMALL), mode="area").flatten(1) for one in (images, others)
    ]
    one, other = (F.normalize(row - row.mean(1, keepdim=True), dim=1) for row in rows)
    return (one * other).sum(1).numpy()


@torch.no_grad()
def features(judge: Judge, images: Pictures) -> Float[Tensor, "pictures features"]:
    """Return what the judge's answers are read from."""
    device = next(judge.parameters()).device
    return torch.cat([judge.penultimate(part.to(device)).cpu() for part in images.split(4 * BATCH)])


def fid(real: Float[Tensor, "n features"], fake: Float[Tensor, "n features"]) -> Score:
    """Return the Fréchet distance of two sets and its interval, by a jackknife over groups.

    Of few pictures it is biased upwards: compare it with that of the renderer's own pictures.
    """
    value = frechet_distance(_moments(real), _moments(fake))
    groups = min(NUM_GROUPS, len(fake) // 2)
    if groups < 2:
        return Score(mean=value, low=value, high=value)
    number = torch.arange(len(fake)) % groups
    left = [
        frechet_distance(_moments(real[number != one]), _moments(fake[number != one]))
        for one in range(groups)
    ]
    half = 1.959964 * math.sqrt((groups - 1) * float(np.var(left)))
    return Score(mean=value, low=max(0.0, value - half), high=value + half)


def closeup(images: Pictures, slot: int, count: int) -> Pictures:
    """Return the pictures as the judge reads creature number `slot` of `count`.

    Of two it has learned to read windows. Of three and four it sees each where one alone would
    stand and as large, what is left and right of it grey.
    """
    if count == 1:
        return images
    if count == 2:
        return window(images, ("left", "right")[slot])
    x, y, radius = _STANDS[count][slot]
    side = radius / _RADIUS
    turn = torch.tensor(
        [
            [side, 0, 2 * (x + side * (0.5 - _MIDDLE[0])) - 1],
            [0, side, 2 * (y + side * (0.5 - _MIDDLE[1])) - 1],
        ]
    )
    grid = F.affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    seen = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    across = torch.linspace(-1, 1, images.shape[-1]).abs() * side / 2
    return seen * (across <= _REACH * radius)


@torch.no_grad()
def _right(
    judge: Judge, images: Pictures, asked: Sequence[Question], slot: int
) -> dict[str, Values]:
    parts = [read(judge, part) for part in images.split(4 * BATCH)]
    expected = truth([one.target for one in asked], slot)
    return {
        question: torch.cat([part[question].cpu() for part in parts]).eq(expected[question]).numpy()
        for question in ANSWERS
    }


def _share(right: Values) -> Values:
    return right[0] if len(right) == 1 else right.mean(0)


def _before(one: Question) -> Scene:
    assert one.before is not None  # it is an edit's
    return one.before


def _cosine(one: Tensor, other: Tensor, centre: Tensor) -> Values:
    return F.cosine_similarity(one - centre, other - centre, dim=1).numpy()


def _moments(features: Tensor) -> Moments:
    moments = Moments.of_none(features.shape[1])
    moments.add(features)
    return moments
