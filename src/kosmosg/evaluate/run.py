"""A run of a benchmark: its folder, its pictures drawn by all ranks, its result and its page."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kosmosg import config, hashes, release
from kosmosg.drawing import DType, load
from kosmosg.evaluate import pictures, report, result
from kosmosg.evaluate.metrics import Score
from kosmosg.evaluate.pictures import DrawConfig, Task
from kosmosg.evaluate.result import Result, Row, Seen

PICTURES = "pictures"
REPORT_FILE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a folder's pictures are drawn with, kept there: others are not drawn beside them."""

    benchmark: str
    protocol: dict[str, Any]
    data: dict[str, str]
    drawing: DrawConfig
    dtype: DType
    model: dict[str, str]


def weights_of(model: str | Path) -> dict[str, str]:
    """Return the sha256 of a model's parts.

    Raises:
        CheckpointError: If there is no such model.
    """
    return hashes.of_parts(release.find(model), (*release.PARTS, "tokenizer"))


def side_of(model: str | Path) -> int:
    """Return the side of the pictures that a model draws where nobody says otherwise.

    Raises:
        CheckpointError: If there is no such model.
    """
    return release.read_generation_config(release.find(model)).height


def draw(run: Run, tasks: Sequence[Task], model: str | Path, folder: Path, *, device: str) -> bool:
    """Draw what is missing; return whether this process is the one that scores.

    Under torchrun each process draws its share, and the first waits for the others.

    Raises:
        ConfigError: If the folder's pictures were drawn otherwise.
        KosmosGError: As drawing.
    """
    rank, num_ranks = (
        int(os.environ.get(name, one)) for name, one in (("RANK", 0), ("WORLD_SIZE", 1))
    )
    pictures.open_run(folder, run)
    pipe = load(model, dtype=run.dtype, device=device)
    where = folder / PICTURES
    pictures.draw(pipe, tasks, where, run.drawing, rank=rank, num_ranks=num_ranks)
    if rank:
        return False
    pictures.wait(tasks, where)
    for left in folder.rglob(".*.part"):  # of ranks that were killed while they wrote
        left.unlink(missing_ok=True)
    return True


def finish(
    run: Run,
    folder: Path,
    *,
    encoders: dict[str, Seen],
    scores: dict[str, Score],
    num_pictures: int,
    oracle: dict[str, Score] | None = None,
    rows: Sequence[Row] = (),
    facts: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Result:
    """Write what was found as result.json and report.html; return it.

    Args:
        run: Whose pictures were scored.
        folder: Of the run.
        encoders: That scored, by score.
        scores: Means over all pictures.
        num_pictures: That were scored.
        oracle: Of real pictures.
        rows: Of each picture.
        facts: More of the protocol, which only scoring could tell.
        notes: For the reader.
    """
    oracle = oracle or {}
    made = Result(
        benchmark=run.benchmark,
        protocol={**run.protocol, **(facts or {})},
        encoders=encoders,
        data=run.data,
        drawing=config.to_dict(run.drawing)
        | {"dtype": run.dtype, "seeds": pictures.SEEDS[run.drawing.noise]},
        num_pictures=num_pictures,
        model=run.model,
        scores=scores,
        oracle=oracle,
        notes=[*notes, *result.warnings(scores, oracle)],
        rows=list(rows),
        versions=result.versions(),
    )
    result.save(made, folder)
    page = "".join(report.page(made, folder / PICTURES))
    pictures.replace(folder / REPORT_FILE, page.encode())
    return made
