"""`kosmosg construct hashes` and `dedupe`: what must not be trained on, or not twice."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def hashes(
    pictures: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="A folder of pictures at any depth.", show_default=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="The file of hashes, ending in .txt."),
    ],
) -> None:
    """List the perceptual hashes of an evaluation set, for --evaluation-set.

    \b
    Example:
      kosmosg construct hashes dreambooth/dataset/ -o dreambench.txt
    """  # noqa: D301 -- click's mark for text to be kept as it is
    from tqdm import tqdm

    from kosmosg.cli.output import check_output, write_files
    from kosmosg.construct.leaks import hash_pictures, to_text
    from kosmosg.data.readers.files import PICTURES, files_in
    from kosmosg.errors import DataError

    check_output(output, [], suffix=".txt")
    files = files_in(pictures, *PICTURES)
    if not files:
        raise DataError(f"{pictures} holds no pictures; name the folder of an evaluation set")
    found = hash_pictures(pictures, tqdm(files, unit="picture"))
    write_files({output: to_text(found).encode()})
    print(output)


@app.command()
def dedupe(
    shards: Annotated[
        Path,
        typer.Argument(
            metavar="SHARDS", help="The folder that a construct command wrote.", show_default=False
        ),
    ],
    distance: Annotated[
        int,
        typer.Option(min=0, max=3, help="Bits of 64 in which hashes of one picture may differ."),
    ] = 0,
) -> None:
    """Drop examples whose picture an example before them has; colours do not count.

    Shards are written again in place, each whole; after any end the same command goes on.
    """
    from kosmosg.construct.dedupe import dedupe as drop

    done = drop(shards, distance=distance)
    for one, other in list(done.pairs.items())[:5]:
        print(f"{one} repeats {other}", file=sys.stderr)
    print(f"{done.dropped} dropped, {done.records} stay", file=sys.stderr)
    print(shards)
