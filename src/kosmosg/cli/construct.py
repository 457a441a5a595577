"""`kosmosg construct`: from pictures to shards of training examples."""

import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kosmosg.cli import edits, screening
from kosmosg.cli.data_convert import check_apart, tell_left_out
from kosmosg.cli.data_tables import many
from kosmosg.cli.screening import Bad, Evaluation, decisive
from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    from kosmosg.construct.config import ConstructConfig
    from kosmosg.construct.executor import Summary
    from kosmosg.construct.job import Worker
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
Workers = Annotated[
    int,
    typer.Option(
        min=0, help="Processes or actors that load the models; 0 is this process, to find mistakes."
    ),
]
Executor = Annotated[
    Literal["local", "ray"],
    typer.Option(help="Processes of this machine, or actors of a Ray cluster."),
]
Address = Annotated[
    str | None, typer.Option(help="Of the Ray cluster.", show_default="one on this machine")
]
Gpus = Annotated[float, typer.Option(min=0, help="GPUs of each Ray actor; 0.5 has two share one.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many shards, to try.")]


@dataclass(frozen=True, kw_only=True)
class _How:
    """Who does the work, and how much may go wrong."""

    workers: int
    kind: Literal["local", "ray"]
    address: str | None
    gpus: float
    bad: float
    evaluation: Sequence[Path]


@dataclass(frozen=True, kw_only=True)
class _Quietly:
    """Makes a worker in a process of its own, where nobody has told the libraries to be quiet.

    `pickled` is the MakeWorker: the libraries are imported when it is read, so not before it is
    called.
    """

    pickled: bytes

    def __call__(self) -> "Worker":
        from kosmosg.cli.options import hide_loading_bars, prepare_libraries

        prepare_libraries()
        hide_loading_bars()
        return pickle.loads(self.pickled)()


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
    workers: Workers = 1,
    executor: Executor = "local",
    address: Address = None,
    gpus: Gpus = 0.0,
    bad: Bad = 0.1,
    evaluation_set: Evaluation = None,
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
        how = _How(
            workers=workers,
            kind=executor,
            address=address,
            gpus=gpus,
            bad=bad,
            evaluation=evaluation_set or [],
        )
        _construct(chosen, pictures, output, "openimages", how, tables=table or [], limit=limit)


@app.command()
def folder(
    pictures: Input,
    changes: Changes = None,
    output: Output = None,
    config: Config = None,
    recipe: Recipe = "paper",
    workers: Workers = 1,
    executor: Executor = "local",
    address: Address = None,
    gpus: Gpus = 0.0,
    bad: Bad = 0.1,
    evaluation_set: Evaluation = None,
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
        how = _How(
            workers=workers,
            kind=executor,
            address=address,
            gpus=gpus,
            bad=bad,
            evaluation=evaluation_set or [],
        )
        _construct(chosen, pictures, output, "folder", how, tables=[], limit=limit)


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
    how: _How,
    *,
    tables: Sequence[Path],
    limit: int | None,
) -> None:
    if output is None:
        raise ConfigError("where to? name the folder of the shards with -o SHARDS")
    from kosmosg.cli.options import prepare_libraries

    prepare_libraries()
    from kosmosg import config as configuration
    from kosmosg.construct import executor
    from kosmosg.construct.chain import MakeWorker
    from kosmosg.construct.folder import list_units
    from kosmosg.construct.leaks import read_hashes
    from kosmosg.construct.models import provenance_of

    check_apart(pictures, output)
    leaks = read_hashes(how.evaluation) if how.evaluation else None
    units = list_units(pictures, unit_size=config.unit_size)[:limit]
    provenance = provenance_of(config)
    output.mkdir(parents=True, exist_ok=True)
    make_worker = MakeWorker(
        config=config,
        source=source,
        provenance=provenance,
        licences=_licences(tables, output),
        leaks=leaks,
    )
    decides = {**configuration.to_dict(config), "source": source, "models": provenance}
    decides["evaluation_sets"] = leaks.sum if leaks else None
    summary = executor.run(
        units,
        _Quietly(pickled=pickle.dumps(make_worker)),
        output=output,
        workers=how.workers,
        kind=how.kind,
        skips_limit=how.bad,
        config=decisive(decides),
        pictures=config.pictures,
        address=how.address,
        gpus=how.gpus,
    )
    _tell(summary)
    print(output)
    if summary.failed:
        raise typer.Exit(1)


def _tell(summary: "Summary") -> None:
    counts = summary.counts
    found = f"{many(counts.records, 'example')} in {many(summary.done, 'shard')}"
    print(found, file=sys.stderr)
    tell_left_out(counts.skipped, counts.dropped, counts.named)


def _licences(tables: Sequence[Path], output: Path) -> "Licences | None":
    if not tables:
        return None
    from kosmosg.construct.openimages import Licences, index_licences

    return Licences(index_licences(tables, output / "licences.sqlite"))
