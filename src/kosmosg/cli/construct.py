"""`kosmosg construct`: from pictures to shards of training examples."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kosmosg.cli import edits, screening
from kosmosg.cli.construct_job import (
    JobOptions,
    Quietly,
    configured,
    prepare,
    run_job,
    with_job_options,
)
from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    from kosmosg.construct.config import ConstructConfig
    from kosmosg.construct.openimages import Licences

app = typer.Typer(
    name="construct",
    help="Make training examples of pictures: caption, entities, masks.",
)
app.add_typer(edits.app)
app.add_typer(screening.app)

Input = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT",
        help="A folder of pictures at any depth, a folder of tars, or a tar.",
        show_default=False,
    ),
]
Recipe = Annotated[
    str, typer.Option(metavar="paper|as-released|nano", help="Where there is no --config.")
]


@app.callback()
def _group() -> None: ...


@app.command()
@with_job_options
def openimages(
    pictures: Input,
    options: JobOptions,
    table: Annotated[
        list[Path] | None,
        typer.Option(
            help="A CSV of Open Images with ImageID, OriginalURL, License, Author: each example "
            "then says whose its picture is. May be given again.",
            show_default=False,
        ),
    ] = None,
    recipe: Recipe = "paper",
) -> None:
    """Make examples of Open Images' pictures, as the paper did of 9 million.

    \b
    Example:
      kosmosg construct openimages train_0/ -o shards/ --table image_ids_and_rotation.csv
    """  # noqa: D301 -- click's mark for text to be kept as it is
    _construct("openimages", pictures, options, recipe, tables=table or [])


@app.command()
@with_job_options
def folder(pictures: Input, options: JobOptions, recipe: Recipe = "paper") -> None:
    """Make examples of any pictures; with captions=beside those with NAME.txt need no captioner.

    \b
    Example:
      kosmosg construct folder photos/ -o shards/ captions=beside
    """  # noqa: D301 -- click's mark for text to be kept as it is
    _construct("folder", pictures, options, recipe, tables=[])


def _construct(
    source: str, pictures: Path, options: JobOptions, recipe: str, *, tables: Sequence[Path]
) -> None:
    from kosmosg import config as configuration

    config = configured(_recipe(recipe), options)
    if config is None:
        return
    output, leaks = prepare(pictures, options)
    from kosmosg.construct.chain import MakeWorker
    from kosmosg.construct.folder import list_units
    from kosmosg.construct.models import provenance_of

    units = list_units(pictures, unit_size=config.unit_size)
    provenance = provenance_of(config)
    output.mkdir(parents=True, exist_ok=True)
    make_worker = MakeWorker(
        config=config,
        source=source,
        provenance=provenance,
        licences=_licences(tables, output),
        leaks=leaks,
    )
    run_job(
        units,
        Quietly(pickled=pickle.dumps(make_worker)),
        output,
        options,
        decides={**configuration.to_dict(config), "source": source, "models": provenance},
        leaks=leaks,
        pictures=config.pictures,
    )


def _recipe(name: str) -> "ConstructConfig":
    from kosmosg.construct.config import RECIPES

    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; the recipes are {', '.join(RECIPES)}")
    return RECIPES[name]()


def _licences(tables: Sequence[Path], output: Path) -> "Licences | None":
    if not tables:
        return None
    from kosmosg.construct.openimages import Licences, index_licences

    return Licences(index_licences(tables, output / "licences.sqlite"))
