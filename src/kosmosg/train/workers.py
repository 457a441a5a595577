"""Reading ahead in processes: the same micro-batches in the same order, whatever their number."""

import gc
import mmap
import os
import pickle
import signal
import socket
import struct
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from kosmosg.data.skips import Skips
from kosmosg.errors import KosmosGError
from kosmosg.train.prefetch import MicroBatch, Plan, Prefetch

AHEAD = 2  # micro-batches that each process prepares or holds ready, which bounds the memory
ALIGNMENT = 64

_REQUEST = struct.Struct("<QQQ")  # a step, first index, index behind the last
_ANSWER = struct.Struct("<Q")  # bytes in the file that comes with it
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def read_ahead(plan: Plan, *, workers: int) -> "Prefetch | Workers":
    """Return what iterates over the steps' micro-batches, prepared in processes; 0: in a thread."""
    return Workers(plan, workers=workers) if workers else Prefetch(plan)


class Workers:
    """Iterates over the steps' micro-batches, prepared ahead by processes in turn.

    The processes are forked, so that a stream and a stage need not be pickled; they compute in one
    thread and touch no GPU. A batch comes back in memory that both sides share, without a copy on
    this side. An exception is raised to whoever asks for that step, and what a process left out is
    counted here. Each process ends by itself as soon as this one is gone, however that came about;
    Ctrl-C is left to this one.
    """

    def __init__(self, plan: Plan, *, workers: int) -> None:
        self._plan = plan
        self._processes: list[tuple[int, socket.socket]] = []
        for _ in range(workers):
            self._processes.append(_fork(plan, [ours for _, ours in self._processes]))

    def __iter__(self) -> Iterator[tuple[int, list[MicroBatch]]]:
        plan, count, pieces = self._plan, len(self._processes), self._plan.pieces
        wanted = enumerate((step, piece) for step in plan.steps for piece in pieces)
        for _ in range(AHEAD * count):
            self._ask(wanted)
        taken = 0
        for step in plan.steps:
            prepared = []
            for _ in pieces:
                prepared += self._answer(*self._processes[taken % count])
                self._ask(wanted)
                taken += 1
            yield step, prepared

    def _ask(self, wanted: Iterator[tuple[int, tuple[int, range]]]) -> None:
        for number, (step, piece) in wanted:
            _, ours = self._processes[number % len(self._processes)]
            try:
                ours.sendall(_REQUEST.pack(step, piece.start, piece.stop))
            except OSError:  # the process is gone, which its next answer will say
                pass
            return

    def _answer(self, process: int, ours: socket.socket) -> list[MicroBatch]:
        try:
            head, descriptors, _, _ = socket.recv_fds(ours, _ANSWER.size, 1)
        except OSError:
            head, descriptors = b"", []
        if not descriptors:
            raise KosmosGError(
                f"a process that reads ahead (pid {process}) {_end(process)}; if memory was short,"
                " use fewer data.workers or a smaller micro_batch"
            )
        prepared, error, where, skips = _unpacked(descriptors[0], *_ANSWER.unpack(head))
        if skips is not None and self._plan.skips is not None:
            self._plan.skips.add(skips)
        if error is not None:
            error.add_note(f"In a process that reads ahead:\n{where}")
            raise error
        return prepared

    def close(self) -> None:
        """End the processes: they hold nothing that could be lost."""
        while self._processes:
            process, ours = self._processes.pop()
            ours.close()
            try:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
            except (ProcessLookupError, ChildProcessError):  # it ended before, and was noticed
                pass


def _fork(plan: Plan, others: list[socket.socket]) -> tuple[int, socket.socket]:
    """Return a new process that answers requests, and the socket to it."""
    ours, theirs = socket.socketpair()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        with warnings.catch_warnings():
            # From Python 3.12: other threads may hold locks. The only other thread is the
            # progress line's, and nothing that is its own is used there.
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
        if process == 0:
            _live(plan, theirs, [ours, *others])
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    theirs.close()
    return process, ours


def _live(plan: Plan, theirs: socket.socket, others: list[socket.socket]) -> None:
    """Be a process that reads ahead: never return."""
    try:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        for other in others:  # held open here, they would hide the end of the process behind them
            other.close()
        gc.freeze()  # what came along is not looked through again, which would copy its memory
        torch.set_num_threads(1)
        if plan.skips is not None:
            plan.skips.take()
        while request := theirs.recv(_REQUEST.size, socket.MSG_WAITALL):
            step, start, stop = _REQUEST.unpack(request)
            descriptor, size = _packed(_prepared(plan, step, range(start, stop)))
            socket.send_fds(theirs, [_ANSWER.pack(size)], [descriptor])
            os.close(descriptor)
    except OSError:  # nobody is there to be answered
        pass
    except BaseException:  # noqa: BLE001 - what else there is must not return to the other's code
        traceback.print_exc()
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


# ------------------------------------------------------------------- from process to process


class _Pickler(pickle.Pickler):
    """Leaves the contents of tensors out of the pickle, as buffers of their own."""

    def reducer_override(self, obj: object) -> Any:  # noqa: ANN401 - as the library says
        if type(obj) is not Tensor:
            return NotImplemented
        values = obj.detach().contiguous()
        raw = values.reshape(-1).view(torch.uint8).numpy()
        return _tensor, (pickle.PickleBuffer(raw), values.dtype, tuple(values.shape))


def _tensor(raw: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not len(raw):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(raw, dtype=dtype).reshape(shape)


def _packed(answer: Answer) -> tuple[int, int]:
    """Return a file that exists in memory alone and holds an answer; and its size."""
    buffers: list[pickle.PickleBuffer] = []
    stream = BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(answer)
    parts = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    sizes = [len(part) for part in parts]
    descriptor = _memory_file()
    position = _write(descriptor, struct.pack(f"<{len(parts) + 1}Q", len(parts), *sizes), 0)
    for part in parts:
        position = _write(descriptor, part, position + -position % ALIGNMENT)
    return descriptor, position


def _memory_file() -> int:
    # Not under /dev/shm, which containers keep small.
    if sys.platform == "linux":
        return os.memfd_create("kosmosg-batch")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write(descriptor: int, part: bytes | memoryview, position: int) -> int:
    """Write at a place and return the place behind."""
    rest = memoryview(part)
    while rest:
        written = os.pwrite(descriptor, rest, position)
        rest, position = rest[written:], position + written
    return position


def _unpacked(descriptor: int, size: int) -> Answer:
    """Return the answer in a file; its tensors are that file's memory, and free it."""
    try:
        memory = memoryview(mmap.mmap(descriptor, size))
    finally:
        os.close(descriptor)
    (count,) = struct.unpack_from("<Q", memory)
    position = 8 * (count + 1)
    parts = []
    for length in struct.unpack_from(f"<{count}Q", memory, 8):
        position += -position % ALIGNMENT
        parts.append(memory[position : position + length])
        position += length
    # Written by our own process a moment ago.
    return pickle.loads(parts[0], buffers=parts[1:])
