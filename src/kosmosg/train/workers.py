"""Reading ahead in processes: the same micro-batches in the same order, whatever their number."""

import gc
import os
import pickle
import select
import signal
import socket
import struct
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from kosmosg.data.skips import Place, Skips
from kosmosg.errors import KosmosGError
from kosmosg.memory import hold_on
from kosmosg.train.prefetch import MicroBatch, Plan, Prefetch, too_slow
from kosmosg.train.shared import Receiver, Sender

AHEAD = 2  # micro-batches that each process prepares or holds ready, which bounds the memory

_REQUEST = struct.Struct("<QQQQ")  # a step, first index, index behind the last, piece of memory
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def read_ahead(plan: Plan, *, workers: int, timeout_s: float | None = None) -> "Prefetch | Workers":
    """Return what iterates over the steps' micro-batches, prepared in processes; 0: in a thread."""
    if workers:
        return Workers(plan, workers=workers, timeout_s=timeout_s)
    return Prefetch(plan, timeout_s=timeout_s)


@dataclass(frozen=True, eq=False)
class _Process:
    """A process that reads ahead; `asked` are the pieces of memory that it was told to fill."""

    number: int
    socket: socket.socket
    place: Place
    receiver: Receiver = field(default_factory=Receiver)
    asked: deque[int] = field(default_factory=deque)


class Workers:
    """Iterates over the steps' micro-batches, prepared ahead by processes in turn.

    The processes are forked, so that a stream and a stage need not be pickled; they compute in one
    thread and touch no GPU. A batch comes back in memory that both sides share. An exception is
    raised to whoever asks for that step, and what a process left out is counted here. Each process
    ends by itself as soon as this one is gone, however that came about; Ctrl-C is left to this one.
    One that gives nothing for `timeout_s` is an error.
    """

    def __init__(self, plan: Plan, *, workers: int, timeout_s: float | None) -> None:
        self._plan = plan
        self._timeout_s = timeout_s
        self._processes: list[_Process] = []
        for _ in range(workers):
            self._processes.append(_fork(plan, [process.socket for process in self._processes]))

    def __iter__(self) -> Iterator[tuple[int, list[MicroBatch]]]:
        plan, count, pieces = self._plan, len(self._processes), self._plan.pieces
        wanted = enumerate((step, piece) for step in plan.steps for piece in pieces)
        for _ in range(AHEAD * count):
            self._ask(wanted)
        taken = 0
        for step in plan.steps:
            prepared = []
            for _ in pieces:
                prepared += self._answer(self._processes[taken % count])
                self._ask(wanted)
                taken += 1
            yield step, prepared

    def _ask(self, wanted: Iterator[tuple[int, tuple[int, range]]]) -> None:
        for number, (step, piece) in wanted:
            process = self._processes[number % len(self._processes)]
            process.asked.append(process.receiver.free_piece())
            request = _REQUEST.pack(step, piece.start, piece.stop, process.asked[-1])
            with suppress(OSError):  # the process is gone, which its next answer will say
                process.socket.sendall(request)
            return

    def _answer(self, process: _Process) -> list[MicroBatch]:
        who = f"the process that reads ahead (pid {process.number})"
        asking = select.poll()
        asking.register(process.socket, select.POLLIN)
        if not asking.poll(None if self._timeout_s is None else 1000 * self._timeout_s):
            number = self._processes.index(process)
            raise too_slow(f"worker {number}", who, process.place, self._timeout_s)
        try:
            answer: Answer = process.receiver.receive(process.socket, process.asked.popleft())
        except OSError as error:
            raise KosmosGError(
                f"a process that reads ahead (pid {process.number}) {_end(process.number)}; if"
                " memory was short, use fewer data.workers or a smaller micro_batch"
            ) from error
        prepared, error, where, skips = answer
        if skips is not None and self._plan.skips is not None:
            self._plan.skips.add(skips)
        if error is not None:
            error.add_note(f"In a process that reads ahead:\n{where}")
            raise error
        return prepared

    def close(self) -> None:
        """End the processes: they hold nothing that could be lost."""
        while self._processes:
            process = self._processes.pop()
            process.socket.close()
            # It may have ended before, and been noticed.
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(process.number, signal.SIGKILL)
                os.waitpid(process.number, 0)


def _fork(plan: Plan, others: list[socket.socket]) -> _Process:
    """Return a new process that answers requests."""
    ours, theirs = socket.socketpair()
    place = Place()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        with warnings.catch_warnings():
            # From Python 3.12: other threads may hold locks. The only other thread is the
            # progress line's, and nothing that is its own is used there.
            warnings.simplefilter("ignore", DeprecationWarning)
            number = os.fork()
        if number == 0:
            _live(plan, theirs, [ours, *others], place)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    theirs.close()
    return _Process(number, ours, place)


def _live(plan: Plan, theirs: socket.socket, others: list[socket.socket], place: Place) -> None:
    """Be a process that reads ahead: never return."""
    try:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        for other in others:  # held open here, they would hide the end of the process behind them
            other.close()
        gc.freeze()  # what came along is not looked through again, which would copy its memory
        torch.set_num_threads(1)
        hold_on()
        if plan.skips is not None:
            plan.skips.take()
            plan.skips.place = place
            plan.skips.count_only()  # a process sees a part, whose share may be any
        sender = Sender()
        while request := theirs.recv(_REQUEST.size, socket.MSG_WAITALL):
            step, start, stop, piece = _REQUEST.unpack(request)
            sender.send(theirs, piece, _prepared(plan, step, range(start, stop)))
    except ConnectionError:  # nobody is there to be answered
        pass
    except BaseException:  # noqa: BLE001 - what else there is must not return to the other's code
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    finally:
        os._exit(0)


Answer = tuple[list[MicroBatch], BaseException | None, str, Skips | None]


def _prepared(plan: Plan, step: int, indices: range) -> Answer:
    prepared: list[MicroBatch] = []
    problem, where = None, ""
    try:
        prepared = plan.prepare(step, indices)
    except BaseException as error:  # noqa: BLE001 - it is raised again in the loop's process
        problem, where = error, "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(problem))
        except Exception:  # noqa: BLE001 - exceptions of libraries may fail in any way here
            problem = KosmosGError(f"{type(error).__name__}: {error}")
    return prepared, problem, where, plan.skips.take() if plan.skips is not None else None


def _end(process: int) -> str:
    """Say how a process ended."""
    try:
        _, status = os.waitpid(process, 0)
    except ChildProcessError:
        return "is gone"
    code = os.waitstatus_to_exitcode(status)
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
