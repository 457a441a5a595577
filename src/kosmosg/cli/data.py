"""`kosmosg data`: training data from other people's formats."""

import typer

from kosmosg.cli.data_convert import convert

app = typer.Typer(name="data", help="Make, check and look at training data.")


@app.callback()
def _group() -> None: ...


app.command()(convert)
