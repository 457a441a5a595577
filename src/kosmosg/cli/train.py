"""`kosmosg train`: run a recipe, changed by field paths; stop and resume it."""

from collections.abc import Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    from kosmosg.toyworld.nano import NanoConfig

app = typer.Typer()

_PREFIX = "nano-"


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="nano-vae, nano-clip, nano-judge, nano-unet, nano-stage1, nano-stage2, "
            "nano-stage3, nano-captioner, nano-segmenter; nano-foundation for the first four in "
            "that order; or a YAML or JSON file that --print-config wrote.",
            show_default=False,
        ),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH=VALUE",
            help="Fields to change, such as optim.lr=3e-4 or steps=500; --print-config shows them.",
            show_default=False,
        ),
    ] = None,
    workspace: Annotated[
        Path,
        typer.Option(
            help="Where parts meet: model/ is the model so far, runs/PART each part's run."
        ),
    ] = Path("runs/nano"),
    leg: Annotated[
        int,
        typer.Option(
            min=1,
            help="2 and more train a finished part further: new optimiser, new records, from the "
            "weights in the workspace.",
        ),
    ] = 1,
    scale: Annotated[
        float,
        typer.Option(min=1e-6, help="Multiply the number of steps; 0.02 makes a quick proof."),
    ] = 1.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a stopped run, to the bit.")
    ] = False,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None,
        typer.Option(help="Short for device=...", show_default=False),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the configuration as YAML; train nothing.")
    ] = False,
) -> None:
    """Train one part of a model; print the directory of its weights.

    Checkpoints are written every few minutes and on Ctrl-C; the same command with --resume goes on
    as if nothing had happened, after kill -9 too.

    Such as:

      kosmosg train nano-stage3

      kosmosg train nano-stage3 optim.lr=3e-4 steps=500 --workspace runs/try

      kosmosg train nano-stage3 --print-config > my.yaml; kosmosg train my.yaml
    """
    from kosmosg import config as configuration

    words = [*(changes or []), *([] if device is None else [f"device={device}"])]
    configs = [_changed(config, words, scale) for config in _find(recipe)]
    if print_config:
        print("\n---\n".join(configuration.to_yaml(config).rstrip() for config in configs))
        return

    from kosmosg.toyworld import workspace as meeting

    for config in configs:
        meeting.train(config, workspace, leg=leg, resume=resume)
    print(workspace / "model")


def _find(recipe: str) -> "list[NanoConfig]":
    """Return the configurations that a name or a file stands for."""
    from kosmosg import config as configuration
    from kosmosg.toyworld import nano

    if recipe == "nano-foundation":
        return [nano.RECIPES[name]() for name in nano.FOUNDATION]
    if Path(recipe).suffix in {".yaml", ".yml", ".json"}:
        return [configuration.load(nano.NanoConfig, recipe)]
    make = nano.RECIPES.get(recipe.removeprefix(_PREFIX)) if recipe.startswith(_PREFIX) else None
    if make is None:
        names = ["nano-foundation", *(_PREFIX + name for name in nano.RECIPES)]
        near = get_close_matches(recipe, names, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"the recipes are {', '.join(names)}"
        raise ConfigError(f"no recipe {recipe!r}; {remedy}")
    return [make()]


def _changed(config: "NanoConfig", changes: Sequence[str], scale: float) -> "NanoConfig":
    """Return the configuration with its steps scaled, then the changes applied.

    A path may leave out `train.`, so that `optim.lr` is enough.
    """
    from kosmosg import config as configuration
    from kosmosg.toyworld import nano

    if scale != 1:
        config = nano.scaled(config, scale)
    outer = {field.name for field in fields(config)}
    inner = {field.name for field in fields(config.train)}
    for change in changes:
        first = change.partition("=")[0].partition(".")[0]
        if first in inner - outer:
            config = replace(config, train=configuration.override(config.train, [change]))
        else:
            config = configuration.override(config, [change])
    return config
