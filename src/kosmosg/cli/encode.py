"""`kosmosg encode`: a prompt's condition into a file."""

from pathlib import Path
from typing import Annotated

import typer

from kosmosg.cli.options import (
    Device,
    Model,
    Parts,
    Precision,
    Quantize,
    hide_loading_bars,
    prepare_libraries,
)
from kosmosg.cli.prompt import read_parts
from kosmosg.note import Picture

app = typer.Typer()


@app.command()
def encode(
    parts: Parts,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The .safetensors file to write.")
    ] = Path("condition.safetensors"),
    model: Model = "nano",
    negative_prompt: Annotated[
        str | None, typer.Option(help="Words to guide away from.", show_default="none")
    ] = None,
    dtype: Precision = "auto",
    device: Device = "auto",
    quantize: Quantize = None,
) -> None:
    """Write what the U-Net is conditioned on for a prompt, for machines without the language model.

    Of use to `kosmosg generate --condition`, and as prompt_embeds and negative_prompt_embeds to any
    Stable Diffusion pipeline with the same U-Net.

    \b
    Example:
      kosmosg encode "a creature" me.png "in the snow" -o snow.safetensors
    """  # noqa: D301 -- click's mark for text to be kept as it is
    from kosmosg.cli.output import check_output

    prepare_libraries()
    prompt = read_parts(parts)
    inputs = [part.path for part in prompt if isinstance(part, Picture)]
    check_output(output, inputs, suffix=".safetensors")

    import dataclasses

    from kosmosg import conditions, devices, drawing, hashes, release

    directory = release.find(model)
    hide_loading_bars()
    where = devices.choose(device, devices.find())
    pipe = drawing.load(
        model,
        dtype=devices.choose_dtype(dtype, where),
        device=where,
        quantize=None if quantize is None else quantize.value,
    )
    condition = drawing.encode(pipe, prompt, negative_prompt)
    made_by = {
        "name": directory.resolve().name,
        "parts": hashes.of_parts(directory, drawing.ENCODER),
    }
    described = {**condition.provenance, "model": made_by}
    if quantize is not None:
        described["quantize"] = quantize.value
    conditions.save(dataclasses.replace(condition, provenance=described), output)
    print(output)
