"""What an evaluation found, and all that its numbers depend on; two are compared if they may be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kosmosg import config
from kosmosg.errors import ConfigError
from kosmosg.evaluate.features import Encoder
from kosmosg.evaluate.metrics import Score, bootstrap

RESULT_FILE = "result.json"
FORMAT_VERSION = 1
# Of which both must be alike, or numbers do not compare.
_ALIKE = ("benchmark", "protocol", "encoders", "data", "drawing", "num_pictures")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An encoder as a result names it."""

    name: str
    sha256: str
    view: str

    @classmethod
    def of(cls, encoder: Encoder) -> "Seen":
        """Return an encoder's name, weights and view."""
        return cls(name=encoder.name, sha256=encoder.sha256, view=encoder.view)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One picture's scores; `template` is its text with `{}` for what subjects are called."""

    name: str
    subject: str
    text: str
    scores: dict[str, float]
    template: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """An evaluation.

    Args:
        benchmark: Such as `dreambench`.
        protocol: By whose rules, each quirk and choice named.
        encoders: That scored, by score.
        data: Hashes of the real pictures, of the prompts and of the seeds.
        drawing: How pictures were drawn, from which noise.
        num_pictures: That were drawn.
        model: The weights: a sha256 by part.
        scores: Means with 95% intervals.
        oracle: The same scores of real pictures; a score above its own is a warning.
        notes: What a reader must know.
        rows: Scores of each picture; of a whole set, the first pictures without any.
        versions: Of what computed.
    """

    format_version: int = FORMAT_VERSION
    benchmark: str
    protocol: dict[str, Any]
    encoders: dict[str, Seen]
    data: dict[str, str]
    drawing: dict[str, Any]
    num_pictures: int
    model: dict[str, str]
    scores: dict[str, Score]
    oracle: dict[str, Score] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    return {
        name: version(name) for name in ("kosmosg", "torch", "diffusers", "transformers", "pillow")
    }


def warnings(scores: Mapping[str, Score], oracle: Mapping[str, Score]) -> list[str]:
    """Return a line for each score that real pictures do not reach: copying explains it best."""
    return [
        f"{name} {score.mean:.3f} is above that of real pictures, {oracle[name].mean:.3f}:"
        " look for copies of the input"
        for name, score in scores.items()
        if name in oracle and score.mean > oracle[name].mean
    ]


def save(result: Result, folder: Path) -> Path:
    """Write a result into its folder; return the file.

    Raises:
        ConfigError: If it cannot be written.
    """
    path = folder / RESULT_FILE
    config.save(result, path)
    return path


def load(path: Path) -> Result:
    """Return the result of a file, or of a run's folder.

    Raises:
        ConfigError: If there is none, or it is damaged or of another version.
    """
    path = path / RESULT_FILE if path.is_dir() else path
    result = config.load(Result, path)
    if result.format_version != FORMAT_VERSION:
        raise ConfigError(
            f"{path} has format version {result.format_version}; this kosmosg reads"
            f" {FORMAT_VERSION}: evaluate again"
        )
    return result


def unlike(one: Result, other: Result) -> list[str]:
    """Return why two results do not compare; nothing if they do."""
    reasons = []
    for name in _ALIKE:
        left, right = (config.to_dict(result)[name] for result in (one, other))
        if left == right:
            continue
        if isinstance(left, dict):
            reasons += [
                f"{name}.{key}: {left.get(key)} and {right.get(key)}"
                for key in sorted({*left, *right})
                if left.get(key) != right.get(key)
            ]
        else:
            reasons.append(f"{name}: {left} and {right}")
    return reasons


def compare(one: Result, other: Result) -> dict[str, Score]:
    """Return by how much the second is better, score by score.

    Pictures of the same name are paired where there are such, so that the interval is of the
    difference; a score of whole sets has none, and its ends are its mean.

    Raises:
        ConfigError: If protocols, encoders, data or settings differ, naming the difference.
    """
    if reasons := unlike(one, other):
        raise ConfigError(f"the results do not compare: {'; '.join(reasons[:3])}")
    found = {}
    for name, score in one.scores.items():
        pairs = _pairs(name, one.rows, other.rows)
        if pairs:
            found[name] = bootstrap(pairs)
        else:
            gap = other.scores[name].mean - score.mean
            found[name] = Score(mean=gap, low=gap, high=gap)
    return found


def _pairs(name: str, rows: Sequence[Row], others: Sequence[Row]) -> dict[str, list[float]]:
    theirs = {row.name: row for row in others}
    pairs: dict[str, list[float]] = {}
    for row in rows:
        if name in row.scores and row.name in theirs:
            gap = theirs[row.name].scores[name] - row.scores[name]
            pairs.setdefault(row.subject, []).append(gap)
    return pairs


def table(scores: Mapping[str, Score], oracle: Mapping[str, Score]) -> str:
    """Return scores as text, with intervals, beside real pictures' own."""
    lines = [f"{'':<14}{'score':>8}  {'95% interval':<18}{'real pictures':>14}"]
    for name, score in scores.items():
        real = f"{oracle[name].mean:.3f}" if name in oracle else "-"
        ends = f"{score.low:.3f} to {score.high:.3f}" if score.low != score.high else "-"
        lines.append(f"{name:<14}{score.mean:>8.3f}  {ends:<18}{real:>14}")
    return "\n".join(lines)
