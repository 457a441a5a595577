"""Every experiment in its turn: what is finished is kept, what was stopped goes on."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kosmosg import config, hashes
from kosmosg.errors import ConfigError
from kosmosg.toyworld.claims import curves, inversion, shown, training, unets
from kosmosg.toyworld.claims import page as pages
from kosmosg.toyworld.claims.experiment import Budget, Experiment, Setting
from kosmosg.toyworld.claims.rows import Row, load, path_of
from kosmosg.toyworld.version import VERSION
from kosmosg.toyworld.world import load as load_world

EXPERIMENTS: tuple[Experiment, ...] = (
    *shown.EXPERIMENTS,
    *inversion.EXPERIMENTS,
    *curves.EXPERIMENTS,
    *training.EXPERIMENTS,
    *unets.EXPERIMENTS,
)
ROWS, PICTURES, WORK, HOURS = "rows", "pictures", "work", "hours.json"


def chosen(names: Sequence[str]) -> list[Experiment]:
    """Return the experiments of these names or of these claims; all if none is named.

    Raises:
        ConfigError: Naming the wrong one and those that look like it.
    """
    known = {experiment.name for experiment in EXPERIMENTS} | {e.claim for e in EXPERIMENTS}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=3) or sorted({e.claim for e in EXPERIMENTS})
            raise ConfigError(f"there is no experiment {name!r}; did you mean {', '.join(near)}?")
    return [one for one in EXPERIMENTS if not names or {one.name, one.claim} & set(names)]


def run(
    experiments: Sequence[Experiment], directory: Path, out_dir: Path, budget: Budget
) -> list[Row]:
    """Measure what `out_dir` has no row of yet; return the rows of all.

    Ctrl-C loses nothing but the pictures of the row that was being drawn: trainings save.

    Args:
        directory: The model's.
        out_dir: Gets claims.md, rows/NAME.json, pictures/NAME.jpg, and work/NAME of what trains.

    Raises:
        ConfigError: If a row there was measured with another budget or other weights.
    """
    weights = hashes.of_directory(directory)
    finished = {one.name: path_of(out_dir / ROWS, one.name) for one in experiments}
    kept = {
        one.name: _kept(one, finished[one.name], budget, weights)
        for one in experiments
        if finished[one.name].exists()
    }
    due = [one for one in experiments if one.name not in kept]
    _tell(due, budget)
    if due:
        world = load_world(directory, {"text_encoder", "stage2", "stage3"})
        total = sum(one.pictures(budget) for one in due)
        left_s = sum(one.cost_s(budget) for one in due)
        start = time.monotonic()
        with tqdm(total=round(total), unit="picture", mininterval=1.0, dynamic_ncols=True) as bar:
            done_s = 0.0
            for number, one in enumerate(due, 1):
                bar.set_description(f"{number}/{len(due)} {one.name}")
                if done_s:
                    rate = (time.monotonic() - start) / done_s
                    tqdm.write(
                        f"{one.name}: {number} of {len(due)}, about"
                        f" {rate * (left_s - done_s) / 60:.0f} min left",
                        file=sys.stderr,
                    )
                work_dir = out_dir / WORK / one.name
                setting = Setting(
                    world=world,
                    directory=directory,
                    budget=budget,
                    work_dir=work_dir,
                    advance=bar.update,
                )
                kept[one.name] = _measured(one, setting, out_dir, weights)
                done_s += one.cost_s(budget)
    rows = [kept[one.name] for one in experiments]
    page = "".join(pages.page(out_dir / ROWS, f"{PICTURES}/"))
    (out_dir / "claims.md").write_text(page, encoding="utf-8")
    return rows


def _measured(one: Experiment, setting: Setting, out_dir: Path, weights: str) -> Row:
    with _timed(setting.work_dir) as spent:
        try:
            found = one.measure(setting)
        except SystemExit:  # of a training that was told to stop
            sys.stderr.write("kosmosg claims goes on with the same command as it was\n")
            raise
    hours, core_hours = spent()
    row = Row(
        name=one.name,
        claim=one.claim,
        experiment=one.says,
        scores=found.scores,
        judge=found.judge,
        n=found.n,
        seeds=found.seeds,
        config={**_depends(one, setting.budget), "toyworld": VERSION, **found.config},
        weights=weights,
        commit=commit(),
        hours=round(hours, 6),
        core_hours=round(core_hours, 6),
        machine=machine(),
    )
    for name in (ROWS, PICTURES):
        (out_dir / name).mkdir(parents=True, exist_ok=True)
    if found.picture is not None:
        found.picture.save(out_dir / PICTURES / f"{one.name}.jpg", quality=90)
    config.save(row, path_of(out_dir / ROWS, one.name))  # last: then the row is finished
    (setting.work_dir / HOURS).unlink()
    for path in setting.work_dir.rglob("checkpoints"):  # logs and weights stay
        shutil.rmtree(path)
    with suppress(OSError):  # it holds what was trained
        setting.work_dir.rmdir()
    return row


def _depends(one: Experiment, budget: Budget) -> dict[str, Any]:
    """Return the part of the budget that the row depends on."""
    whole = config.to_dict(budget)
    return {name: whole[name] for name in one.budget}


def _kept(one: Experiment, path: Path, budget: Budget, weights: str) -> Row:
    row = load(path)
    for name, value in _depends(one, budget).items():
        if row.config.get(name) != value:
            raise ConfigError(
                f"{path} was measured with {name} {row.config.get(name)}, not {value}; give another"
                " --out, or remove it"
            )
    if row.weights != weights:
        raise ConfigError(f"{path} is of other weights; give another --out, or remove it")
    return row


def foretell(experiments: Sequence[Experiment], out_dir: Path, budget: Budget) -> None:
    """Say what is not measured yet and what it will take."""
    _tell([one for one in experiments if not path_of(out_dir / ROWS, one.name).exists()], budget)


def _tell(due: Sequence[Experiment], budget: Budget) -> None:
    """Say what will be done and what it will take, before it begins."""
    if due:
        hours = sum(one.cost_s(budget) for one in due) / 3600
        names = ", ".join(one.name for one in due)
        sys.stderr.write(f"{len(due)} rows, about {hours:.1f} core-hours: {names}\n")


@contextmanager
def _timed(work_dir: Path) -> Iterator[Callable[[], tuple[float, float]]]:
    """Count hours by the clock and of the processor, those before a stop too."""
    work_dir.mkdir(parents=True, exist_ok=True)
    path = work_dir / HOURS
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else [0.0, 0.0]
    start = (time.monotonic(), time.process_time())

    def spent() -> tuple[float, float]:
        now = (time.monotonic(), time.process_time())
        hours = [old + (n - s) / 3600 for old, n, s in zip(before, now, start, strict=True)]
        return hours[0], hours[1]

    try:
        yield spent
    finally:
        path.write_text(json.dumps(spent()), encoding="utf-8")


def commit() -> str:
    """Return the commit of the code, with a + where it was changed; else the version."""
    here = Path(__file__).parent
    asked = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return version("kosmosg")
    return done.stdout.strip()


def machine() -> str:
    """Return the processor's kind and cores, and the GPU if there is one."""
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}"
