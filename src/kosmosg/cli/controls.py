"""What `kosmosg generate` may be told beyond the prompt: guidance apart, weights, windows, LoRA."""

import math
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    from kosmosg.cli.options import Options
    from kosmosg.sequence import Prompt

TextGuidance = Annotated[
    float | None,
    typer.Option(
        help="How strictly what the words add to the pictures is followed.",
        show_default="--guidance-scale",
    ),
]
PictureGuidance = Annotated[
    float | None,
    typer.Option(
        help="How strictly the pictures are followed; where it differs from the above, half "
        "slower.",
        show_default="--guidance-scale",
    ),
]
GuidanceInterval = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="Guide between these fractions of the steps only: 0.2,0.8 saves two fifths of the "
        "null prompt's work.",
        show_default="0,1",
    ),
]
GuidanceRescale = Annotated[
    float | None,
    typer.Option(
        help="0 to 1: take back what strong guidance adds to the contrast.", show_default="0"
    ),
]
Weight = Annotated[
    list[float] | None,
    typer.Option(
        help="Of a picture, 0 (as if absent) to 4; once for each picture, in order.",
        show_default="1",
    ),
]
Window = Annotated[
    list[str] | None,
    typer.Option(
        metavar="A,B",
        help="The fractions of the steps between which a picture counts; once for each picture, "
        "in order.",
        show_default="0,1",
    ),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE[:SCALE]",
        help="A LoRA for the U-Net, .safetensors in the layout of diffusers or kohya; may be "
        "given several times.",
        show_default="none",
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|DIR[:SCALE]",
        help="An adapter for one subject, as `kosmosg train subject` wrote it for this model.",
        show_default="none",
    ),
]


def check_controls(options: "Options") -> None:
    """Pass an interval and a rescaling that can work; the pictures of the prompt are not known yet.

    Raises:
        ConfigError: Naming the one that cannot.
    """
    from kosmosg.controls import WHOLE, check_guidance

    check_guidance(options.guidance_interval or WHOLE, options.guidance_rescale or 0.0)


def check_pictures(options: "Options", prompt: "Prompt") -> None:
    """Pass weights and windows that fit the pictures of the prompt.

    Raises:
        PromptError: If they are not as many, or one cannot work.
    """
    from kosmosg.controls import weights_of, windows_of

    weights_of([options.weight] if options.weight else None, [prompt])
    windows_of([options.window] if options.window else None, [prompt])


def control_arguments(options: "Options") -> dict[str, Any]:
    """Return the arguments of the pipeline's call that were given, and no other."""
    given = {
        "text_guidance_scale": options.text_guidance,
        "picture_guidance_scale": options.picture_guidance,
        "guidance_interval": options.guidance_interval,
        "guidance_rescale": options.guidance_rescale,
        "picture_weights": [list(options.weight)] if options.weight else None,
        "picture_windows": [list(options.window)] if options.window else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def lora_arguments(loras: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of `drawing.load` for these files and their scales.

    Raises:
        ConfigError: If a scale is no number.
        CheckpointError: If a file is missing or cannot be a LoRA.
    """
    from kosmosg.hashes import of_file
    from kosmosg.lora import check_path
    from kosmosg.note import File

    if not loras:
        return {}
    read = [_scaled(lora) for lora in loras]
    for path, _ in read:
        check_path(path)
    return {
        "loras": [File(path=path, sha256=of_file(path)) for path, _ in read],
        "lora_scales": [scale for _, scale in read],
    }


def adapter_arguments(given: str | None) -> dict[str, Any]:
    """Return the arguments of `drawing.load` for an adapter and its scale.

    Raises:
        ConfigError: If the scale is no number.
        CheckpointError: If there is no such file.
    """
    from kosmosg.adapter import find
    from kosmosg.hashes import of_file
    from kosmosg.note import File

    if given is None:
        return {}
    path, scale = _scaled(given)
    path = find(path)
    return {"adapter": File(path=path, sha256=of_file(path)), "adapter_scale": scale}


def fractions(option: str, text: str) -> tuple[float, float]:
    """Return the two fractions of a text such as 0.2,0.8.

    Raises:
        ConfigError: If it is another text.
    """
    if not re.fullmatch(r"\d*\.?\d+,\d*\.?\d+", text):
        raise ConfigError(f"{option} is {text!r}; give two fractions of the steps such as 0.2,0.8")
    first, second = text.split(",")
    return float(first), float(second)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print what loading a LoRA warns of as one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        if warning.category is UserWarning:
            print(f"kosmosg: {warning.message}", file=sys.stderr)


def _scaled(lora: str) -> tuple[Path, float]:
    path, colon, scale = lora.rpartition(":")
    try:
        number = float(scale)
    except ValueError:
        return Path(lora), 1.0  # no scale: a name with a colon, or none
    if not colon:
        return Path(lora), 1.0
    if not math.isfinite(number):
        raise ConfigError(f"the scale of {lora!r} is no number; give one such as 0.8")
    return Path(path), number
