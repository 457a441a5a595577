"""Runs as a page: curves, tables, sheets; one HTML file, no script, nothing fetched."""

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files as resources
from pathlib import Path

from PIL import Image

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
    charts,
    curve_names,
    frame,
    is_loss,
    label,
    step_label,
    ticks,
)
from kosmosg.train.curves import Run, differences

NUM_SHEETS = 4
MAX_SIDE = (640, 1600)


def page(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the page in pieces: pictures may make it long."""
    style = (resources("kosmosg.train") / "report.css").read_text(encoding="utf-8")
    hiding = "".join(
        f"body:has(#r{n}:not(:checked)) .r{n} {{ display: none; }}\n" for n in _of(runs)
    )
    title = f"{len(runs)} runs" if len(runs) > 1 else runs[0].name
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        # Whatever a name smuggled in, a browser would not run or fetch it.
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}{hiding}</style></head><body>\n"
        f"<header><h1>{escape(title)}</h1>{_legend(runs)}</header>\n<main>\n"
    )
    yield from _curves(runs)
    yield from _values(runs)
    if len(runs) > 1:
        yield from _differences(runs)
    yield from _samples(runs)
    yield "</main></body></html>\n"


def _of(runs: Sequence[Run]) -> range:
    return range(len(runs))


def _legend(runs: Sequence[Run]) -> str:
    """Return the runs; where there are several, a box before each shows it or hides it."""
    items = []
    for number, run in enumerate(runs):
        words = f"{escape(run.name)}: {escape(run.said)}"
        if len(runs) > 1:
            box = f'<input type="checkbox" id="r{number}" checked>'
            words = f'<label for="r{number}">{box}{_swatch(number)}<span>{words}</span></label>'
        items.append(f"<li>{words}</li>")
    return f'<ul class="runs">{"".join(items)}</ul>'


def _swatch(colour: int) -> str:
    return f'<span class="swatch" style="background: var(--c{colour % len(COLOURS)})"></span>'


# -------------------------------------------------------------------------------------- curves


def _curves(runs: Sequence[Run]) -> Iterator[str]:
    last_step = max(run.step for run in runs)
    drawn = charts(runs)
    yield '<section aria-label="Curves"><h2>Curves</h2>'
    if not drawn:
        yield "<p>Nothing is logged yet.</p></section>\n"
        return
    told = []
    if any(run.resumed for run in runs):
        told.append("A dotted line is where a run was stopped and went on.")
    if any(run.skipped for run in runs):
        told.append("A small triangle is where records were left out.")
    if any(run.bad for run in runs):
        told.append("A small cross is a step whose loss or gradient was no number.")
    yield f'<p class="faint">Across: steps. {" ".join(told)}</p><div class="charts">\n'
    for chart in drawn:
        yield _figure(chart, frame(chart, last_step=last_step), several=len(runs) > 1)
    yield "</div></section>\n"


def _figure(chart: Chart, where: Frame, *, several: bool) -> str:
    shown = [
        f'<span class="r{line.run}">{_swatch(line.colour)} {escape(line.label)}</span>'
        for line in (chart.lines if several or len(chart.lines) > 1 else ())
    ]
    ends = [
        f"{line.label} {label(last[1])} at step {last[0]}"
        for line in chart.lines
        if (last := line.curve.last)
    ]
    said = escape(f"{chart.title}: {'; '.join(ends) or 'no number'}", quote=True)
    scale = "<span>logarithmic</span>" if where.is_log else ""
    return (
        f"<figure><figcaption><b>{escape(chart.title)}</b>{''.join(shown)}{scale}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">'
        f"{_axes(where)}{_marks(chart, where)}{_lines(chart, where)}</svg></figure>\n"
    )


def _axes(where: Frame) -> str:
    right, ground = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in ticks(where.low, where.high, is_log=where.is_log):
        y = f"{where.y(value):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y}" dy=".35em" text-anchor="end">{label(value)}</text>'
        )
    for step in ticks(0.0, float(max(1, where.last_step))):
        x = f"{where.x(step):.1f}"
        parts.append(
            f'<text x="{x}" y="{ground + 17}" text-anchor="middle">{step_label(step)}</text>'
        )
    return "".join(parts)


def _marks(chart: Chart, where: Frame) -> str:
    ground = HEIGHT - BOTTOM
    parts = []
    for run, step in chart.marks:
        x = f"{where.x(step):.1f}"
        parts.append(
            f'<line class="mark r{run}" x1="{x}" x2="{x}" y1="{TOP}" y2="{ground}">'
            f"<title>resumed after step {step}</title></line>"
        )
    for run, step, count in chart.skips:
        x = where.x(step)
        parts.append(
            f'<path class="skip r{run}" d="M{x:.1f} {ground - 7}l4 7h-8z">'
            f"<title>{count} records left out by step {step}</title></path>"
        )
    for run, step in chart.bad:
        x = where.x(step)
        parts.append(
            f'<path class="bad r{run}" d="M{x - 4:.1f} {TOP}l8 8m0-8l-8 8">'
            f"<title>step {step}: loss or gradient was no number</title></path>"
        )
    return "".join(parts)


def _lines(chart: Chart, where: Frame) -> str:
    parts = []
    for line in chart.lines:
        colour = f"var(--c{line.colour % len(COLOURS)})"
        for segment in where.segments(line.curve):
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in segment)
            if len(segment) > 1:
                shape = f'<polyline class="curve" style="stroke: {colour}" points="{points}"/>'
            else:
                x, y = segment[0]
                shape = f'<circle style="fill: {colour}" cx="{x:.1f}" cy="{y:.1f}" r="2"/>'
            parts.append(f'<g class="r{line.run}">{shape}</g>')
    return "".join(parts)


# ------------------------------------------------------------------------------ values, configs


def _values(runs: Sequence[Run]) -> Iterator[str]:
    names = curve_names(runs)
    if not names:
        return
    rows = []
    for name in names:
        cells = "".join(f'<td class="r{n}">{_value(run, name)}</td>' for n, run in enumerate(runs))
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    yield '<section aria-label="Values"><h2>Last and best values</h2>'
    yield _table(runs, "value", rows)


def _value(run: Run, name: str) -> str:
    curve = run.curves.get(name)
    if curve is None or (last := curve.last) is None:
        return "-" if curve is None else "no number"
    told = f"{label(last[1])}<small>step {last[0]}</small>"
    if is_loss(name) and (least := curve.least) and least != last:
        told += f"<small>best {label(least[1])}, step {least[0]}</small>"
    return told


def _differences(runs: Sequence[Run]) -> Iterator[str]:
    rows = []
    for path, values in differences(runs).items():
        cells = "".join(f'<td class="r{n}">{escape(value)}</td>' for n, value in enumerate(values))
        rows.append(f'<tr><th scope="row">{escape(path)}</th>{cells}</tr>')
    yield '<section aria-label="Configurations"><h2>What differs in the configurations</h2>'
    yield _table(runs, "field", rows) if rows else "<p>Nothing.</p></section>\n"


def _table(runs: Sequence[Run], head: str, rows: Sequence[str]) -> str:
    heads = "".join(
        f'<th scope="col" class="r{number}">{escape(run.name)}</th>'
        for number, run in enumerate(runs)
    )
    # What scrolls must be reachable by the keyboard.
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="Table of each {head} by run">'
        f'<table><thead><tr><th scope="col">{head}</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>\n"
    )


# ------------------------------------------------------------------------------------- sheets


def _samples(runs: Sequence[Run]) -> Iterator[str]:
    if not any(run.sheets for run in runs):
        return
    yield '<section aria-label="Samples"><h2>Samples</h2>\n'
    for number, run in enumerate(runs):
        if not run.sheets:
            continue
        name = escape(run.name, quote=True)
        yield f'<div class="r{number}"><p>{name}</p>'
        yield f'<div class="strip" tabindex="0" role="region" aria-label="Samples of {name}">'
        for step, path in _spread(run.sheets):
            yield f"<figure><figcaption>step {step}</figcaption>{_picture(path, step)}</figure>"
        yield "</div></div>\n"
    yield "</section>\n"


def _spread(sheets: Sequence[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """Return the last sheet first, and some before it, evenly."""
    count = min(NUM_SHEETS, len(sheets))
    places = [round(n * (len(sheets) - 1) / max(1, count - 1)) for n in range(count)]
    return [sheets[place] for place in reversed(places)] if count > 1 else list(sheets)


def _picture(path: Path, step: int) -> str:
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError) as error:  # it may be being written
        return f"<p>{escape(path.name)} cannot be read: {escape(type(error).__name__)}</p>"
    image.thumbnail(MAX_SIDE)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img width="{image.width}" height="{image.height}" alt="Samples at step {step}"'
        f' src="data:image/jpeg;base64,{data}">'
    )
