"""Reading ahead: records are drawn and collated in a thread while the step computes."""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kosmosg.data.mixture import Stream
from kosmosg.train.stage import Stage


@dataclass(frozen=True)
class MicroBatch:
    """One piece of a step's global batch: where it starts, how much it weighs, whose it is."""

    first_index: int
    weight: int
    keys: tuple[str, ...]
    batch: Any


def cut(stage: Stage, records: Sequence[Any], *, micro_batch: int) -> list[MicroBatch]:
    """Return the records of a step as collated micro-batches."""
    pieces = []
    for first in range(0, len(records), micro_batch):
        part = records[first : first + micro_batch]
        batch = stage.collate(part)
        keys = tuple(str(getattr(record, "key", first + i)) for i, record in enumerate(part))
        pieces.append(MicroBatch(first, stage.weight(batch), keys, batch))
    return pieces


def to_device(batch: Any, device: torch.device) -> Any:  # noqa: ANN401 - each stage has its own
    """Return the batch on the device: a tensor, a tuple or dict of such, or what has `to`."""
    if isinstance(batch, dict):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(to_device(value, device) for value in batch)
    return batch.to(device) if hasattr(batch, "to") else batch


class Prefetch:
    """Iterates over the steps' micro-batches, prepared `depth` steps ahead in a thread.

    An exception raised while preparing a step is raised to whoever asks for that step.
    """

    def __init__(
        self,
        stage: Stage,
        stream: Stream,
        *,
        steps: range,
        global_batch_size: int,
        micro_batch: int,
        depth: int = 2,
    ) -> None:
        self._queue: queue.Queue[list[MicroBatch] | BaseException] = queue.Queue(depth)
        self._stopping = threading.Event()
        self._steps = steps

        def prepare(step: int) -> list[MicroBatch] | BaseException:
            try:
                records = stream.batch(step, global_batch_size)
                return cut(stage, records, micro_batch=micro_batch)
            except BaseException as error:  # noqa: BLE001 - it is raised again in the loop's thread
                return error

        def work() -> None:
            for step in steps:
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
            prepared = self._queue.get()
            if isinstance(prepared, BaseException):
                raise prepared
            yield step, prepared

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._stopping.set()
        self._thread.join()
