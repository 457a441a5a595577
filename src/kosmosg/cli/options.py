"""What may be said about a picture: options of the command line, arguments of the pipeline."""

import logging
import os
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kosmosg.cli.canvas import canvas_arguments, check_canvas
from kosmosg.cli.controls import check_controls, control_arguments
from kosmosg.errors import ConfigError
from kosmosg.note import MAX_IMAGES, MAX_SEED, MAX_SIDE, MAX_STEPS

if TYPE_CHECKING:
    from kosmosg.release import GenerationConfig

_PARTS: Any = typer.Argument(
    metavar="WORDS-AND-PICTURES",
    help="In the order in which the model reads them. The name of an image file is a picture, "
    "anything else is words.",
    show_default=False,
)
Parts = Annotated[list[str], _PARTS]
OptionalParts = Annotated[list[str] | None, _PARTS]
Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|cuda:N|mps",
        help="Where to compute; auto is a GPU where there is one.",
    ),
]
Model = Annotated[
    str,
    typer.Option(help="nano, the model that ships with kosmosg, or a directory with a model."),
]


class Quantization(StrEnum):
    """What the language model's matrices are kept in, for `--quantize`."""

    int8 = "int8"


Precision = Annotated[
    Literal["auto", "float32", "float16", "bfloat16"],
    typer.Option(help="What to compute in; auto is float16 on a GPU and float32 on a CPU."),
]
Quantize = Annotated[
    Quantization | None,
    typer.Option(
        help="Keep the language model's matrices as int8: less memory (needs torchao).",
        show_default="no",
    ),
]


SafetyChecker = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Judge pictures by diffusers' StableDiffusionSafetyChecker in a directory, such as "
        "safety_checker of Stable Diffusion 1.5; what it flags is black.",
        show_default="none",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The settings of one picture or sheet, by their names on the command line and in a batch.

    None is the model's own, and for the seed a random one. `arguments` turns them into what is
    drawn with.

    Raises:
        ConfigError: Naming the option whose value cannot work.
    """

    num_images: int = 1
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    scheduler: str | None = None
    size: str | None = None
    condition: tuple[str, ...] = ()
    blend: float | None = None
    init_image: str | None = None
    strength: float | None = None
    mask: str | None = None
    controlnet: tuple[str, ...] = ()
    control_image: tuple[str, ...] = ()
    canny: bool = False
    text_guidance: float | None = None
    picture_guidance: float | None = None
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float | None = None
    weight: tuple[float, ...] = ()
    window: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        from kosmosg.samplers import check_name

        for name, low, most in (
            ("num_images", 1, MAX_IMAGES),
            ("seed", 0, MAX_SEED + 1 - self.num_images),
            ("steps", 1, MAX_STEPS),
            ("blend", 0, 1),
            ("strength", 0, 1),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= most:
                raise ConfigError(f"{name} is {value}; give {low} to {most}")
        _parse_size(self.size)
        check_canvas(self)
        check_controls(self)
        if self.scheduler is not None:
            check_name(self.scheduler)
        if self.condition and self.negative_prompt is not None:
            raise ConfigError(
                "a condition has its negative prompt in it; leave out negative_prompt, "
                "or encode the condition with another"
            )
        if self.condition and (self.weight or self.window):
            raise ConfigError(
                "a condition has its pictures in it already; leave out weight and window, or give "
                "the words and pictures themselves"
            )
        if len(self.condition) != (2 if self.blend is not None else min(1, len(self.condition))):
            raise ConfigError(
                f"there are {len(self.condition)} conditions and "
                f"{'no' if self.blend is None else 'a'} blend; give one condition, or two and the "
                "share of the second as blend"
            )


def arguments(options: Options, defaults: "GenerationConfig") -> dict[str, Any]:
    """Return what `drawing.draw` is called with: exactly this, and this goes into the PNG's note.

    Raises:
        CheckpointError: If a condition's file is not there.
    """
    from kosmosg.hashes import of_file
    from kosmosg.note import File

    width, height = _parse_size(options.size)
    given = {
        "num_inference_steps": _or(options.steps, defaults.num_inference_steps),
        "guidance_scale": _or(options.guidance_scale, defaults.guidance_scale),
        "width": _or(width, defaults.width),
        "height": _or(height, defaults.height),
        "negative_prompt": options.negative_prompt,
        "scheduler": options.scheduler,
    }
    if options.condition:
        paths = [Path(name) for name in options.condition]
        given["conditions"] = [File(path=path, sha256=of_file(path)) for path in paths]
        given["blend"] = options.blend
    return given | canvas_arguments(options) | control_arguments(options)


def prepare_libraries() -> None:
    """Have torch's idle threads sleep, and libraries say errors only; before they are imported.

    Where other programs want the cores too, spinning threads made a picture of seconds take
    minutes (2 cores, 10 busy processes: over 200 s against 5 s). What the libraries say on import
    is of optional ones: torchvision, kernels of torchao.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def hide_loading_bars() -> None:
    """Keep what libraries show while they read and write weights off the terminal: it is short."""
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _parse_size(size: str | None) -> tuple[int | None, int | None]:
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
