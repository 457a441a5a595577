"""What may be said about a picture: options of the command line, arguments of the pipeline."""

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    from kosmosg.release import GenerationConfig

MAX_SIDE = 2048

Parts = Annotated[
    list[str],
    typer.Argument(
        metavar="WORDS-AND-PICTURES",
        help="In the order in which the model reads them. The name of an image file is a picture, "
        "anything else is words.",
        show_default=False,
    ),
]
Model = Annotated[
    str,
    typer.Option(help="nano, the model that ships with kosmosg, or a directory with a model."),
]


class Sampler(StrEnum):
    """The samplers of the released demo, for `--scheduler`."""

    dpms = "dpms"
    ddim = "ddim"
    pndm = "pndm"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The settings of one picture or one sheet; None is the model's own."""

    steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    size: str | None = None


def arguments(options: Options, defaults: "GenerationConfig") -> dict[str, Any]:
    """Return what the pipeline is called with: exactly this, and this goes into the PNG's note.

    Raises:
        ConfigError: Naming the option whose value cannot work.
    """
    width, height = parse_size(options.size)
    return {
        "num_inference_steps": _or(options.steps, defaults.num_inference_steps),
        "guidance_scale": _or(options.guidance_scale, defaults.guidance_scale),
        "width": _or(width, defaults.width),
        "height": _or(height, defaults.height),
        "negative_prompt": options.negative_prompt,
    }


def let_threads_sleep() -> None:
    """Have torch's idle threads sleep, not spin; to be called before torch is imported.

    Where other programs want the cores too, spinning threads made a picture of seconds take
    minutes (2 cores, 10 busy processes: over 200 s against 5 s).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """Return the width and height that `N` or `WxH` says.

    Raises:
        ConfigError: If it says neither, or a side is too long.
    """
    if size is None:
        return None, None
    match = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", size)
    if match is None:
        raise ConfigError(f"--size is {size!r}; give a side such as 64, or WIDTHxHEIGHT")
    width, height = int(match[1]), int(match[2] or match[1])
    if max(width, height) > MAX_SIDE:
        raise ConfigError(f"--size is {size!r}; a side has at most {MAX_SIDE} pixels")
    return width, height


def _or(given: Any, otherwise: Any) -> Any:  # noqa: ANN401 -- two values of one type
    return otherwise if given is None else given
