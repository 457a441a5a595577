"""A run over many units: workers that die are replaced, finished units are kept."""

import contextlib
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from kosmosg.construct.job import (
    Broken,
    Counts,
    Fatal,
    Job,
    Stats,
    Worker,
    read_done,
    sum_of,
    versions,
    write_json,
)
from kosmosg.construct.journal import path_of, read_deaths
from kosmosg.construct.output import hold, remove_journals, remove_leftovers, wait_for_workers
from kosmosg.construct.processes import Died, Here, News, Pool, Processes, Ready
from kosmosg.construct.tally import Tally
from kosmosg.construct.unit import Unit
from kosmosg.errors import ConfigError, KosmosGError

SUMMARY = "summary"
ATTEMPTS = 3  # at a unit that dies between its records, and at making a worker
IN_A_ROW = 10  # deaths at a unit while no record comes through; units that fail before a run stops

_NAME = re.compile(r"[A-Za-z0-9_\-]+")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What came of a run, and of those before it in the same directory; OUTPUT/summary.json.

    Args:
        units: How many there are.
        done: How many have their shard.
        failed: Why others have not, by name.
        counts: Of the records of all shards.
        seconds: Of this run.
        worker_seconds: Of all units together, earlier runs included.
        versions: Of this run.
        stopped: What ended the run before its time, if anything did.
    """

    units: int
    done: int
    failed: Mapping[str, str]
    counts: Counts
    seconds: float
    worker_seconds: float
    versions: Mapping[str, str]
    stopped: str | None


def run(
    units: Sequence[Unit],
    make_worker: Callable[[], Worker],
    *,
    output: Path,
    workers: int,
    kind: Literal["local", "ray"],
    skips_limit: float,
    config: Mapping[str, Any],
    pictures: Literal["png", "jpg"] = "png",
    address: str | None = None,
    gpus: float = 0.0,
) -> Summary:
    """Turn each unit into OUTPUT/name.tar and OUTPUT/name.json, and return what came of all.

    Units that are done are left as they are, so the same command goes on after any end. A unit
    whose worker dies is tried again, by a new one, and the records that it died of are worked on
    alone; one that kills then as well is skipped. A unit that dies between records is named as
    failed after `ATTEMPTS`, and so is one of which `IN_A_ROW` workers died while no record came
    through; the others go on: look at `Summary.failed`.

    Args:
        make_worker: Called once in each process or actor, where models are loaded; it must be
            picklable: a function of a module, or a frozen dataclass with `__call__`.
        workers: Processes or actors; 0 is this process, to look for mistakes.
        kind: Processes of this machine, or actors of a Ray cluster.
        skips_limit: The share of records, 0 to 1, that may be bad.
        config: Whatever changes the records, ready for JSON; shards that were made with another
            are refused.
        pictures: How pictures are kept; see `samples.to_bytes`.
        address: Of the Ray cluster.
        gpus: Of each actor.

    Raises:
        ConfigError: If units, workers or the output directory do not fit.
        DataError: If too many records are bad.
        KosmosGError: If workers cannot be made, or `IN_A_ROW` units failed one after another.
        OSError: If a shard cannot be written.
    """
    _check(units, workers, kind)
    job = Job(output=output, config=config, pictures=pictures)
    with hold(output):
        state = _Run(units, job, skips_limit)
        try:
            if state.queue:
                with _pool(make_worker, job, workers, kind, address, gpus) as pool:
                    state.drive(pool, max(workers, 1))
            state.tally.check()
        except BaseException as error:
            state.stopped = str(error) or type(error).__name__
            raise
        finally:
            state.close()
        return state.summary()


class _Run:
    """Which units wait, who does which, and what came of those that are done."""

    def __init__(self, units: Sequence[Unit], job: Job, skips_limit: float) -> None:
        self.job, self.num_units, self.tally = job, len(units), Tally(skips_limit)
        self.queue: deque[Unit] = deque()
        self.busy: dict[int, Unit] = {}
        self.idle: list[int] = []
        self.attempts: Counter[str] = Counter()
        self.named: Counter[str] = Counter()  # deaths of which the records are known
        self.stillborn, self.in_a_row = 0, 0
        self.failed: dict[str, str] = {}
        self.done, self.worker_seconds = 0, 0.0
        self.stopped: str | None = None
        for unit in units:
            stats = read_done(unit, job)
            if stats is None:
                self.queue.append(unit)
            else:
                self._count(stats)
        self.begun, self.records_before = time.monotonic(), self.tally.records
        # In a file each redraw is another line, so they come rarely there.
        interval = 0.5 if sys.stderr.isatty() else 30
        self.bar = tqdm(
            total=len(units),
            initial=self.done,
            desc=job.output.name,
            unit="unit",
            mininterval=interval,
            miniters=0,
            smoothing=0,
        )

    def drive(self, pool: Pool, workers: int) -> None:
        """Do the units that wait."""
        for place in range(min(workers, len(self.queue))):
            pool.start(place)
        while self.queue or self.busy:
            for place, news in pool.news():
                self._take(pool, place, news)
            while self.queue and self.idle:
                place = self.idle.pop()
                self.busy[place] = self.queue.popleft()
                pool.give(place, self.busy[place])
            self._show()

    def close(self) -> None:
        """Finish the progress line, keep the summary, say how to go on."""
        self.bar.close()
        with contextlib.suppress(ConfigError):  # the next run will say so
            wait_for_workers(self.job.output)
        remove_leftovers(self.job.output)
        remove_journals(self.job.output)
        try:
            write_json(self.job.output / f"{SUMMARY}.json", self.summary())
        except OSError:
            if self.stopped is None:  # else what stopped the run is to be told
                raise
        if self.done < self.num_units:
            sys.stderr.write(
                f"{self.done} of {self.num_units} units are done and kept in {self.job.output};"
                " the same command goes on\n"
            )

    def summary(self) -> Summary:
        return Summary(
            units=self.num_units,
            done=self.done,
            failed=self.failed,
            counts=self.tally.done,
            seconds=round(time.monotonic() - self.begun, 3),
            worker_seconds=round(self.worker_seconds, 3),
            versions=versions(),
            stopped=self.stopped,
        )

    def _take(self, pool: Pool, place: int, news: News) -> None:
        match news:
            case Ready():
                self.stillborn = 0
                self.idle.append(place)
            case Counts():
                if place in self.busy:
                    self.tally.see(place, self.busy[place].name, news)
                    self.tally.check()
            case Stats():
                self._leave(place)
                self._finish(news)
                self.idle.append(place)
            case Broken():
                self._again(self._leave(place), news.message, may_try=news.again)
                self.idle.append(place)
            case Died():
                self._replace(pool, place, news)
            case Fatal():
                raise news.error

    def _replace(self, pool: Pool, place: int, death: Died) -> None:
        if place in self.idle:
            self.idle.remove(place)
        elif place in self.busy:
            unit = self._leave(place)
            stats = read_done(unit, self.job)  # it may have died just after it had finished
            if stats is None:
                self._mourn(unit, f"its worker died: {death.how}")
            else:
                self._finish(stats)
        else:
            self.stillborn += 1
            if self.stillborn == ATTEMPTS:
                raise KosmosGError(
                    f"{ATTEMPTS} workers in a row died while they were made; the last:"
                    f" {death.how}; take fewer workers or smaller models"
                )
        if len(self.queue) > len(self.idle):
            pool.start(place)

    def _leave(self, place: int) -> Unit:
        self.tally.leave(place)
        return self.busy.pop(place)

    def _finish(self, stats: Stats) -> None:
        self.tally.forget(stats.unit)
        self._count(stats)
        self.in_a_row = 0
        self.bar.update()
        self.tally.check()

    def _mourn(self, unit: Unit, why: str) -> None:
        """Have the unit tried again without limit while its journal says that this is of use."""
        deaths = read_deaths(path_of(self.job.output, unit.name), sum_of(unit, self.job))
        self.tally.condemn(unit.name, deaths)
        self.tally.check()
        is_named = deaths.named > self.named[unit.name]
        self.named[unit.name] = deaths.named
        if not is_named:
            self._again(unit, why, may_try=True)
        elif deaths.in_a_row < IN_A_ROW:
            self.queue.append(unit)
        else:
            self._fail(unit, f"{why}; so did {IN_A_ROW} in a row, and no record came through")

    def _again(self, unit: Unit, why: str, *, may_try: bool) -> None:
        self.attempts[unit.name] += 1
        if may_try and self.attempts[unit.name] < ATTEMPTS:
            self.queue.append(unit)  # behind the others: memory may be short only now
        else:
            self._fail(unit, why + (f" ({ATTEMPTS} attempts)" if may_try else ""))

    def _fail(self, unit: Unit, why: str) -> None:
        self.tally.forget(unit.name)
        self.failed[unit.name] = why
        tqdm.write(f"unit {unit.name} failed: {why}", file=sys.stderr)
        self.in_a_row += 1
        if self.in_a_row == IN_A_ROW:
            raise KosmosGError(
                f"{IN_A_ROW} units in a row failed; the last: {why}; mend that, then give the same"
                " command"
            )

    def _count(self, stats: Stats) -> None:
        self.tally.add(stats.counts)
        self.worker_seconds += stats.seconds
        self.done += 1

    def _show(self) -> None:
        records = self.tally.records
        rate = (records - self.records_before) / max(time.monotonic() - self.begun, 1e-9)
        self.bar.set_postfix_str(f"{records} records, {rate:.1f} records/s", refresh=False)
        self.bar.update(0)


@contextlib.contextmanager
def _pool(
    make_worker: Callable[[], Worker],
    job: Job,
    workers: int,
    kind: Literal["local", "ray"],
    address: str | None,
    gpus: float,
) -> Iterator[Pool]:
    if workers == 0:
        pool: Pool = Here(make_worker, job)
    elif kind == "local":
        pool = Processes(make_worker, job)
    else:
        from kosmosg.construct.actors import Actors

        pool = Actors(make_worker, job, address=address, gpus=gpus)
    try:
        yield pool
    finally:
        pool.close()


def _check(units: Sequence[Unit], workers: int, kind: Literal["local", "ray"]) -> None:
    if workers < 0 or (kind == "ray" and workers < 1):
        raise ConfigError(f"workers is {workers}; give at least {'1' if kind == 'ray' else '0'}")
    names = Counter(unit.name for unit in units)
    for name, count in names.items():
        if not _NAME.fullmatch(name) or name == SUMMARY:
            raise ConfigError(
                f"unit name {name[:80]!r} cannot name a shard; take letters, digits, '_' and '-'"
            )
        if count > 1:
            raise ConfigError(f"{count} units are called {name!r}; each needs a name of its own")
