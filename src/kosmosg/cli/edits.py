"""`kosmosg construct instructpix2pix` and `pairs`: other people's edits, screened."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kosmosg.cli.construct_job import (
    JobOptions,
    Quietly,
    configured,
    prepare,
    run_job,
    with_job_options,
)

if TYPE_CHECKING:
    from kosmosg.construct.unit import Unit

app = typer.Typer()


@app.command()
@with_job_options
def instructpix2pix(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="InstructPix2Pix's folder.", show_default=False)
    ],
    options: JobOptions,
) -> None:
    """Make edits of InstructPix2Pix's folders; no model is needed.

    \b
    Example:
      kosmosg construct instructpix2pix clip-filtered/ -o shards/ filters.min_side=384
    """  # noqa: D301 -- click's mark for text to be kept as it is
    from kosmosg.construct.edits import prompts_units

    _edits("instructpix2pix", source, options, prompts_units)


@app.command()
@with_job_options
def pairs(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="A folder with target/ and control/, or control_1/ and so on, and NAME.txt.",
            show_default=False,
        ),
    ],
    options: JobOptions,
) -> None:
    """Make edits of targets and their controls; no model is needed.

    \b
    Example:
      kosmosg construct pairs my-edits/ -o shards/ --evaluation-set dreambench.txt
    """  # noqa: D301 -- click's mark for text to be kept as it is
    from kosmosg.construct.edits import pairs_units

    _edits("pairs", source, options, pairs_units)


def _edits(
    name: str, source: Path, options: JobOptions, units_of: "Callable[..., Sequence[Unit]]"
) -> None:
    """Make the shards of edits, without those that the filters or evaluation sets leave out."""
    from kosmosg import config as configuration
    from kosmosg.construct.config import EditsConfig

    config = configured(EditsConfig(), options)
    if config is None:
        return
    output, leaks = prepare(source, options)
    from kosmosg.construct.edits import MakeEditsWorker
    from kosmosg.construct.models import classifier_of

    decides = {**configuration.to_dict(config), **classifier_of(config), "source": name}
    make_worker = MakeEditsWorker(config=config, leaks=leaks)
    has_model = config.filters.classifier is not None
    run_job(
        units_of(source, unit_size=config.unit_size),
        Quietly(pickled=pickle.dumps(make_worker)) if has_model else make_worker,
        output,
        options,
        decides=decides,
        leaks=leaks,
        pictures=config.pictures,
    )
