"""Init picture, mask and ControlNets as they are typed: `--init-image`, `--controlnet`."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kosmosg.cli.prompt import open_picture
from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    from kosmosg.cli.options import Options
    from kosmosg.note import Picture

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


def check_canvas(options: "Options") -> None:
    """Pass options each of which has what it needs.

    Raises:
        ConfigError: Naming the option that lacks another.
    """
    nets, images = len(options.controlnet), len(options.control_image)
    if nets != images:
        raise ConfigError(
            f"there are {nets} --controlnet and {images} --control-image; give one picture for "
            "each ControlNet"
        )
    if options.canny and not images:
        raise ConfigError("--canny draws the edges of control pictures; give --control-image too")
    if options.init_image is None and (options.mask is not None or options.strength is not None):
        option = "--mask" if options.mask is not None else "--strength"
        raise ConfigError(f"{option} needs --init-image, the picture to start from")


def canvas_arguments(options: "Options") -> dict[str, Any]:
    """Return what `drawing.draw` is called with, its pictures opened; nothing if none is given.

    Raises:
        CheckpointError: If a ControlNet's directory has no weights.
        ConfigError: If the mask has another shape than the init picture.
        PromptError: If a picture does not exist or is damaged.
    """
    from kosmosg.controlnet import weights_of
    from kosmosg.hashes import of_file
    from kosmosg.note import File

    given: dict[str, Any] = {}
    if options.init_image is not None:
        given |= {"init_image": open_picture(options.init_image), "strength": options.strength}
    if options.mask is not None:
        given["mask"] = open_picture(options.mask)
        _check_mask(given["init_image"], given["mask"])
    if options.controlnet:
        weights = [weights_of(directory) for directory in options.controlnet]
        given["controlnets"] = [File(path=path, sha256=of_file(path)) for path in weights]
        given["control_images"] = [open_picture(name) for name in options.control_image]
        given["canny"] = options.canny
    return given


def canvas_pictures(arguments: Mapping[str, Any]) -> list["Picture"]:
    """Return every picture among the arguments of `drawing.draw` that is not of the prompt."""
    given = [arguments.get("init_image"), arguments.get("mask")]
    return [one for one in (*given, *arguments.get("control_images", ())) if one is not None]


def note_scaling(arguments: Mapping[str, Any]) -> None:
    """Say which pictures of the canvas are not of the size to be drawn."""
    size = (arguments["width"], arguments["height"])
    for picture in canvas_pictures(arguments):
        if picture.image.size != size:
            print(
                f"{picture.path} is {picture.image.width} x {picture.image.height}; its middle is "
                f"scaled to {size[0]} x {size[1]}",
                file=sys.stderr,
            )


def _check_mask(init_image: "Picture", mask: "Picture") -> None:
    """Pass a mask of the init picture's shape: another would not lie where it was drawn."""
    (width, height), (wide, high) = init_image.image.size, mask.image.size
    if abs(width * high - wide * height) > max(width * high, wide * height) / 50:
        raise ConfigError(
            f"the mask {mask.path} is {wide} x {high} and {init_image.path} {width} x {height}; "
            "draw the mask on the picture, in its shape"
        )
