"""What an experiment found: a row of the table, kept as one JSON file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kosmosg import config
from kosmosg.errors import ConfigError
from kosmosg.evaluate.metrics import Score
from kosmosg.toyworld.scores import grid, wilson

# By claim, what the paper says; the order is the table's.
CLAIMS: Mapping[str, str] = {
    "zero-shot": "Zero-shot subject-driven generation (table 1 left)",
    "several": "Multi-entity, interleaved (fig. 1, 9)",
    "text": "Text-to-image kept (table 1 right)",
    "alignment": "Ablations of the alignment (table 2)",
    "instruction": "Instruction tuning matters (fig. 6)",
    "editing": "Editing (InstructPix2Pix data)",
    "data": "Entity-text drop, background keep, 2:2:1, dropout in the frozen MLLM",
    "unet": "Image as a foreign language (fig. 7)",
    "curves": "Beyond: picture guidance, per-picture weight",
}
FORMAT_VERSION = 1
# Two-sided 95% quantiles of Student's t, by the number of seeds.
_STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
Values = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Row:
    """One experiment, finished.

    Args:
        name: Of the experiment and of the row's file.
        claim: A key of `CLAIMS`.
        experiment: What was done, in a line.
        scores: Means with 95% intervals.
        judge: The same scores of the renderer's own pictures: what the judge makes of the truth.
        n: Prompts of each seed.
        seeds: Of what was trained; of what ships, 0.
        config: All that the scores depend on.
        weights: sha256 of the model's directory.
        commit: Of the code.
        hours: By the clock.
        core_hours: Of the processor.
        machine: What it ran on.
    """

    format_version: int = FORMAT_VERSION
    name: str
    claim: str
    experiment: str
    scores: dict[str, Score]
    judge: dict[str, float]
    n: int
    seeds: tuple[int, ...]
    config: dict[str, Any]
    weights: str
    commit: str
    hours: float
    core_hours: float
    machine: str


def path_of(folder: Path, name: str) -> Path:
    """Return the file of a row."""
    return folder / f"{name}.json"


def load(path: Path) -> Row:
    """Return the row of a file.

    Raises:
        ConfigError: If it is missing, damaged or of another version.
    """
    row = config.load(Row, path)
    if row.format_version != FORMAT_VERSION or row.claim not in CLAIMS:
        raise ConfigError(
            f"{path} has format version {row.format_version} and claim {row.claim!r}; this kosmosg"
            f" reads version {FORMAT_VERSION}: remove it and measure again"
        )
    return row


def score_of(values: Values) -> Score:
    """Return the mean of values of each picture and its 95% interval.

    Wilson's where they are answers, right or wrong; else 1.96 standard errors.

    Example:
        >>> score = score_of(np.array([True] * 9 + [False]))
        >>> score.mean, round(score.low, 3), round(score.high, 3)
        (0.9, 0.596, 0.982)
    """
    mean = float(values.mean())
    if values.dtype == bool:
        low, high = wilson(int(values.sum()), len(values))
    else:
        half = (
            1.959964 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0
        )
        low, high = mean - half, mean + half
    return Score(mean=mean, low=low, high=high)


def scores_of(values: Mapping[str, Values]) -> dict[str, Score]:
    """Return the score of each name's values."""
    return {name: score_of(each) for name, each in values.items()}


def over_seeds(scores: Sequence[Mapping[str, Score]]) -> dict[str, Score]:
    """Return means over seeds; the interval is Student's, of the seeds' means.

    Of one seed the interval is that of its prompts.
    """
    if len(scores) == 1:
        return dict(scores[0])
    found = {}
    for name in scores[0]:
        means = np.array([one[name].mean for one in scores])
        error = float(means.std(ddof=1)) / math.sqrt(len(means))
        half = _STUDENT.get(len(means), 1.96) * error
        mean = float(means.mean())
        found[name] = Score(mean=mean, low=mean - half, high=mean + half)
    return found


def table(rows: Sequence[Row]) -> str:
    """Return rows as text, a block for each claim: score, and in brackets the judge's own."""
    blocks = []
    for claim, title in CLAIMS.items():
        found = [row for row in rows if row.claim == claim]
        lines = [title] if found else []
        for row in found:
            numbers = {
                name: {
                    "score": score.mean,
                    "from": score.low,
                    "to": score.high,
                    "renderer": row.judge.get(name, math.nan),
                }
                for name, score in row.scores.items()
            }
            head = f"{row.name}: {row.experiment} (n {row.n}, {len(row.seeds)} seeds)"
            lines += [head, grid(("", "score", "from", "to", "renderer"), numbers)]
        if lines:
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
