"""docs/claims.md: rows as tables, generated, so that no number can differ from its file.

`python -m kosmosg.toyworld.claims.page docs/results` prints it; scripts/docs writes it and
tests/docs compares it.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kosmosg.errors import ConfigError
from kosmosg.toyworld.claims.rows import CLAIMS, Row, load

_HEAD = """# The paper's claims in the toy world

Generated from `docs/results/*.json`; do not edit. Each row is an experiment of `kosmosg claims`, on
creatures that no stage has seen, read by [the judge](toyworld.md#the-judge).

```sh
.venv/bin/kosmosg claims --dry-run             # what is due, and its core-hours
.venv/bin/kosmosg claims                       # everything; stopped, the same command goes on
.venv/bin/kosmosg claims --only zero-shot      # one claim
cp runs/claims/rows/*.json docs/results/       # then its pictures, into docs/images/claims/
./scripts/docs                                 # writes this page
```

A cell is the score, ± half of its 95% interval, and after the stroke what the judge says of the
renderer's own pictures of the same prompts: what perfect pictures would get. Of one seed the
interval is that of its prompts alone, of several that of the seeds' means.

- `creature`: shape, colour, pattern and accessory at once, in the place where it should stand;
  `all`: every creature, and the ground; `colours in place`: every creature's.
- `like shown`, `like wanted`: cosine of the judge's features to the pictures in the prompt, on
  average, and to the one that would be right, what DINO is for photographs.
- `near copy`: the pixels of a picture in the prompt again (correlation .9 at 16 by 16).
- `fid`: Fréchet distance of those features to the renderer's. Less is better; it depends on how
  many pictures there are.
- `done`, `kept`: what an edit asks for, and all else; `unchanged`: it still has what was to change.
"""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a score should be, alone or as a share of another row's."""

    row: str
    score: str
    bound: float
    of: str | None = None
    at_most: bool = False


GOALS = (
    Goal(row="zero-shot-stage3", score="body_colour", bound=0.97),
    Goal(row="zero-shot-stage3", score="shape", bound=0.9),
    Goal(row="zero-shot-stage3", score="pattern", bound=0.9),
    Goal(row="zero-shot-stage3", score="accessory", bound=0.9),
    Goal(row="zero-shot-stage3", score="place", bound=0.95),
    Goal(row="zero-shot-stage3", score="all", bound=0.7),
    Goal(row="zero-shot-stage3", score="all", bound=0.9, of="zero-shot-oracle"),
    Goal(row="zero-shot-stage3", score="near_copy", bound=0.05, at_most=True),
    Goal(row="several-two", score="all", bound=0.5),
    Goal(row="text-stage3", score="all", bound=0.97, of="text-foundation"),
)


def page(folder: Path, pictures: str) -> Iterator[str]:
    """Yield the page in pieces.

    Args:
        folder: Of the rows.
        pictures: Before the name of each picture, as the page links it.

    Raises:
        ConfigError: If a row is damaged, or two have scores of unlike budgets.
    """
    rows = {path.stem: load(path) for path in sorted(folder.glob("*.json"))}
    yield _HEAD
    yield from _goals(rows)
    for claim, title in CLAIMS.items():
        found = [row for row in rows.values() if row.claim == claim]
        yield f"\n## {title}\n\n"
        if not found:
            yield "Not measured yet.\n"
            continue
        yield from _table(found)
        yield from (
            f"\n![{row.name}: {row.experiment}]({pictures}{row.name}.jpg)\n\n{row.name}:"
            f" {row.experiment}.\n"
            for row in found
        )
    yield from _provenance(list(rows.values()))


def _goals(rows: Mapping[str, Row]) -> Iterator[str]:
    lines = [line for goal in GOALS if (line := _goal(goal, rows))]
    if lines:
        yield "\n## Goals for the shipped nano\n\n| Row | Score | Goal | Measured | Met |\n"
        yield "|---|---|---|---|---|\n"
        yield "".join(lines)


def _goal(goal: Goal, rows: Mapping[str, Row]) -> str | None:
    if goal.row not in rows or (goal.of and goal.of not in rows):
        return None
    value = rows[goal.row].scores[goal.score].mean
    if goal.of:
        value /= max(1e-9, rows[goal.of].scores[goal.score].mean)
    met = value <= goal.bound if goal.at_most else value >= goal.bound
    what = f"{goal.score.replace('_', ' ')}{f', of {goal.of}' if goal.of else ''}"
    wanted = f"{'at most' if goal.at_most else 'at least'} {goal.bound:g}"
    return f"| {goal.row} | {what} | {wanted} | {value:.3f} | {'yes' if met else 'no'} |\n"


def _table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a table; a score `way/name` stands in a line of its own for each way."""
    columns = list(dict.fromkeys(_split(name)[1] for row in rows for name in row.scores))
    yield f"| | {' | '.join(column.replace('_', ' ') for column in columns)} | n | seeds |\n"
    yield f"|{'---|' * (len(columns) + 3)}\n"
    for row in rows:
        for way in dict.fromkeys(_split(name)[0] for name in row.scores):
            names = [f"{way}/{column}" if way else column for column in columns]
            cells = [_cell(row, name) for name in names]
            head = f"{row.name}, {way}" if way else row.name
            yield f"| {head} | {' | '.join(cells)} | {row.n} | {len(row.seeds)} |\n"


def _split(name: str) -> tuple[str, str]:
    way, _, score = name.rpartition("/")
    return way, score


def _cell(row: Row, name: str) -> str:
    if name not in row.scores:
        return ""
    score = row.scores[name]
    digits = 2 if max(abs(score.mean), abs(score.high)) < 10 else 0
    half = (score.high - score.low) / 2
    said = f"{score.mean:.{digits}f}" + (f" ± {half:.{digits}f}" if half > 0 else "")
    truth = row.judge.get(name, math.nan)
    return said if math.isnan(truth) else f"{said} / {truth:.{digits}f}"


def _provenance(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield "\n## Where the numbers come from\n\n"
    yield "| Row | Commit | Hours | Core-hours | Machine | Precision | Steps | Weights |\n"
    yield f"|{'---|' * 8}\n"
    for row in rows:
        yield (
            f"| {row.name} | {row.commit} | {row.hours:.2f} | {row.core_hours:.2f} |"
            f" {row.machine} | {row.config.get('precision')} |"
            f" {row.config.get('num_inference_steps') or 'own'} |"
            f" {row.weights[:12]} |\n"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise ConfigError("give the folder of rows, such as docs/results")
    sys.stdout.write("".join(page(Path(sys.argv[1]), "images/claims/")))
