"""`kosmosg caption`: words from a picture."""

from typing import Annotated

import typer

from kosmosg.cli.options import Model, prepare_libraries
from kosmosg.cli.prompt import open_picture

app = typer.Typer()


@app.command()
def caption(
    picture: Annotated[str, typer.Argument(help="An image file.", show_default=False)],
    model: Model = "nano",
    max_words: Annotated[
        int, typer.Option(min=1, max=256, help="Stop after so many word pieces.")
    ] = 40,
) -> None:
    """Describe a picture in words.

    \b
    Example:
      kosmosg caption me.png
    """  # noqa: D301 -- click's mark for text to be kept as it is
    prepare_libraries()
    opened = open_picture(picture)

    from kosmosg import release
    from kosmosg.construct.caption import mllm_captioner

    captioner = mllm_captioner(release.find(model), max_new_tokens=max_words)
    print(captioner([opened.image])[0])
