"""Reading ahead in a thread: records are drawn and collated while the step computes."""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kosmosg.data.mixture import CountingStream, Stream, read_slice, source_of, sources_of
from kosmosg.data.skips import Place, Skips
from kosmosg.errors import DataError
from kosmosg.train.bysource import Sources
from kosmosg.train.stage import SpreadingStage, Stage


@dataclass(frozen=True)
class MicroBatch:
    """One piece of a step's global batch: where it starts, how much it weighs, whose it is.

    `sources` is None where the stream does not tell them.
    """

    first_index: int
    weight: int
    keys: tuple[str, ...]
    batch: Any
    sources: Sources | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is read: of each of `steps` these `indices` of the global batch, cut and collated."""

    stage: Stage
    stream: Stream
    steps: range
    indices: range
    global_batch_size: int
    micro_batch: int

    @property
    def skips(self) -> Skips | None:
        """Return what the stream counts, if it counts."""
        return self.stream.skips if isinstance(self.stream, CountingStream) else None

    @property
    def pieces(self) -> list[range]:
        """Return the indices of each micro-batch."""
        start, stop = self.indices.start, self.indices.stop
        firsts = range(start, stop, self.micro_batch)
        return [range(first, min(first + self.micro_batch, stop)) for first in firsts]

    def prepare(self, step: int, indices: range) -> list[MicroBatch]:
        """Return these indices of a step, read at once and cut."""
        size = self.global_batch_size
        records = read_slice(self.stream, step, indices, global_batch_size=size)
        first = step * size + indices.start
        return cut(
            self.stage,
            records,
            micro_batch=self.micro_batch,
            start=indices.start,
            sources=_sources(self.stream, range(first, first + len(records))),
        )


def cut(
    stage: Stage,
    records: Sequence[Any],
    *,
    micro_batch: int,
    start: int = 0,
    sources: Sources | None = None,
) -> list[MicroBatch]:
    """Return records, the first of which has index `start`, as collated micro-batches."""
    pieces = []
    for first in range(0, len(records), micro_batch):
        part = records[first : first + micro_batch]
        batch = stage.collate(part)
        keys = tuple(
            str(getattr(record, "key", start + first + i)) for i, record in enumerate(part)
        )
        own = sources and Sources(sources.names, sources.of[first : first + micro_batch])
        pieces.append(MicroBatch(start + first, stage.weight(batch), keys, batch, own))
    return pieces


def _sources(stream: Stream, numbers: range) -> Sources | None:
    names = sources_of(stream)
    place = {name: index for index, name in enumerate(names)}
    own = tuple(place[source_of(stream, number)] for number in numbers) if names else ()
    return Sources(names, own) if names else None


def held_out(
    stage: Stage, stream: Stream, *, share: range, count: int, micro_batch: int
) -> list[MicroBatch]:
    """Return these of the first `count` records of a stream, to validate with.

    What a `SpreadingStage` draws in training is spread evenly over all `count`, so that the figure
    does not depend on the draws' luck, nor on `micro_batch` or on who has which share.
    """
    records = read_slice(stream, 0, share, global_batch_size=count)
    sources = _sources(stream, share)
    pieces = cut(stage, records, micro_batch=micro_batch, start=share.start, sources=sources)
    if not isinstance(stage, SpreadingStage):
        return pieces
    return [
        replace(piece, batch=stage.spread(piece.batch, first=piece.first_index, count=count))
        for piece in pieces
    ]


def to_device(batch: Any, device: torch.device) -> Any:  # noqa: ANN401 - each stage has its own
    """Return the batch on the device: a tensor, a tuple or dict of such, or what has `to`."""
    if isinstance(batch, dict):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(to_device(value, device) for value in batch)
    return batch.to(device) if hasattr(batch, "to") else batch


class Prefetch:
    """Iterates over the steps' micro-batches, prepared `depth` steps ahead in a thread.

    An exception raised while preparing a step is raised to whoever asks for that step, and so is
    one step's taking more than `timeout_s`.
    """

    def __init__(self, plan: Plan, *, timeout_s: float | None, depth: int = 2) -> None:
        self._queue: queue.Queue[list[MicroBatch] | BaseException] = queue.Queue(depth)
        self._stopping = threading.Event()
        self._steps = plan.steps
        self._timeout_s = timeout_s
        self._place = Place()
        self._hangs = False
        if plan.skips is not None:
            plan.skips.place = self._place

        def prepare(step: int) -> list[MicroBatch] | BaseException:
            try:
                return plan.prepare(step, plan.indices)
            except BaseException as error:  # noqa: BLE001 - it is raised again in the loop's thread
                return error

        def work() -> None:
            for step in plan.steps:
                prepared = prepare(step)
                while not self._stopping.is_set():
                    try:
                        self._queue.put(prepared, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if self._stopping.is_set():
                    return

        self._thread = threading.Thread(target=work, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[tuple[int, list[MicroBatch]]]:
        for step in self._steps:
            try:
                prepared = self._queue.get(timeout=self._timeout_s)
            except queue.Empty:
                self._hangs = True
                raise too_slow(
                    f"step {step}", "the thread that reads ahead", self._place, self._timeout_s
                ) from None
            if isinstance(prepared, BaseException):
                raise prepared
            yield step, prepared

    def close(self) -> None:
        """Stop the thread and wait for it, unless it hangs: then it ends with the process."""
        self._stopping.set()
        if not self._hangs:
            self._thread.join()


def too_slow(what: str, who: str, place: Place, timeout_s: float | None) -> DataError:
    """Return the error that names who hangs, and where."""
    return DataError(
        f"{what}: nothing from {who} for {timeout_s} s; the last record that it began to read:"
        f" {place}; look at that record and its disk, or give a larger data_timeout_s",
        reason="too slow",
    )
