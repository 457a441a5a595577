"""`kosmosg construct`: from pictures to shards of training examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    from kosmosg.construct.chain import MakeWorker, PictureUnit
    from kosmosg.construct.config import ConstructConfig
    from kosmosg.construct.openimages import Licences

app = typer.Typer(
    name="construct",
    help="Make training examples of pictures: caption, entities, masks.",
)

Input = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT",
        help="A folder of pictures at any depth, a folder of tars, or a tar.",
        show_default=False,
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PATH=VALUE",
        help="Fields to change, such as captioner.directory=DIR; --print-config shows them.",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="The folder of the shards.", show_default=False),
]
Config = Annotated[
    Path | None,
    typer.Option(help="A YAML or JSON file that --print-config wrote.", show_default=False),
]
Recipe = Annotated[
    str, typer.Option(metavar="paper|as-released|nano", help="Where there is no --config.")
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the configuration as YAML; make nothing.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many shards, to try.")]


@app.callback()
def _group() -> None: ...


@app.command()
def openimages(
    pictures: Input,
    changes: Changes = None,
    output: Output = None,
    table: Annotated[
        list[Path] | None,
        typer.Option(
            help="A CSV of Open Images with ImageID, OriginalURL, License, Author: each example "
            "then says whose its picture is. May be given again.",
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    recipe: Recipe = "paper",
    limit: Limit = None,
    print_config: PrintConfig = False,
) -> None:
    """Make examples of Open Images' pictures, as the paper did of 9 million.

    \b
    Example:
      kosmosg construct openimages train_0/ -o shards/ --table image_ids_and_rotation.csv
    """  # noqa: D301 -- click's mark for text to be kept as it is
    chosen = _configured(config, recipe, changes or [])
    if not _only_printed(chosen, print_config):
        _construct(chosen, pictures, output, "openimages", tables=table or [], limit=limit)


@app.command()
def folder(
    pictures: Input,
    changes: Changes = None,
    output: Output = None,
    config: Config = None,
    recipe: Recipe = "paper",
    limit: Limit = None,
    print_config: PrintConfig = False,
) -> None:
    """Make examples of any pictures; with captions=beside those with NAME.txt need no captioner.

    \b
    Example:
      kosmosg construct folder photos/ -o shards/ captions=beside
    """  # noqa: D301 -- click's mark for text to be kept as it is
    chosen = _configured(config, recipe, changes or [])
    if not _only_printed(chosen, print_config):
        _construct(chosen, pictures, output, "folder", tables=[], limit=limit)


def _configured(path: Path | None, recipe: str, changes: Sequence[str]) -> "ConstructConfig":
    """Return the configuration of a file or recipe with the changes applied."""
    from kosmosg import config as configuration
    from kosmosg.construct.config import RECIPES, ConstructConfig

    if path is not None:
        base = configuration.load(ConstructConfig, path)
    elif recipe in RECIPES:
        base = RECIPES[recipe]()
    else:
        raise ConfigError(f"no recipe {recipe!r}; the recipes are {', '.join(RECIPES)}")
    return configuration.override(base, changes)


def _only_printed(config: "ConstructConfig", wanted: bool) -> bool:
    from kosmosg import config as configuration

    if wanted:
        print(configuration.to_yaml(config), end="")
    return wanted


def _construct(
    config: "ConstructConfig",
    pictures: Path,
    output: Path | None,
    source: str,
    *,
    tables: Sequence[Path],
    limit: int | None,
) -> None:
    if output is None:
        raise ConfigError("where to? name the folder of the shards with -o SHARDS")
    from kosmosg.cli.options import prepare_libraries

    prepare_libraries()
    from kosmosg.construct.chain import MakeWorker
    from kosmosg.construct.folder import list_units
    from kosmosg.construct.models import provenance_of

    units = list_units(pictures, unit_size=config.unit_size)[:limit]
    provenance = provenance_of(config)
    output.mkdir(parents=True, exist_ok=True)
    make_worker = MakeWorker(
        config=config, source=source, provenance=provenance, licences=_licences(tables, output)
    )
    _run(units, make_worker, output=output)


def _licences(tables: Sequence[Path], output: Path) -> "Licences | None":
    if not tables:
        return None
    from kosmosg.construct.openimages import Licences, index_licences

    return Licences(index_licences(tables, output / "licences.sqlite"))


def _run(units: "Sequence[PictureUnit]", make_worker: "MakeWorker", *, output: Path) -> None:
    """Make the shards that are not there yet, one after another."""
    import json

    from tqdm import tqdm

    from kosmosg.data.samples import to_bytes
    from kosmosg.data.skips import Skips
    from kosmosg.data.tars import write_shard

    missing = [unit for unit in units if not (output / f"{unit.name}.json").is_file()]
    worker = make_worker() if missing else None
    for unit in tqdm(missing, disable=None):
        assert worker is not None
        skips = Skips(limit=0.1)
        samples = (
            (record.key, to_bytes(record, pictures=make_worker.config.pictures))
            for record in worker(unit, skips)
        )
        count = write_shard(output / f"{unit.name}.tar", samples)
        stats = {"records": count, "skipped": skips.reasons, "dropped": skips.dropped}
        (output / f"{unit.name}.json").write_text(json.dumps(stats), encoding="utf-8")
    print(output)
