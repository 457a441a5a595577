"""The curves of runs as a picture."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from kosmosg.train.chart import (
    BOTTOM,
    COLOURS,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Chart,
    Frame,
    Point,
    charts,
    frame,
    label,
    step_label,
    ticks,
)
from kosmosg.train.curves import Run

COLUMNS = 2
FINE = 2  # drawn so many times larger, for smooth lines
INK, FAINT, GRID = "#1c1d20", "#62656c", "#e2e2e0"
_LINE = 18


def plot(runs: Sequence[Run]) -> Image.Image:
    """Return the charts side by side, under a line of words for each run."""
    drawn = charts(runs)
    last_step = max((run.step for run in runs), default=0)
    rows = -(-len(drawn) // COLUMNS)
    head = _LINE * len(runs) + 12
    size = (FINE * WIDTH * COLUMNS, FINE * (head + rows * HEIGHT + 8))
    page = Image.new("RGB", size, "white")
    pen = Pen(page, (0, 0))
    for number, run in enumerate(runs):
        top = 8 + _LINE * number
        if len(runs) > 1:
            pen.line([(12, top + 7), (30, top + 7)], COLOURS[number % len(COLOURS)], 3)
        pen.text((36 if len(runs) > 1 else 12, top), f"{run.name}: {run.said}", INK)
    for number, chart in enumerate(drawn):
        row, column = divmod(number, COLUMNS)
        _chart(
            Pen(page, (column * WIDTH, head + row * HEIGHT)),
            chart,
            frame(chart, last_step=last_step),
            with_legend=len(runs) == 1,
        )
    return page.reduce(FINE)


class Pen:
    """Draws on a page from an origin, in pixels of the picture that comes out.

    Args:
        page: `FINE` times as large as that picture.
        origin: Where (0, 0) is.
    """

    def __init__(self, page: Image.Image, origin: Point) -> None:
        self._draw = ImageDraw.Draw(page)
        self._origin = origin
        self._fonts = {size: ImageFont.load_default(size * FINE) for size in (11, 12, 13)}

    def line(self, points: Sequence[Point], colour: str, width: float | int = 1) -> None:
        """Draw a line through points."""
        pixels = [self._at(point) for point in points]
        self._draw.line(pixels, fill=colour, width=round(width * FINE), joint="curve")

    def dot(self, point: Point, colour: str, radius: float | int = 1.5) -> None:
        """Draw a dot."""
        self._draw.circle(self._at(point), radius * FINE, fill=colour)

    def shape(self, points: Sequence[Point], colour: str) -> None:
        """Draw a filled polygon."""
        self._draw.polygon([self._at(point) for point in points], fill=colour)

    def text(
        self, at: Point, words: str, colour: str, *, size: int = 12, anchor: str = "la"
    ) -> float:
        """Write words; return how wide they are."""
        font = self._fonts[size]
        self._draw.text(self._at(at), words, fill=colour, font=font, anchor=anchor)
        return font.getlength(words) / FINE

    def _at(self, point: Point) -> Point:
        return (self._origin[0] + point[0]) * FINE, (self._origin[1] + point[1]) * FINE


def _chart(pen: Pen, chart: Chart, where: Frame, *, with_legend: bool) -> None:
    right, ground = WIDTH - RIGHT, HEIGHT - BOTTOM
    left = LEFT + 10 + pen.text((LEFT, 4), chart.title, INK, size=13)
    for line in chart.lines if with_legend and len(chart.lines) > 1 else ():
        pen.line([(left, 12), (left + 12, 12)], COLOURS[line.colour % len(COLOURS)], 2)
        left += 26 + pen.text((left + 16, 5), line.label, FAINT, size=11)
    for value in ticks(where.low, where.high, is_log=where.is_log):
        pen.line([(LEFT, where.y(value)), (right, where.y(value))], GRID)
        pen.text((LEFT - 6, where.y(value)), label(value), FAINT, size=11, anchor="rm")
    for step in ticks(0.0, float(max(1, where.last_step))):
        pen.text((where.x(step), ground + 5), step_label(step), FAINT, size=11, anchor="ma")
    _marks(pen, chart, where)
    for line in chart.lines:
        colour = COLOURS[line.colour % len(COLOURS)]
        for segment in where.segments(line.curve):
            if len(segment) > 1:
                pen.line(segment, colour, 1.5)
            else:
                pen.dot(segment[0], colour)


def _marks(pen: Pen, chart: Chart, where: Frame) -> None:
    ground = HEIGHT - BOTTOM
    for _run, step in chart.marks:
        for top in range(TOP, ground, 6):  # dotted
            pen.line([(where.x(step), top), (where.x(step), top + 3)], FAINT)
    for _run, step, _count in chart.skips:
        x = where.x(step)
        pen.shape([(x, ground - 7), (x - 4, ground), (x + 4, ground)], FAINT)
    for _run, step in chart.bad:
        x = where.x(step)
        pen.line([(x - 4, TOP), (x + 4, TOP + 8)], INK)
        pen.line([(x - 4, TOP + 8), (x + 4, TOP)], INK)
