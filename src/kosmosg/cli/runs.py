"""`kosmosg runs`: what training runs did, as a table, a page or a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kosmosg.cli.output import check_output, write_files
from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kosmosg.train.curves import Run

app = typer.Typer()


@app.command()
def runs(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR...",
            help="Directories of runs, such as runs/nano/runs/stage3.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PAGE.html|PLOT.png",
            help="A page with curves, tables and samples, or a picture of the curves alone.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show what runs did, and compare them; they may still be going on.

    Prints each value's last and, of losses, its best; and where the runs' configurations differ.
    With --output it draws the curves as well, with a mark where a run was resumed and where records
    were left out.

    \b
    Example:
      kosmosg runs runs/nano/runs/stage3 runs/try/runs/stage3 -o runs.html
    """  # noqa: D301 -- click's mark for text to be kept as it is
    import sys

    from kosmosg.train.curves import read_runs

    if output is not None:
        _check(output)
    found = read_runs(directories)
    if output is None:
        print("\n".join(_table(found)))
        return
    if output.suffix.lower() == ".html":
        from kosmosg.train.report import page

        data = "".join(page(found)).encode()
    else:
        import io

        from kosmosg.train.plot import plot

        buffer = io.BytesIO()
        picture = plot(found)
        picture.quantize(64).save(buffer, "PNG", optimize=True)  # few colours: a third of the bytes
        data = buffer.getvalue()
    write_files({output: data})
    print(f"{len(found)} {'run' if len(found) == 1 else 'runs'}: {output}", file=sys.stderr)


def _check(output: Path) -> None:
    suffix = output.suffix.lower()
    if suffix not in (".html", ".png"):
        raise ConfigError(f"{output} ends in neither .html (a page) nor .png (a picture of curves)")
    check_output(output, (), suffix=suffix)


def _table(runs: "Sequence[Run]") -> list[str]:
    from kosmosg.train.chart import curve_names, is_loss, label
    from kosmosg.train.curves import differences

    rows = [["", *(run.name for run in runs)], ["state", *(run.said for run in runs)]]
    for name in curve_names(runs):
        curves = [run.curves.get(name) for run in runs]
        last = [curve.last if curve else None for curve in curves]
        rows.append([name, *("-" if one is None else label(one[1]) for one in last)])
        if is_loss(name):
            least = [curve.least if curve else None for curve in curves]
            told = ("-" if one is None else f"{label(one[1])} at {one[0]}" for one in least)
            rows.append(["  best", *told])
    if len(runs) > 1:
        rows += [[path, *values] for path, values in differences(runs).items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(runs) + 1)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
