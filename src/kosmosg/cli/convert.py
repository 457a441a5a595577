"""`kosmosg convert`: the authors' checkpoints to a model's directory, and back."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from kosmosg.cli.options import prepare_libraries
from kosmosg.errors import ConfigError

app = typer.Typer()


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT|DIR",
            help="The authors' file; with --to-original a directory that this command wrote.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="The directory to make; with --to-original the file. It must not exist.",
            show_default=False,
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|FILE|NAME",
            help="A Stable Diffusion 1.5 or a fine-tune of it: a directory in diffusers' layout, a "
            ".safetensors or .ckpt file, or a name on the hub such as "
            "stable-diffusion-v1-5/stable-diffusion-v1-5. A checkpoint of stage 2 needs one; in "
            "one of stage 3 it replaces the U-Net and VAE.",
            show_default="those in the checkpoint",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="Of the weights written.", show_default="as stored"),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where sentencepiece.bpe.model and dict.txt are.",
            show_default="beside the checkpoint",
        ),
    ] = None,
    keep_training_parts: Annotated[
        bool,
        typer.Option(
            "--keep-training-parts",
            help="Of a checkpoint of stage 2, keep what only training uses: N and CLIP's text "
            "tower.",
        ),
    ] = False,
    architecture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For other sizes than the release's: JSON with what shapes cannot show "
            "(vision_heads, aligner_heads, unet, vae, text_encoder).",
            show_default="the release's",
        ),
    ] = None,
    to_original: Annotated[
        bool,
        typer.Option("--to-original", help="The other way: a directory to the authors' layout."),
    ] = False,
) -> None:
    """Convert the authors' checkpoint to a directory that --model takes; print its path.

    Nothing in a checkpoint is executed: it is read as data, and refused where it asks for more.
    A weight that is missing, unknown or of another shape is an error, and nothing is written.
    The full-size model takes about 6 GB of disk as stored and 3 GB of memory.

    \b
    Examples:
      kosmosg convert checkpoint_final.pt -o kosmosg-1.9b
      kosmosg convert checkpoint_final.pt --base stable-diffusion-v1-5 -o kosmosg-1.9b
      kosmosg generate --model kosmosg-1.9b "a photo of" dog.png "on the beach"
      kosmosg convert --to-original kosmosg-1.9b -o back.pt
    """  # noqa: D301 -- click's mark for text to be kept as it is
    prepare_libraries()
    if to_original:
        if base or dtype or tokenizer or keep_training_parts or architecture:
            raise ConfigError(
                "--to-original writes the directory as it is; leave out --base, --dtype, "
                "--tokenizer, --keep-training-parts and --architecture"
            )
        from kosmosg.convert import to_original as write_original

        write_original(source, output)
    else:
        from kosmosg import config
        from kosmosg.convert import Architecture
        from kosmosg.convert import convert as convert_checkpoint

        convert_checkpoint(
            source,
            output,
            base=base,
            dtype=dtype,
            tokenizer=tokenizer,
            keep_training_parts=keep_training_parts,
            architecture=None if architecture is None else config.load(Architecture, architecture),
        )
    print(output)
