"""`kosmosg claims`: the paper's claims, tried in the toy world."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer()


@app.command()
def claims(
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny budgets: shows that it runs, and no more.")
    ] = False,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Rows, pictures, and what is being trained.")
    ] = Path("runs/claims"),
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="An experiment, or all of a claim: zero-shot, several, text, alignment,"
            " instruction, editing, data, unet, curves. May be given again.",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Multiply the steps of all trainings.", show_default="1"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="Prompts of a row.", show_default="1000")
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME|DIR", help="The shipped model, or a directory.")
    ] = "nano",
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of the sampler.", show_default="the model's own"),
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="Of the U-Net's work.", show_default="bfloat16"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which rows are due and their hours; do nothing.")
    ] = False,
) -> None:
    """Try the paper's claims on nano and the toy world; print the table.

    Each row is an experiment: it trains what is needed, draws what is asked for of creatures that
    no stage has seen, and asks the judge. A finished row is a file in DIR/rows and is not measured
    again; stopped, the same command goes on, trainings too. The column `renderer` is what the judge
    says of the pictures that would be right.
    """
    from kosmosg.cli.options import hide_loading_bars, prepare_libraries

    prepare_libraries()
    from kosmosg import release
    from kosmosg.toyworld.claims import rows, run
    from kosmosg.toyworld.claims.experiment import QUICK, Budget

    hide_loading_bars()
    given = {"scale": scale, "num_inference_steps": steps, "precision": precision}
    if limit is not None:
        given |= {"prompts": limit, "points": min(limit, Budget().points)}
    budget = replace(
        QUICK if quick else Budget(),
        **{name: value for name, value in given.items() if value is not None},
    )
    due = run.chosen(only or ())
    if dry_run:
        run.foretell(due, out, budget)
        return
    print(rows.table(run.run(due, release.find(model), out, budget)))
