"""Workers of this machine: processes, each with its own worker; or this process itself."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Protocol, TypeAlias, runtime_checkable

from kosmosg.construct.job import Broken, Counts, Fatal, Job, Stats, Worker, attempt, describe
from kosmosg.construct.output import share
from kosmosg.construct.unit import Unit
from kosmosg.errors import KosmosGError

END_S = 5.0


@dataclass(frozen=True)
class Ready:
    """The worker is made and waits for a unit."""


@dataclass(frozen=True)
class Died:
    """The process ended in the middle of something; `how` says by what."""

    how: str


News: TypeAlias = Ready | Counts | Stats | Broken | Fatal | Died


@runtime_checkable
class Pool(Protocol):
    """Places, numbered from 0, each for one worker that does one unit at a time."""

    def start(self, place: int) -> None:
        """Make a worker there; it tells when it is ready, or dies."""
        ...

    def give(self, place: int, unit: Unit) -> None:
        """Let the worker there, which has nothing to do, do the unit."""
        ...

    def news(self) -> list[tuple[int, News]]:
        """Return what has happened, by place; waits for it, at most a second."""
        ...

    def close(self) -> None:
        """End all workers, whatever they do."""
        ...


class Here:
    """This process as the only place: for looking for mistakes."""

    def __init__(self, make_worker: Callable[[], Worker], job: Job) -> None:
        self._make_worker, self._job = make_worker, job
        self._worker: Worker | None = None
        self._unit: Unit | None = None

    def start(self, place: int) -> None:
        """Do nothing yet."""
        del place

    def give(self, place: int, unit: Unit) -> None:
        """Keep the unit until the news are asked for."""
        del place
        self._unit = unit

    def news(self) -> list[tuple[int, News]]:
        """Make the worker, or do the unit."""
        if self._worker is None:
            self._worker = self._make_worker()
            return [(0, Ready())]
        if self._unit is None:
            return []
        unit, self._unit = self._unit, None
        return [(0, attempt(unit, self._worker, self._job, lambda _counts: None))]

    def close(self) -> None:
        """Forget the worker."""
        self._worker = None


class Processes:
    """Spawned processes: forking one that has loaded torch can hang it."""

    def __init__(self, make_worker: Callable[[], Worker], job: Job) -> None:
        self._make_worker, self._job = make_worker, job
        self._context = multiprocessing.get_context("spawn")
        self._places: dict[int, tuple[SpawnProcess, Connection]] = {}

    def start(self, place: int) -> None:
        """Spawn a process there."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self._make_worker, self._job), daemon=True
        )
        # Ctrl-C in a terminal reaches every process there. Workers inherit the mask, so that it
        # stops the driver alone, which then ends them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that the worker's death ends the pipe
        self._places[place] = (process, ours)

    def give(self, place: int, unit: Unit) -> None:
        """Send the unit; that a worker has died meanwhile is told with the news."""
        with contextlib.suppress(OSError):
            self._places[place][1].send(unit)

    def news(self) -> list[tuple[int, News]]:
        """Return messages that have come, and deaths."""
        wait([connection for _, connection in self._places.values()], timeout=1.0)
        return [(place, told) for place in list(self._places) for told in self._of(place)]

    def close(self) -> None:
        """Terminate the processes; kill those that do not end."""
        for process, _ in self._places.values():
            process.terminate()
        for process, connection in self._places.values():
            process.join(END_S)
            if process.is_alive():
                process.kill()
                process.join()
            connection.close()
        self._places.clear()

    def _of(self, place: int) -> Iterator[News]:
        process, connection = self._places[place]
        alive = process.is_alive()  # asked first: what it sent before its end is still read below
        try:
            while connection.poll():
                yield connection.recv()
        except (EOFError, OSError):
            alive = False
        if not alive:
            del self._places[place]
            process.join(END_S)
            connection.close()
            yield Died(_how(process.exitcode))


def make_or_fail(make_worker: Callable[[], Worker]) -> Worker | Fatal:
    """Return the worker, or why there is none, in a form that reaches another process."""
    try:
        return make_worker()
    except (KosmosGError, OSError) as error:
        return Fatal(error=error)
    except Exception as error:  # noqa: BLE001 -- it may be any, and many cannot be pickled
        return Fatal(error=KosmosGError(f"a worker cannot be made: {describe(error)}"))


def _serve(connection: Connection, make_worker: Callable[[], Worker], job: Job) -> None:
    threading.Thread(target=_end_with_driver, daemon=True).start()
    with share(job.output), contextlib.suppress(EOFError, BrokenPipeError):
        worker = make_or_fail(make_worker)
        if isinstance(worker, Fatal):
            connection.send(worker)
            return
        connection.send(Ready())
        while True:
            unit = connection.recv()
            connection.send(attempt(unit, worker, job, connection.send))


def _end_with_driver() -> None:
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)


def _how(code: int | None) -> str:
    if code is None:
        return "it closed its pipe"
    if code >= 0:
        return f"it ended with code {code}"
    name = signal.Signals(-code).name
    return f"{name}, which is how a machine short of memory ends it" if code == -9 else name
