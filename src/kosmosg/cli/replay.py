"""`kosmosg replay`: is a PNG what its note says."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from kosmosg.cli.controls import warnings_as_lines
from kosmosg.cli.options import hide_loading_bars, prepare_libraries

app = typer.Typer()


@app.command()
def replay(
    png: Annotated[Path, typer.Argument(help="A PNG that `kosmosg generate` wrote.")],
    pictures: Annotated[
        list[Path] | None,
        typer.Option(
            help="Where its pictures, conditions and LoRAs are, under any name; more than once "
            "for more folders.",
            show_default="the PNG's folder, and this one",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="nano, or the directory of the model that drew it.",
            show_default="what the PNG names, if it ships with kosmosg",
        ),
    ] = None,
) -> None:
    """Draw a picture again from the note in its PNG, and compare the pixels.

    Prints `identical`, or how the pixels differ and exits with 1. What else is not as it was
    (model, sampler, device, threads, versions) is said on stderr, for it is the likely reason.

    \b
    Example:
      kosmosg replay out.png
    """  # noqa: D301 -- click's mark for text to be kept as it is
    prepare_libraries()
    hide_loading_bars()
    from kosmosg.replay import replay as draw_again

    with warnings_as_lines():
        outcome = draw_again(png, model=model, pictures=pictures)
    for difference in outcome.differences:
        print(f"not as then: {difference}", file=sys.stderr)
    print(outcome.pixels or "identical")
    if outcome.pixels:
        raise typer.Exit(1)
