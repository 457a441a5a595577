"""Init picture, mask and ControlNets as they are typed: `--init-image`, `--controlnet`."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kosmosg.cli.prompt import Picture, open_picture
from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from kosmosg.pipeline import KosmosGPipeline

InitImage = Annotated[
    str | None,
    typer.Option(
        help="A picture to start from; its middle is scaled to --size.", show_default="noise"
    ),
]
Strength = Annotated[
    float | None,
    typer.Option(
        help="How much of the init picture is given up, up to 1.", show_default="0.8; with --mask 1"
    ),
]
Mask = Annotated[
    str | None,
    typer.Option(
        help="A picture as large as the init picture: white is painted anew, black stays.",
        show_default="none",
    ),
]
ControlNets = Annotated[
    list[str] | None,
    typer.Option(
        "--controlnet",
        metavar="DIR",
        help="A ControlNet made for this model; may be repeated.",
        show_default="none",
    ),
]
ControlImages = Annotated[
    list[str] | None,
    typer.Option(
        "--control-image",
        metavar="FILE",
        help="What it reads; one for each --controlnet, in order.",
        show_default="none",
    ),
]
Canny = Annotated[
    bool, typer.Option("--canny", help="Draw the edges of each control image (needs OpenCV).")
]


@dataclass(frozen=True, kw_only=True)
class CanvasFiles:
    """The pictures of a canvas, opened, and the directories of its ControlNets."""

    init_image: Picture | None = None
    strength: float | None = None
    mask: Picture | None = None
    controlnets: Sequence[str] = ()
    control_images: Sequence[Picture] = ()
    canny: bool = False

    @property
    def pictures(self) -> list[Picture]:
        """Every picture of it."""
        given = (self.init_image, self.mask, *self.control_images)
        return [picture for picture in given if picture is not None]

    def note(self) -> dict[str, Any]:
        """Return what a PNG says about it: of pictures name and sha256, of the rest the name."""
        found: dict[str, Any] = {}
        for name, one in (("init_image", self.init_image), ("mask", self.mask)):
            if one is not None:
                found[name] = _noted(one)
        if self.strength is not None:
            found["strength"] = self.strength
        if self.controlnets:
            found["controlnets"] = [Path(name).resolve().name for name in self.controlnets]
            found["control_images"] = [_noted(one) for one in self.control_images]
            found["canny"] = self.canny
        return found


def open_canvas(
    *,
    init_image: str | None,
    strength: float | None,
    mask: str | None,
    controlnets: Sequence[str] | None,
    control_images: Sequence[str] | None,
    canny: bool,
) -> CanvasFiles | None:
    """Return what is typed with its pictures opened, or None if nothing is.

    Raises:
        ConfigError: If something that it needs is not typed, or a mask has another shape.
        PromptError: If a picture does not exist or is damaged.
    """
    nets, images = controlnets or [], control_images or []
    if len(nets) != len(images):
        raise ConfigError(
            f"there are {len(nets)} --controlnet and {len(images)} --control-image; give one "
            "picture for each ControlNet"
        )
    if canny and not images:
        raise ConfigError("--canny draws the edges of control pictures; give --control-image too")
    if init_image is None and (mask is not None or strength is not None):
        option = "--mask" if mask is not None else "--strength"
        raise ConfigError(f"{option} needs --init-image, the picture to start from")
    if init_image is None and not nets:
        return None
    files = CanvasFiles(
        init_image=None if init_image is None else open_picture(init_image),
        strength=strength,
        mask=None if mask is None else open_picture(mask),
        controlnets=nets,
        control_images=[open_picture(name) for name in images],
        canny=canny,
    )
    _check_mask(files)
    return files


def painter(
    pipe: "KosmosGPipeline", files: CanvasFiles | None, *, width: int, height: int
) -> Callable[..., Any]:
    """Return what draws: the pipeline, or diffusers' own with the canvas filled in.

    Raises:
        CheckpointError: If a ControlNet cannot be read.
        ConfigError: If it does not belong to this model, or OpenCV is needed and missing.
    """
    if files is None:
        return pipe
    from transformers.utils import logging

    logging.set_verbosity_error()  # diffusers' pipelines import processors that want torchvision
    from kosmosg.canvas import Canvas, fit, fit_mask, paint
    from kosmosg.controlnet import edges, load_controlnet

    size = (width, height)
    for picture in files.pictures:
        if picture.image.size != size:
            print(
                f"{picture.path} is {picture.image.width} x {picture.image.height}; its middle is "
                f"scaled to {width} x {height}",
                file=sys.stderr,
            )
    controls: list[Image.Image] = [fit(one.image, size) for one in files.control_images]
    canvas = Canvas(
        init_image=None if files.init_image is None else fit(files.init_image.image, size),
        strength=files.strength,
        mask=None if files.mask is None else fit_mask(files.mask.image, size),
        controlnets=[load_controlnet(directory, pipe) for directory in files.controlnets],
        control_images=[edges(image) for image in controls] if files.canny else controls,
    )
    return partial(paint, pipe, canvas)


def _check_mask(files: CanvasFiles) -> None:
    """Pass a mask of the init picture's shape: another would not lie where it was drawn."""
    if files.init_image is None or files.mask is None:
        return
    (width, height), (wide, high) = files.init_image.image.size, files.mask.image.size
    if abs(width * high - wide * height) > max(width * high, wide * height) / 50:
        raise ConfigError(
            f"the mask {files.mask.path} is {wide} x {high} and {files.init_image.path} "
            f"{width} x {height}; draw the mask on the picture, in its shape"
        )


def _noted(picture: Picture) -> dict[str, str]:
    return {"picture": picture.path.name, "sha256": picture.sha256}
