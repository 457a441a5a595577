"""`kosmosg data`: training data converted, checked, looked at and counted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kosmosg.cli.data_convert import convert
from kosmosg.cli.output import check_output, write_files

if TYPE_CHECKING:
    from tqdm import tqdm

app = typer.Typer(
    name="data", help="Convert, check, look at and count training data; see docs/data.md."
)
app.command()(convert)

Paths = Annotated[
    list[Path],
    typer.Argument(metavar="PATH...", help="Tars, or directories with tars.", show_default=False),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Look at the first N samples only.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command()
def validate(paths: Paths, limit: Limit = None, as_json: AsJson = False) -> None:
    """Say what is wrong with shards, file by file; exit 1 if anything is.

    Each problem is a line: the shard, the file of a sample in it, line and column, and what to do.
    Every picture, cut-out and mask is decoded; keys must be unique across the shards. A shard that
    breaks off is named with the byte, and the others are read on. Samples as img2dataset writes
    them are read as captions, which is said. A table of what there is follows.

    \b
    Example:
      kosmosg data validate examples/shards
    """  # noqa: D301 -- click's mark for text to be kept as it is
    import json
    import sys

    from kosmosg.cli.data_tables import of_report
    from kosmosg.data.looking import find_tars
    from kosmosg.data.validate import Report, validate

    tars, report = find_tars(paths), Report()
    problems: list[dict[str, object]] = []
    with _progress(tars) as bar:
        for problem in validate(tars, report, limit=limit, done=bar.update):
            if as_json:
                problems.append(vars(problem))
            else:
                bar.write(str(problem), file=sys.stdout)
    if as_json:
        said = {"ok": not report.reasons, **vars(report), "problems": problems}
        print(json.dumps(said, indent=2, ensure_ascii=False))
    else:
        print("\n".join(of_report(report)))
    if report.reasons:
        raise typer.Exit(1)


@app.command()
def preview(
    paths: Paths,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="PAGE.html", help="The page to write."),
    ],
    limit: Annotated[int, typer.Option(min=1, help="How many samples to show.")] = 24,
    seed: Annotated[
        int, typer.Option(min=0, help="Which samples, drawn evenly from all shards.")
    ] = 0,
) -> None:
    """Write a page that shows samples: prompts, entities, masks, targets, provenance.

    One HTML file with its pictures inside, without scripts. A prompt is shown as training composes
    it, with all its words and with those of its entities dropped.

    \b
    Example:
      kosmosg data preview examples/shards -o page.html
    """  # noqa: D301
    import sys

    from kosmosg.data.looking import find_tars
    from kosmosg.data.preview import choose, page

    check_output(output, (), suffix=".html")
    chosen = choose(find_tars(paths), limit=limit, seed=seed)
    write_files({output: "".join(page(chosen, seed=seed)).encode()})
    print(f"{len(chosen.samples)} of {chosen.num_samples} samples: {output}", file=sys.stderr)


@app.command()
def stats(paths: Paths, limit: Limit = None, as_json: AsJson = False) -> None:
    """Count what shards hold: records, bytes, sizes of pictures, lengths of texts, entities.

    \b
    Example:
      kosmosg data stats examples/shards
    """  # noqa: D301
    import json

    from kosmosg.cli.data_tables import of_stats
    from kosmosg.data.looking import find_tars
    from kosmosg.data.stats import collect

    tars = find_tars(paths)
    with _progress(tars) as bar:
        counted = collect(tars, limit=limit, done=bar.update)
    if as_json:
        print(json.dumps(vars(counted), indent=2, default=vars))
    else:
        print("\n".join(of_stats(counted)))


@contextmanager
def _progress(tars: Sequence[Path]) -> "Iterator[tqdm]":
    import sys

    from tqdm import tqdm

    from kosmosg.data.looking import total_bytes

    quiet = not sys.stderr.isatty()
    with tqdm(
        total=total_bytes(tars), unit="B", unit_scale=True, leave=False, disable=quiet
    ) as bar:
        yield bar
