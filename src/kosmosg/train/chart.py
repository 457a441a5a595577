"""Curves as lines in a frame: what is drawn together, its axes, and the points in pixels.

`page` makes SVG of it and `plot` a PNG, so that both show the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kosmosg.train.curves import SKIPPED, Curve, Run

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 24, 26, 26
MAX_POINTS = 400
# From this ratio of the largest to the smallest value on, the vertical axis is logarithmic.
LOG_RATIO = 25
_HOW_IT_WENT = 3  # of `_rank`; the learning rate and the speeds come after it, and stay linear
# The colours of Okabe and Ito, which most eyes tell apart; the last two darker.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d00", "#6b4c9a")

Point = tuple[float | int, float | int]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve, what it is called, and the number of its colour and of its run."""

    label: str
    colour: int
    run: int
    curve: Curve


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines that share a frame.

    `marks` are the steps after which a run was resumed, `skips` where records were left out and how
    many, `bad` steps whose loss was no number; each after the number of its run.
    """

    title: str
    lines: Sequence[Line]
    marks: Sequence[tuple[int, int]]
    skips: Sequence[tuple[int, int, int]]
    bad: Sequence[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where values lie in a chart of `WIDTH` by `HEIGHT` pixels."""

    last_step: int
    low: float
    high: float
    is_log: bool

    def x(self, step: float | int) -> float:
        """Return the pixels from the left."""
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(1, self.last_step)

    def y(self, value: float) -> float:
        """Return the pixels from the top."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    def segments(self, curve: Curve) -> list[list[Point]]:
        """Return the curve's pixels, broken where a value is no number."""
        found: list[list[Point]] = [[]]
        for step, value in thinned(curve):
            if not math.isfinite(value):
                found.append([])
            else:
                found[-1].append((self.x(step), self.y(value)))
        return [segment for segment in found if segment]


def frame(chart: Chart, *, last_step: int) -> Frame:
    """Return the frame that holds all lines of a chart."""
    values = [v for line in chart.lines for v in line.curve.values if math.isfinite(v)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low > 0 and high / low >= LOG_RATIO and _rank(chart.title)[0] <= _HOW_IT_WENT:
        return Frame(last_step=last_step, low=low / 1.1, high=high * 1.1, is_log=True)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return Frame(last_step=last_step, low=low - room, high=high + room, is_log=False)


def ticks(low: float, high: float, *, is_log: bool = False) -> list[float]:
    """Return some round values between two.

    Example:
        >>> ticks(0.0, 1.0), ticks(0.02, 30.0, is_log=True)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.1, 1.0, 10.0])
        >>> ticks(0.3, 9.0, is_log=True)
        [0.5, 1.0, 2.0, 5.0]
    """
    if is_log:
        tens = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
        times = (1, 2, 5) if len(tens) < 4 else (1,)
        steps = [float(f"{one}e{ten}") for ten in tens for one in times]
        steps = [step for step in steps if low <= step <= high]
        return steps[:: max(1, math.ceil(len(steps) / 7))]
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def label(value: float) -> str:
    """Return a number as an axis and a table say it."""
    return f"{value:.4g}"


def step_label(step: float) -> str:
    """Return a number of steps as an axis says it, to the unit.

    Example:
        >>> step_label(150000.0), step_label(0.5)
        ('150,000', '0.5')
    """
    return f"{step:,.10g}"


def thinned(curve: Curve) -> list[tuple[int, float]]:
    """Return at most about `MAX_POINTS` of a curve's points: the least and largest of each stretch.

    So a single spike of a long run stays to be seen. A stretch with a value that is no number
    gives that one as well, so that the gap stays too.
    """
    points = list(zip(curve.steps, curve.values, strict=True))
    size = math.ceil(len(points) / (MAX_POINTS // 2))
    if size <= 2:
        return points
    kept: list[tuple[int, float]] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        numbers = [point for point in stretch if math.isfinite(point[1])]
        gap = next((point for point in stretch if not math.isfinite(point[1])), None)
        ends = {max(numbers, key=_value), min(numbers, key=_value)} if numbers else set()
        kept += sorted(ends | ({gap} if gap else set()), key=lambda point: point[0])
    return kept


def _value(point: tuple[int, float]) -> float:
    return point[1]


def charts(runs: Sequence[Run]) -> list[Chart]:
    """Return what there is to draw: of one run families of curves, of several each curve of all."""
    families: dict[str, list[Line]] = {}
    for number, run in enumerate(runs):
        for name in _worth_seeing(run):
            title = name.replace("_", " ") if len(runs) > 1 else _family(name)
            line = families.setdefault(title, [])
            label = run.name if len(runs) > 1 else name.partition("/")[2] or name.replace("_", " ")
            colour = number if len(runs) > 1 else len(line)
            line.append(Line(label=label, colour=colour, run=number, curve=run.curves[name]))
    marks = [(number, step) for number, run in enumerate(runs) for step in run.resumed]
    skips = [(number, *rise) for number, run in enumerate(runs) for rise in run.skipped]
    bad = [(number, step) for number, run in enumerate(runs) for step in run.bad]
    return [
        Chart(title=title, lines=lines, marks=marks, skips=skips, bad=bad)
        for title, lines in sorted(families.items(), key=lambda one: _rank(one[0]))
    ]


def curve_names(runs: Sequence[Run]) -> list[str]:
    """Return the names of the curves that are worth seeing, in the order of the charts."""
    names = dict.fromkeys(name for run in runs for name in _worth_seeing(run))
    return sorted(names, key=lambda name: _rank(name.replace("_", " ")))


def is_loss(name: str) -> bool:
    """Return whether less of it is better."""
    word = name.removeprefix("validation_")
    return word.partition("/")[0] == "loss"


def _worth_seeing(run: Run) -> list[str]:
    """Return the names of curves, without those that say the same as one before them."""
    kept: list[str] = []
    for name in sorted(run.curves, key=lambda name: _rank(name.replace("_", " "))):
        own = run.curves[name]
        twin = "/" not in name and any(
            run.curves[other].steps == own.steps and run.curves[other].values == own.values
            for other in kept
        )
        if name != SKIPPED and not name.startswith("records/") and not twin:
            kept.append(name)
    return kept


def _family(name: str) -> str:
    head, slash, _ = name.partition("/")
    if slash:
        return f"{head.replace('_', ' ')} by source"
    return name.removeprefix("validation_").replace("_", " ")


def _rank(title: str) -> tuple[int, str]:
    """Losses first, then their terms, then how training went, then how fast."""
    word = title.removeprefix("validation ")
    if word.startswith("loss"):
        return len(word.replace("/", " by source")) > 4, title
    speed = word.endswith("per s") * (5 + (word == "samples per s")) or (word == "data wait") * 7
    return speed or {"grad norm": _HOW_IT_WENT, "lr": 4}.get(word, 2), title
