"""`kosmosg train`: run a recipe, changed by field paths; stop and resume it."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
import yaml

from kosmosg.cli import subject
from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    from kosmosg.recipes import Recipe
    from kosmosg.toyworld.nano import NanoConfig
    from kosmosg.train.shapes import Tuning

    Config = NanoConfig | Recipe

app = typer.Typer()

_PREFIX = "nano-"


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="Full size: stage1, stage2, stage3, stage2-as-released, stage3-as-released, "
            "ablation-e2e, ablation-e2e-without-aligner, ablation-decoder-only, "
            "ablation-12-layers, ablation-24-layers. subject: an adapter from pictures of one "
            "subject. Nano: nano-vae, nano-clip, nano-judge, nano-unet, nano-stage1, nano-stage2, "
            "nano-stage3, nano-captioner, nano-segmenter; nano-foundation for the first four in "
            "that order. Or a YAML or JSON file that --print-config wrote.",
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
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="Of a full-size run: its checkpoints and log, and at the end model/.",
            show_default="runs/RECIPE",
        ),
    ] = None,
    workspace: Annotated[
        Path | None,
        typer.Option(
            help="Where nano's parts meet: model/ is the model so far, runs/PART each part's run.",
            show_default="runs/nano",
        ),
    ] = None,
    leg: Annotated[
        int,
        typer.Option(
            min=1,
            help="2 and more train a finished part of nano further: new optimiser, new records, "
            "from the weights in the workspace.",
        ),
    ] = 1,
    scale: Annotated[
        float,
        typer.Option(min=1e-6, help="Multiply nano's number of steps; 0.02 makes a quick proof."),
    ] = 1.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a stopped run, to the bit.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(
            help="Write the newest checkpoint of a full-size run as a model's directory, as its "
            "end does; of a subject's, the adapter. Train nothing.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None,
        typer.Option(help="Short for device=...", show_default=False),
    ] = None,
    pictures: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PICTURE ...",
            help="Of the subject; a NAME.txt beside NAME.jpg says what else is in the picture.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="What the subject is called, such as `my dog`.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The run of a subject.", show_default=False),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the configuration as YAML; train nothing.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print what a full-size run, or a subject's, needs: parameters, memory, FLOPs, "
            "hours; then name what is missing, if anything (exit 2). Train nothing.",
        ),
    ] = False,
    gpus: Annotated[int, typer.Option(min=1, help="How many, for --dry-run.")] = 8,
    gpu_kind: Annotated[
        str,
        typer.Option(
            help="For --dry-run: V100-32GB, A100-40GB, A100-80GB, H100, H200 or RTX4090.",
        ),
    ] = "H100",
    utilisation: Annotated[
        float,
        typer.Option(
            min=0.01, max=1, help="For --dry-run: of the rate that the GPU's maker states."
        ),
    ] = 0.4,
) -> None:
    """Train one part of a model; print the directory of its weights.

    Checkpoints are written every few minutes and on Ctrl-C; the same command with --resume goes on
    as if nothing had happened, after kill -9 too.

    Such as:

      kosmosg train nano-stage3

      kosmosg train nano-stage3 optim.lr=3e-4 steps=500 --workspace runs/try

      kosmosg train nano-stage3 --print-config > my.yaml; kosmosg train my.yaml

      kosmosg train subject --pictures 1.jpg 2.jpg 3.jpg --name "my dog" init=DIR -o runs/dog

      kosmosg train stage3 init=DIR data=FOLDER --run-dir RUN --export DIR

      kosmosg train stage3 init=DIR model.base=DIR --dry-run --gpus 64 --gpu-kind A100-80GB
    """
    from kosmosg import config as configuration
    from kosmosg.cli.options import prepare_libraries

    prepare_libraries()
    from kosmosg.recipes import Recipe

    if export is not None and (dry_run or print_config):
        raise ConfigError(
            "--export writes a model, which --dry-run and --print-config do not; leave one out"
        )
    words = [*(changes or []), *([] if device is None else [f"device={device}"])]
    tell = partial(_tell, gpus=gpus, kind=gpu_kind, utilisation=utilisation) if dry_run else None
    if recipe == subject.RECIPE:
        others = {"run-dir": run_dir, "workspace": workspace, "leg": leg != 1, "scale": scale != 1}
        _refuse(recipe, "of other recipes", others)
        subject.tune(
            words,
            pictures=pictures or (),
            name=name,
            output=output,
            resume=resume,
            export=export,
            print_config=print_config,
            needs=tell,
        )
        return
    if pictures or name or output:
        raise ConfigError("--pictures, --name and --output are for kosmosg train subject")
    configs = _find(recipe)
    full = isinstance(configs[0], Recipe)
    if full:
        _refuse(recipe, "nano's", {"workspace": workspace, "leg": leg != 1, "scale": scale != 1})
    else:
        others = {"run-dir": run_dir, "dry-run": dry_run, "export": export}
        _refuse(recipe, "a full-size recipe's", others)
    configs = [_changed(config, words, scale) for config in configs]
    if print_config:
        print("\n---\n".join(configuration.to_yaml(config).rstrip() for config in configs))
        return
    if tell:
        _dry_run(configs, tell)
        return
    if full:
        place = run_dir or Path("runs") / Path(recipe).stem
        print(_train_full(configs, place, resume=resume, export=export))
        return
    print(_train_nano(configs, workspace or Path("runs/nano"), leg=leg, resume=resume))


def _train_nano(configs: "list[Config]", workspace: Path, *, leg: int, resume: bool) -> Path:
    from kosmosg.cli.options import hide_loading_bars
    from kosmosg.toyworld import workspace as meeting
    from kosmosg.toyworld.nano import NanoConfig

    hide_loading_bars()
    for config in configs:
        assert isinstance(config, NanoConfig)  # they are all of one kind
        meeting.train(config, workspace, leg=leg, resume=resume)
    return workspace / "model"


def _train_full(
    configs: "list[Config]", run_dir: Path, *, resume: bool, export: Path | None
) -> Path:
    from kosmosg import recipes

    (config,) = configs
    assert isinstance(config, recipes.Recipe)
    if export is not None:
        return recipes.export(config, run_dir, export)
    return recipes.train(config, run_dir, resume=resume)


def _dry_run(configs: "list[Config]", tell: "Callable[[Recipe, None, list[str]], None]") -> None:
    from kosmosg.recipes import Recipe
    from kosmosg.train.readiness import missing

    (recipe,) = configs
    assert isinstance(recipe, Recipe)
    lines = missing(recipe.stage, init=recipe.init, data=recipe.data, model=recipe.model)
    tell(recipe, None, lines)


def _tell(
    recipe: "Recipe",
    tuning: "Tuning | None",
    missing: Sequence[str],
    *,
    gpus: int,
    kind: str,
    utilisation: float,
) -> None:
    """Print a run's needs, then what is missing; end with 2 if anything is."""
    from kosmosg.cli.dryrun import tables
    from kosmosg.train.start import nothing_held_out

    print(tables(recipe, gpus=gpus, kind=kind, utilisation=utilisation, tuning=tuning))
    held_out = None if recipe.data is None else nothing_held_out(recipe.stage, recipe.data)
    if held_out is not None:
        print(f"note: {held_out}", file=sys.stderr)
    for line in missing:
        print(f"missing: {line}", file=sys.stderr)
    if missing:
        raise typer.Exit(2)


def _refuse(recipe: str, whose: str, given: dict[str, object]) -> None:
    """Refuse options that would do nothing for this recipe."""
    for name, value in given.items():
        if value:
            raise ConfigError(f"--{name} is {whose}; {recipe} has no use for it, leave it out")


def _find(recipe: str) -> "list[Config]":
    """Return the configurations that a name or a file stands for."""
    from kosmosg import config as configuration
    from kosmosg import recipes
    from kosmosg.toyworld import nano

    if recipe == "nano-foundation":
        return [nano.RECIPES[name]() for name in nano.FOUNDATION]
    if Path(recipe).suffix in {".yaml", ".yml", ".json"}:
        kind = recipes.Recipe if _holds_recipe(Path(recipe)) else nano.NanoConfig
        return [configuration.load(kind, recipe)]
    makes = {**recipes.RECIPES, **{_PREFIX + name: made for name, made in nano.RECIPES.items()}}
    make = makes.get(recipe)
    if make is None:
        names = [*recipes.RECIPES, "nano-foundation", *(_PREFIX + name for name in nano.RECIPES)]
        near = get_close_matches(recipe, names, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"the recipes are {', '.join(names)}"
        raise ConfigError(f"no recipe {recipe!r}; {remedy}")
    return [make()]


def _holds_recipe(path: Path) -> bool:
    """Return whether a file holds a full-size recipe; what cannot be read is found out later."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(data, dict) and "part" not in data  # each of nano's names its part


def _changed(config: "Config", changes: Sequence[str], scale: float) -> "Config":
    """Return the configuration with nano's steps scaled, then the changes applied.

    A path may leave out `train.`, so that `optim.lr` is enough.
    """
    from kosmosg import config as configuration
    from kosmosg.toyworld import nano

    if scale != 1 and isinstance(config, nano.NanoConfig):
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
