"""Workers on many machines: Ray actors, each with its own worker. Only this file imports ray."""

import re
import threading
from collections.abc import Callable
from typing import Any

from kosmosg.construct.job import Broken, Counts, Fatal, Job, Stats, Worker, attempt
from kosmosg.construct.output import share
from kosmosg.construct.processes import Died, News, Ready, make_or_fail
from kosmosg.construct.unit import Unit
from kosmosg.errors import ConfigError

ASK_S = 1.0


class Actors:
    """A pool of actors on a Ray cluster; the output directory must be one on all its machines.

    Args:
        address: Of the cluster; None starts one on this machine, or takes the one that this
            process is connected to.
        gpus: Of each actor; Ray hides all others from it.

    Raises:
        ConfigError: If Ray is not installed, there is no cluster at the address, or an actor fits
            on none of its machines.
    """

    def __init__(
        self,
        make_worker: Callable[[], Worker],
        job: Job,
        *,
        address: str | None = None,
        gpus: float = 0.0,
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                "executor ray needs Ray; pip install 'kosmosg[construct]', or take executor local"
            ) from error
        self._ray: Any = ray  # its types say little of its options
        self._make_worker, self._job = make_worker, job
        self._ours = not ray.is_initialized()
        if self._ours:
            _connect(ray, address)
        self._check_fits(gpus)
        # One thread works, the other answers how far it is.
        self._Actor = self._ray.remote(num_cpus=1, num_gpus=gpus, max_concurrency=2)(_Actor)
        self._places: dict[int, Any] = {}
        self._answers: dict[Any, tuple[int, bool]] = {}  # by place; whether it is of work

    def start(self, place: int) -> None:
        """Ask the cluster for an actor."""
        actor = self._Actor.remote(self._make_worker, self._job)
        self._places[place] = actor
        self._answers[actor.prepare.remote()] = (place, True)

    def give(self, place: int, unit: Unit) -> None:
        """Send the unit."""
        actor = self._places[place]
        self._answers[actor.work.remote(unit)] = (place, True)
        if (place, False) not in self._answers.values():  # a second would take the thread of work
            self._answers[actor.counts.remote()] = (place, False)

    def news(self) -> list[tuple[int, News]]:
        """Return answers that have come, and deaths."""
        if not self._answers:
            return []
        answered, _ = self._ray.wait(
            list(self._answers), num_returns=len(self._answers), timeout=ASK_S
        )
        news: list[tuple[int, News]] = []
        for answer in answered:
            if answer not in self._answers:  # of an actor whose death another answer has told
                continue
            place, is_work = self._answers.pop(answer)
            try:
                told: News | None = self._ray.get(answer)
            except self._ray.exceptions.RayError as error:
                told = self._bury(place, error)
            if told is not None:
                news.append((place, told))
            if not is_work and self._works(place):
                self._answers[self._places[place].counts.remote()] = (place, False)
        return news

    def close(self) -> None:
        """Kill the actors; end the cluster if it was started here."""
        for actor in self._places.values():
            self._ray.kill(actor)
        self._places.clear()
        self._answers.clear()
        if self._ours:
            self._ray.shutdown()

    def _works(self, place: int) -> bool:
        return (place, True) in self._answers.values()

    def _bury(self, place: int, error: Exception) -> Died:
        self._answers = {ref: of for ref, of in self._answers.items() if of[0] != place}
        self._ray.kill(self._places.pop(place))
        lines = str(error).strip().splitlines() or ["no reason given"]
        # What was raised while an actor was made stands last; how a process ended stands first.
        raised = re.match(r"[\w.]+(Error|Exception)\b", lines[-1].strip())
        reason = lines[-1].strip() if raised else f"{type(error).__name__}: {lines[0]}"
        return Died(reason)

    def _check_fits(self, gpus: float) -> None:
        """Pass a cluster on which an actor fits; Ray would wait for another machine for ever."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= gpus for node in nodes):
            raise ConfigError(
                f"no machine of the Ray cluster has a processor and {gpus:g} GPUs for an actor;"
                " ask for fewer GPUs, or add a machine"
            )


class _Actor:
    """What lives in Ray's process; every failure is an answer, so that only death is an error."""

    def __init__(self, make_worker: Callable[[], Worker], job: Job) -> None:
        self._make_worker, self._job = make_worker, job
        self._counts = Counts()
        self._changed = threading.Event()

    def prepare(self) -> Ready | Fatal:
        """Make the worker."""
        self._lock = share(self._job.output)
        worker = make_or_fail(self._make_worker)
        if isinstance(worker, Fatal):
            return worker
        self._worker = worker
        return Ready()

    def work(self, unit: Unit) -> Stats | Broken | Fatal:
        """Do a unit."""
        try:
            return attempt(unit, self._worker, self._job, self._tell)
        finally:
            self._counts = Counts()

    def counts(self) -> Counts:
        """Return how far the unit is, when that has changed or a second is over."""
        self._changed.wait(ASK_S)
        self._changed.clear()
        return self._counts

    def _tell(self, counts: Counts) -> None:
        self._counts = counts
        self._changed.set()


def _connect(ray: Any, address: str | None) -> None:  # noqa: ANN401 -- a module
    try:
        ray.init(
            address=address,
            logging_level="ERROR",
            log_to_driver=False,
            **({} if address else {"include_dashboard": False}),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"cannot join the Ray cluster {address or 'of this machine'}:"
            f" {' '.join(str(error).split())[:200]}; start it with `ray start --head`, or correct"
            " the address"
        ) from error
