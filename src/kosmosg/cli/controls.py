"""What `kosmosg generate` may be told beyond the prompt: guidance apart, weights, windows, LoRA."""

import hashlib
import math
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    from kosmosg.pipeline import KosmosGPipeline
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


def read_controls(
    prompt: "Prompt",
    *,
    text_guidance: float | None,
    picture_guidance: float | None,
    guidance_interval: str | None,
    guidance_rescale: float | None,
    weight: Sequence[float] | None,
    window: Sequence[str] | None,
) -> dict[str, Any]:
    """Return the arguments of the pipeline's call that were given, and no other.

    Raises:
        ConfigError: If an interval or a rescaling cannot work.
        PromptError: If weights or windows do not fit the prompt's pictures.
    """
    from kosmosg.controls import check_guidance, weights_of, windows_of

    given: dict[str, Any] = {
        "text_guidance_scale": text_guidance,
        "picture_guidance_scale": picture_guidance,
        "guidance_rescale": guidance_rescale,
    }
    if guidance_interval is not None:
        given["guidance_interval"] = _fractions("--guidance-interval", guidance_interval)
    check_guidance(given.get("guidance_interval", (0.0, 1.0)), guidance_rescale or 0.0)
    if weight:
        given["picture_weights"] = [list(row) for row in weights_of([list(weight)], [prompt])]
    if window:
        fractions = [_fractions("--window", one) for one in window]
        windows_of([fractions], [prompt])
        given["picture_windows"] = [fractions]
    return {name: value for name, value in given.items() if value is not None}


def load_loras(pipe: "KosmosGPipeline", loras: Sequence[str] | None) -> dict[str, Any]:
    """Load the LoRAs into the pipeline; return what the note says of them, if there are any.

    Raises:
        ConfigError: If a scale is no number.
        CheckpointError: If a file is missing, damaged or not for this model.
    """
    if not loras:
        return {}
    names, scales, notes = [], [], []
    for number, lora in enumerate(loras, start=1):
        path, scale = _scaled(lora)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            pipe.load_lora_weights(path, adapter_name=f"lora-{number}")
        for warning in caught:
            if warning.category is UserWarning:
                print(f"kosmosg: {warning.message}", file=sys.stderr)
        names.append(f"lora-{number}")
        scales.append(scale)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        notes.append({"file": path.name, "sha256": digest, "scale": scale})
    pipe.set_adapters(names, scales)
    return {"loras": notes}


def _fractions(option: str, text: str) -> list[float]:
    if not re.fullmatch(r"\d*\.?\d+,\d*\.?\d+", text):
        raise ConfigError(f"{option} is {text!r}; give two fractions of the steps such as 0.2,0.8")
    return [float(part) for part in text.split(",")]


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
