"""`kosmosg caption`: words from a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kosmosg.cli.options import Model, prepare_libraries
from kosmosg.cli.prompt import open_picture

if TYPE_CHECKING:
    from kosmosg.model.mllm import MLLM

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

    import torch

    from kosmosg import release, sequence
    from kosmosg.tokenizer import Tokenizer

    directory = release.find(model)
    release.read_generation_config(directory)
    tokenizer = Tokenizer.from_pretrained(directory / "tokenizer")
    mllm = _load_speaker(directory)
    encoded = sequence.encode(
        [opened.image],
        tokenizer,
        num_latents=mllm.config["num_latents"],
        image_size=mllm.config["image_size"],
    )
    with torch.no_grad():
        ids = mllm.generate(
            sequence.collate([encoded], pad_id=tokenizer.pad_id),
            max_new_tokens=max_words,
            eos_id=tokenizer.eos_id,
        )
    print(tokenizer.decode(ids[0].tolist()))


def _load_speaker(directory: Path) -> "MLLM":
    """Return the MLLM that last learnt to predict words: stage 3 teaches it to paint instead."""
    from kosmosg import release
    from kosmosg.model.mllm import MLLM

    home = directory / "stage2"
    if not (home / "mllm").is_dir():
        home = directory
    release.check_part(home, "mllm")
    mllm = MLLM.from_pretrained(home / "mllm", local_files_only=True).float()
    release.check_weights(home, {"mllm": mllm.state_dict()})
    return mllm
