"""What the U-Net is told in each step: nothing, the pictures alone, and the whole prompt."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kosmosg.controls import Weights, Windows, steps_in
from kosmosg.prompts import is_empty
from kosmosg.sequence import Prompt


@dataclass(frozen=True, kw_only=True, eq=False)
class Branches:
    """The condition of some steps.

    Attributes:
        steps: Those of the schedule.
        prompt_embeds: With guidance the null prompts', then those of pictures alone, then the
            prompts'; without, the prompts'.
        latent_rows: Which picture's latents each is for.
        picture_rows: Which row of the prediction is the one under the pictures alone, for each
            picture that is generated. None: one scale guides, and there is no such branch.
    """

    steps: range
    prompt_embeds: Float[Tensor, "branches queries embed"]
    latent_rows: Int[Tensor, " branches"]
    picture_rows: Int[Tensor, " rows"] | None


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Steps in which the same pictures are there; numbers of readings, for each prompt.

    `pictures` has None where a prompt shows no picture now: what its pictures say is nothing.
    """

    steps: range
    prompts: tuple[int, ...]
    pictures: tuple[int | None, ...] | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What has to be encoded, each prompt with its pictures' weights, and when it is used."""

    readings: list[tuple[Prompt, Weights]]
    segments: list[Segment]


def plan(
    prompts: Sequence[Prompt],
    weights: Sequence[Weights],
    windows: Sequence[Windows],
    *,
    num_steps: int,
    apart: bool,
) -> Plan:
    """Return the readings of the prompts in all steps, none of them twice.

    Args:
        weights: Of each prompt's pictures.
        windows: Of each prompt's pictures; outside of it a picture's weight is 0.
        num_steps: Of the schedule.
        apart: Whether words and pictures are guided by two scales.
    """
    covered = [[steps_in(window, num_steps) for window in row] for row in windows]
    numbers: dict[tuple[int, Weights, bool], int] = {}
    segments = []
    for steps in _segments(covered, num_steps):
        full, alone = [], []
        for index, prompt in enumerate(prompts):
            now = tuple(
                weight if steps[0] in window else 0.0
                for weight, window in zip(weights[index], covered[index], strict=True)
            )
            number = numbers.setdefault((index, now, True), len(numbers))
            full.append(number)
            if not apart or not any(now):
                alone.append(None)
            elif is_empty([part for part in prompt if isinstance(part, str)]):
                alone.append(number)
            else:
                alone.append(numbers.setdefault((index, now, False), len(numbers)))
        pictures = tuple(alone) if apart else None
        segments.append(Segment(steps=steps, prompts=tuple(full), pictures=pictures))
    readings = [
        (prompts[index] if whole else pictures_of(prompts[index]), now)
        for index, now, whole in numbers
    ]
    return Plan(readings=readings, segments=segments)


def given(
    embeds: Float[Tensor, "prompts queries embed"],
    negative: Float[Tensor, "prompts queries embed"] | None,
    alone: Float[Tensor, "prompts queries embed"] | None,
    *,
    num_steps: int,
) -> Plan:
    """Return the plan of conditions that the caller has encoded: prompts, then their pictures.

    Where a prompt's pictures say what the whole prompt says, or what the negative one does, they
    take no branch of their own, as in `plan`: the same work, and so the same bits.

    Args:
        negative: One for each prompt; None: no guidance.
        alone: Of the pictures alone; None: one scale guides.
    """
    prompts = tuple(range(len(embeds)))
    pictures: tuple[int | None, ...] | None = None
    if alone is not None:
        pictures = tuple(
            None
            if negative is not None and torch.equal(alone[number], negative[number])
            else number
            if torch.equal(alone[number], embeds[number])
            else len(embeds) + number
            for number in prompts
        )
    segment = Segment(steps=range(num_steps), prompts=prompts, pictures=pictures)
    return Plan(readings=[], segments=[segment])


def pictures_of(prompt: Prompt) -> Prompt:
    """Return the pictures of a prompt alone, in their order."""
    return [part for part in prompt if not isinstance(part, str)]


def join(
    segment: Segment,
    embeds: Float[Tensor, "readings queries embed"],
    negative: Float[Tensor, "rows queries embed"] | None,
    *,
    num_images_per_prompt: int,
) -> Branches:
    """Return the branches of a segment, each prompt's rows one after another.

    Args:
        embeds: The condition of each reading of the plan.
        negative: The null half, one row for each picture that is generated; None: no guidance.
    """
    full = [number for number in segment.prompts for _ in range(num_images_per_prompt)]
    rows = list(range(len(full)))
    if negative is None:
        return Branches(
            steps=segment.steps,
            prompt_embeds=embeds[full],
            latent_rows=torch.tensor(rows, device=embeds.device),
            picture_rows=None,
        )
    shown = [number for number in segment.pictures or () for _ in range(num_images_per_prompt)]
    own = [row for row, number in enumerate(shown) if number not in (None, full[row])]
    middle, last = len(rows), len(rows) + len(own)  # where the other branches begin
    picture_rows = [
        row if number is None else last + row if number == full[row] else middle + own.index(row)
        for row, number in enumerate(shown)
    ]
    return Branches(
        steps=segment.steps,
        prompt_embeds=torch.cat([negative, embeds[[shown[row] for row in own]], embeds[full]]),
        latent_rows=torch.tensor([*rows, *own, *rows], device=embeds.device),
        picture_rows=(
            None if segment.pictures is None else torch.tensor(picture_rows, device=embeds.device)
        ),
    )


def _segments(covered: Iterable[Iterable[range]], num_steps: int) -> list[range]:
    inner = {edge for row in covered for steps in row for edge in (steps.start, steps.stop)}
    edges = sorted({0, num_steps, *inner})
    return [range(start, stop) for start, stop in pairwise(edges)]
