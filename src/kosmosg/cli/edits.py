"""`kosmosg construct instructpix2pix` and `pairs`: other people's edits, screened."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from kosmosg.cli.data_convert import Settings, convert_to
from kosmosg.cli.screening import Bad, Evaluation, decisive

app = typer.Typer()

Changes = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PATH=VALUE",
        help="What is left out, such as filters.min_side=384: filters are those of kosmosg "
        "construct folder. device=cpu|cuda is their classifier's.",
        show_default=False,
    ),
]
PictureFormat = Annotated[
    Literal["jpg", "png"],
    typer.Option(help="jpg (quality 95) for photographs; png keeps every pixel."),
]


@app.command()
def instructpix2pix(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="InstructPix2Pix's folder.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The folder of the shards.", show_default=False)
    ],
    changes: Changes = None,
    pictures: PictureFormat = "jpg",
    bad: Bad = 0.1,
    evaluation_set: Evaluation = None,
) -> None:
    """Make edits of InstructPix2Pix's folders; no model is needed.

    \b
    Example:
      kosmosg construct instructpix2pix clip-filtered/ -o shards/ filters.min_side=384
    """  # noqa: D301 -- click's mark for text to be kept as it is
    _edits("instructpix2pix", source, output, changes, pictures, bad, evaluation_set)


@app.command()
def pairs(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="A folder with target/ and control/, or control_1/ and so on, and NAME.txt.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The folder of the shards.", show_default=False)
    ],
    changes: Changes = None,
    pictures: PictureFormat = "jpg",
    bad: Bad = 0.1,
    evaluation_set: Evaluation = None,
) -> None:
    """Make edits of targets and their controls; no model is needed.

    \b
    Example:
      kosmosg construct pairs my-edits/ -o shards/ --evaluation-set dreambench.txt
    """  # noqa: D301 -- click's mark for text to be kept as it is
    _edits("folders", source, output, changes, pictures, bad, evaluation_set)


def _edits(
    format_name: str,
    source: Path,
    output: Path,
    changes: Sequence[str] | None,
    pictures: Literal["jpg", "png"],
    bad: float,
    evaluation: Sequence[Path] | None,
) -> None:
    """Convert edits, without those that the filters or evaluation sets leave out."""
    from kosmosg import config as configuration
    from kosmosg.cli.options import prepare_libraries
    from kosmosg.construct.config import EditsConfig
    from kosmosg.construct.leaks import read_hashes
    from kosmosg.construct.models import classifier_of, load_filter
    from kosmosg.construct.screen import passing_records, screened

    config = configuration.override(EditsConfig(), changes or [])
    leaks = read_hashes(evaluation) if evaluation else None
    decides = {**configuration.to_dict(config), **classifier_of(config)}
    decides["evaluation_sets"] = leaks.sum if leaks else None
    settings = Settings(format=format_name, pictures=pictures, screen=decisive(decides))
    if config.filters.classifier is not None:
        prepare_libraries()
    judge = load_filter(config)
    convert_to(
        source,
        output,
        settings,
        bad=bad,
        screen=lambda records, skips: screened(
            passing_records(records, config.filters, judge, skips), config.filters, leaks, skips
        ),
    )
