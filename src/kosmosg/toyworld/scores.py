"""From the judge's answers to rates with intervals, and from rates to a table."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

SCORED = ("shape", "body_colour", "pattern", "accessory", "place")
Verdict = Mapping[str, Bool[Tensor, " _asked"]]
Row = dict[str, Any]


def wilson(right: int, n: int) -> tuple[float, float]:
    """Return the 95% interval of a rate, by Wilson's score method.

    Example:
        >>> [round(end, 3) for end in wilson(90, 100)]
        [0.826, 0.945]
    """
    z = 1.959964
    rate, room = right / n, z * z / n
    centre = (rate + room / 2) / (1 + room)
    half = z / (1 + room) * math.sqrt(rate * (1 - rate) / n + room / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def rates(verdict: Verdict) -> Row:
    """Return the share of right answers by question, all at once as `all`, and how many as `n`."""
    every = {question: verdict[question] for question in SCORED}
    together = every["shape"]
    for answers in every.values():
        together = together & answers
    every["all"] = together
    row: Row = {question: answers.float().mean().item() for question, answers in every.items()}
    row["n"] = len(together)
    row["intervals"] = {
        question: wilson(int(answers.sum()), len(answers)) for question, answers in every.items()
    }
    return row


def pair_rates(left: Verdict, right: Verdict) -> Row:
    """Return the rates over both creatures, each side's own, and `both_colours`.

    `both_colours` is how often both bodies have the colour asked for on their side.
    """
    both = left["body_colour"] & right["body_colour"]
    row = rates({question: torch.cat([left[question], right[question]]) for question in SCORED})
    row["n"] = len(both)
    row["both_colours"] = both.float().mean().item()
    row["intervals"]["both_colours"] = wilson(int(both.sum()), len(both))
    return row | {"left": rates(left), "right": rates(right)}


def table(report: Mapping[str, Row]) -> str:
    """Return the rows as text: what the judge saw, then pairs side by side, then the rest."""
    judged = {name: row for name, row in report.items() if "body_colour" in row}
    blocks = [grid(("", *SCORED, "all", "n"), judged)] if judged else []
    pairs = {
        f"{name} {side}".strip(): {**row.get(side, row), "both": row["both_colours"]}
        for name, row in judged.items()
        if "left" in row
        for side in ("left", "right")
    }
    if pairs:
        blocks.append(grid(("", *SCORED, "both"), pairs))
    for name, row in report.items():
        if name not in judged and name != "settings":
            numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
            blocks.append(grid(("", *numbers), {name: numbers}))
    return "\n\n".join(blocks)


def grid(columns: tuple[str, ...], rows: Mapping[str, Row]) -> str:
    """Return a table as text: the rows' names, then these of their numbers."""
    lines = [[column.replace("_", " ") for column in columns]]
    lines += [
        [name, *(_number(row[column]) for column in columns[1:])] for name, row in rows.items()
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _number(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"
