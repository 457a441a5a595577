"""What the jobs of `kosmosg construct` have in common: their options, and how one is run."""

import dataclasses
import functools
import inspect
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from kosmosg.cli.data_convert import check_apart, tell_left_out
from kosmosg.cli.data_tables import many
from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    from kosmosg.construct.job import Worker
    from kosmosg.construct.leaks import Leaks
    from kosmosg.construct.unit import Unit

C = TypeVar("C")

# Fields that change no record: a run may go on on another machine, or with another server.
_ELSEWHERE = frozenset(
    {
        *("device", "directory", "hub", "url", "key_variable", "timeout_s", "retries"),
        *("first_wait_s", "parallel"),
    }
)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """The options of every job, by their names; `with_job_options` adds them to a command."""

    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH=VALUE",
            help="Fields to change, such as filters.min_side=384; --print-config shows them.",
            show_default=False,
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The folder of the shards.", show_default=False),
    ] = None
    config: Annotated[
        Path | None,
        typer.Option(help="A YAML or JSON file that --print-config wrote.", show_default=False),
    ] = None
    workers: Annotated[
        int,
        typer.Option(
            min=0, help="Processes or actors that do the work; 0 is this process, to find mistakes."
        ),
    ] = 1
    executor: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Processes of this machine, or actors of a Ray cluster."),
    ] = "local"
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster.", show_default="one on this machine")
    ] = None
    gpus: Annotated[
        float, typer.Option(min=0, help="GPUs of each Ray actor; 0.5 has two share one.")
    ] = 0.0
    bad: Annotated[
        float,
        typer.Option(min=0, max=1, help="The share of bad pictures beyond which to stop."),
    ] = 0.1
    evaluation_set: Annotated[
        list[Path] | None,
        typer.Option(
            "--evaluation-set",
            metavar="FILE",
            help="Hashes of pictures that become no examples; kosmosg construct hashes makes it. "
            "May be given again.",
            show_default=False,
        ),
    ] = None
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many shards, to try.")
    ] = None
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the configuration as YAML; make nothing.")
    ] = False


def with_job_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command as typer is to see it, each field of its JobOptions an option."""

    @functools.wraps(command)
    def told(**given: Any) -> None:  # noqa: ANN401 -- whatever the command takes
        shared = {field.name: given.pop(field.name) for field in dataclasses.fields(JobOptions)}
        command(**given, options=JobOptions(**shared))

    parameters = dict(inspect.signature(command).parameters)
    del parameters["options"]
    for field in dataclasses.fields(JobOptions):
        parameters[field.name] = inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=field.type,
        )
    told.__signature__ = inspect.Signature(list(parameters.values()))  # pyright: ignore[reportAttributeAccessIssue]
    told.__annotations__ = {name: one.annotation for name, one in parameters.items()}
    return told


def configured(base: C, options: JobOptions) -> C | None:
    """Return the configuration, from --config where it is given, with the changes applied.

    None if it was only to be printed, which is done.

    Raises:
        ConfigError: If the file or a change does not fit.
    """
    from kosmosg import config as configuration

    if options.config is not None:
        base = configuration.load(type(base), options.config)
    chosen = configuration.override(base, options.changes or [])
    if options.print_config:
        print(configuration.to_yaml(chosen), end="")
        return None
    return chosen


def prepare(source: Path, options: JobOptions) -> "tuple[Path, Leaks | None]":
    """Return the folder of the shards, and the pictures that must not get into them.

    Raises:
        ConfigError: If there is no folder, or it is inside the input.
    """
    if options.output is None:
        raise ConfigError("where to? name the folder of the shards with -o SHARDS")
    from kosmosg.cli.options import prepare_libraries

    prepare_libraries()
    from kosmosg.construct.leaks import read_hashes

    check_apart(source, options.output)
    return options.output, read_hashes(options.evaluation_set) if options.evaluation_set else None


def run_job(
    units: "Sequence[Unit]",
    make_worker: "Callable[[], Worker]",
    output: Path,
    options: JobOptions,
    *,
    decides: Mapping[str, Any],
    leaks: "Leaks | None",
    pictures: Literal["jpg", "png"],
) -> None:
    """Make the shards, say what came of it, print their folder.

    Args:
        units: All of the input's.
        make_worker: As `executor.run`.
        output: Where the shards go.
        options: Of the command line.
        decides: Whatever changes the records.
        leaks: What the worker leaves out; they decide as well.
        pictures: How shards keep them.

    Raises:
        typer.Exit: With 1, if units failed.
        KosmosGError: As `executor.run`.
    """
    from kosmosg.construct import executor

    summary = executor.run(
        units[: options.limit],
        make_worker,
        output=output,
        workers=options.workers,
        kind=options.executor,
        skips_limit=options.bad,
        config=_decisive({**decides, "evaluation_sets": leaks.sum if leaks else None}),
        pictures=pictures,
        address=options.address,
        gpus=options.gpus,
    )
    counts = summary.counts
    found = f"{many(counts.records, 'example')} in {many(summary.done, 'shard')}"
    print(found, file=sys.stderr)
    tell_left_out(counts.skipped, counts.dropped, counts.named)
    print(output)
    if summary.failed:
        raise typer.Exit(1)


def _decisive(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without what changes no record, for a run that goes on."""
    return {
        name: _decisive(value) if isinstance(value, dict) else value
        for name, value in tree.items()
        if name not in _ELSEWHERE
    }


@dataclass(frozen=True, kw_only=True)
class Quietly:
    """Makes a worker in a process of its own, where nobody has told the libraries to be quiet.

    `pickled` is what makes it: the libraries are imported when it is read, so not before it is
    called.
    """

    pickled: bytes

    def __call__(self) -> "Worker":
        """Return the worker."""
        from kosmosg.cli.options import hide_loading_bars, prepare_libraries

        prepare_libraries()
        hide_loading_bars()
        return pickle.loads(self.pickled)()
