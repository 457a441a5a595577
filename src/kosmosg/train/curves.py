"""Runs as they are looked at: their curves, where they were resumed, how their recipes differ."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from kosmosg.errors import ConfigError
from kosmosg.train.log import LOG_NAME, read_log
from kosmosg.train.rundir import CONFIG_NAME, is_held, leaves

SKIPPED = "records_skipped"
# What every entry may hold that is no curve.
_NO_CURVES = ("step", "event", "time")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Values at steps, in the order of the steps; a value that is no number is NaN."""

    steps: Sequence[int]
    values: Sequence[float]

    @property
    def last(self) -> tuple[int, float] | None:
        """Return the last step with a number, and the number."""
        return max(self._numbers(), default=None)

    @property
    def least(self) -> tuple[int, float] | None:
        """Return the step of the smallest number, and the number."""
        return min(self._numbers(), key=lambda one: one[1], default=None)

    def _numbers(self) -> list[tuple[int, float]]:
        both = zip(self.steps, self.values, strict=True)
        return [(step, value) for step, value in both if math.isfinite(value)]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run's directory, read.

    Attributes:
        step: The last step that the log knows.
        steps: Those it is to do; None if its configuration does not say.
        curves: By the names of the log.
        resumed: After which steps it went on.
        skipped: Steps by which more records had been left out, and how many more.
        bad: Steps whose loss or gradient was no number.
        sheets: Pictures of what it could do, by step.
        config: Its configuration's values by their paths.
    """

    name: str
    state: Literal["going", "finished", "stopped", "empty"]
    step: int
    steps: int | None
    curves: Mapping[str, Curve]
    resumed: Sequence[int]
    skipped: Sequence[tuple[int, int]]
    bad: Sequence[int]
    sheets: Sequence[tuple[int, Path]]
    config: Mapping[str, Any]

    @property
    def said(self) -> str:
        """Return how far it is, in words."""
        of = "" if self.steps is None else f" of {self.steps}"
        match self.state:
            case "empty":
                return "nothing logged yet"
            case "finished":
                return f"finished, {self.step} steps"
            case "going":
                return f"going on, step {self.step}{of}"
            case "stopped":
                return f"stopped at step {self.step}{of}"


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """Return the runs in these directories, named as shortly as tells them apart.

    Raises:
        ConfigError: If one is no run's directory, or is named twice.
    """
    places = [directory.resolve() for directory in directories]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ConfigError(f"{directories[number]} is named twice; name each run once")
    for directory in directories:
        _require_run(directory)
    return [
        read_run(directory, name=name)
        for directory, name in zip(directories, _names(places), strict=True)
    ]


def read_run(directory: Path, *, name: str) -> Run:
    """Return what a run's directory tells by now; it may be in the midst of writing."""
    entries = _undisturbed(read_log(directory))
    config = _config(directory)
    step = max((entry["step"] for entry in entries), default=0)
    given = config.get("train.steps", config.get("steps"))
    steps = given if isinstance(given, int) else None
    curves = _curves(entries)
    return Run(
        name=name,
        state=_state(directory, entries, step, steps),
        step=step,
        steps=steps,
        curves=curves,
        resumed=[entry["step"] for entry in entries if entry.get("event") == "resumed"],
        skipped=_rises(curves[SKIPPED]) if SKIPPED in curves else [],
        bad=[number for number, _ in _numbered(directory, "bad-step-*.json")],
        sheets=_numbered(directory / "samples", "step-*.png"),
        config=config,
    )


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return by its path each value that is not the same in all runs, as each run has it."""
    paths = sorted({path for run in runs for path in run.config})
    shown = {path: [_shown(run.config, path) for run in runs] for path in paths}
    return {path: values for path, values in shown.items() if len(set(values)) > 1}


def _shown(config: Mapping[str, Any], path: str) -> str:
    return json.dumps(config[path], ensure_ascii=False) if path in config else "-"


def _require_run(directory: Path) -> None:
    if _is_run(directory):
        return
    if not directory.is_dir():
        raise ConfigError(f"there is no directory {directory}; name the directory of a run")
    below = [path for depth in ("*", "*/*") for path in directory.glob(depth) if _is_run(path)]
    inside = ", ".join(str(path) for path in sorted(below)[:4])
    remedy = f"name one in it: {inside}" if inside else "name the directory of a run"
    raise ConfigError(f"{directory} is no run ({LOG_NAME} is not there); {remedy}")


def _is_run(directory: Path) -> bool:
    begun = (directory / CONFIG_NAME).is_file() and (directory / ".lock").is_file()
    return begun or (directory / LOG_NAME).is_file()


def _names(places: Sequence[Path]) -> list[str]:
    for depth in range(1, max(len(place.parts) for place in places)):
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def _config(directory: Path) -> Mapping[str, Any]:
    try:
        kept = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or being written
        return {}
    return leaves(kept) if isinstance(kept, dict) else {}


def _undisturbed(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the entries without those that a later one goes back behind: they were done again."""
    kept: list[Mapping[str, Any]] = []
    for entry in entries:
        if kept and entry["step"] < kept[-1]["step"]:
            goes_on = "event" in entry  # after its step, which is not done again
            kept = [one for one in kept if one["step"] < entry["step"] + goes_on]
        kept.append(entry)
    return kept


def _curves(entries: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    found: dict[str, dict[int, float]] = {}
    for entry in entries:
        for name, value in entry.items():
            if name not in _NO_CURVES and (value is None or isinstance(value, int | float)):
                # Where a step stands twice, what was written later holds.
                found.setdefault(name, {})[entry["step"]] = (
                    math.nan if value is None else float(value)
                )
    return {
        name: Curve(steps=list(points), values=list(points.values()))
        for name, points in found.items()
    }


def _rises(curve: Curve) -> list[tuple[int, int]]:
    """Return where a count rose and by how much; it begins anew where a run was resumed."""
    counts = [0, *(int(value) if math.isfinite(value) else 0 for value in curve.values)]
    rises = [now - then if now >= then else now for then, now in pairwise(counts)]
    return [(step, rise) for step, rise in zip(curve.steps, rises, strict=True) if rise]


def _state(
    directory: Path, entries: Sequence[Mapping[str, Any]], step: int, steps: int | None
) -> Literal["going", "finished", "stopped", "empty"]:
    if steps is not None and step >= steps:
        return "finished"
    if is_held(directory):
        return "going"
    return "stopped" if entries else "empty"


def _numbered(directory: Path, pattern: str) -> list[tuple[int, Path]]:
    found = ((path.stem.rpartition("-")[2], path) for path in directory.glob(pattern))
    return sorted((int(number), path) for number, path in found if number.isdecimal())
