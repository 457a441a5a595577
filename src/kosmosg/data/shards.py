"""A stream of the records in WebDataset tars: record number n is a function of (seed, n)."""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kosmosg.data.index import index_tars
from kosmosg.data.mixture import seed_of
from kosmosg.data.order import Order
from kosmosg.data.skips import Skips
from kosmosg.data.tars import read_span
from kosmosg.errors import ConfigError, DataError

ATTEMPTS = 16
OPEN_FILES = 32

Decode = Callable[[str, Mapping[str, bytes]], Any]
Finish = Callable[[int, Any], Any]


class Shards:
    """Endless records of some tars, each once an epoch: shuffled as `Order` has it, or as stored.

    A sample that is damaged, or cannot be finished, is counted, and another of the same tars, drawn
    from (seed, n, attempt), stands in its place. Reading is safe in several threads and after a
    fork.

    Args:
        paths: The tars. Their order matters.
        decode: From a sample's key and files to a record.
        finish: From n and what was decoded to record n of the stream; the latter as it is, if None.
        seed: Of everything drawn.
        window: Tars of a window.
        order: Whether samples are shuffled.
        skips: Counts what is left out, a cut-off tar's rest among it.

    Raises:
        ConfigError: If a tar is missing, or none has a sample.
        DataError: If too much is left out.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        decode: Decode,
        finish: Finish | None = None,
        seed: int,
        skips: Skips,
        window: int = 8,
        order: Literal["shuffled", "stored"] = "shuffled",
    ) -> None:
        if window < 1:
            raise ConfigError(f"window is {window} shards; it must be at least 1")
        self.skips = skips
        self._index = index_tars(paths)
        for damage in self._index.damages:
            skips.skip(damage)
        if not self._index.num_samples:
            why = f" ({self._index.damages[0]})" if self._index.damages else ""
            shown = ", ".join(map(str, paths[:2])) or "no shards"
            raise ConfigError(f"{shown}: no samples in {len(paths)} shards{why}; give others")
        self._decode = decode
        self._finish = finish
        self._seed = seed
        self._files = _Files(max(OPEN_FILES, 2 * window))
        counts = np.diff(self._index.firsts).tolist()
        drawn = seed if order == "shuffled" else None
        self._order = Order(counts, seed=drawn, window=window)

    def __len__(self) -> int:
        """Return the samples of an epoch."""
        return self._index.num_samples

    def batch(self, step: int, size: int) -> list[Any]:
        """Return records number `step * size` to `(step + 1) * size - 1`."""
        return [self._record(step * size + offset) for offset in range(size)]

    def _record(self, number: int) -> object:
        last: DataError | None = None
        for sample in self._candidates(number):
            try:
                record = self._read(sample)
                if self._finish is not None:
                    record = self._finish(number, record)
            except DataError as error:
                self.skips.skip(error)
                last = error
            else:
                self.skips.keep()
                return record
        raise DataError(
            f"{1 + ATTEMPTS} samples in a row could not be used; the last: {last}; look at them"
            " with `kosmosg data validate`",
            reason="too many left out",
        )

    def _candidates(self, number: int) -> Iterator[int]:
        yield self.sample(number)
        for attempt in range(ATTEMPTS):
            yield seed_of(self._seed, "instead", number, attempt) % len(self)

    def _read(self, sample: int) -> object:
        tar = int(np.searchsorted(self._index.firsts, sample, side="right")) - 1
        path = self._index.paths[tar]
        start, stop = map(int, self._index.bounds[sample])
        self.skips.reading(f"{path}, the sample at byte {start}")
        key, files = self._files.read(path, start, stop)
        self.skips.reading(f"{path}: {key}")
        return self._decode(key, files)

    def sample(self, number: int) -> int:
        """Return which of the tars' samples, numbered through, record number `number` is."""
        shard, place = self._order[number]
        return int(self._index.firsts[shard]) + place

    @property
    def num_shards(self) -> int:
        """Return how many tars there are."""
        return len(self._index.paths)

    def shard(self, index: int) -> "Shard":
        """Return the records of one tar, in the order in which they stand there."""
        first, last = map(int, self._index.firsts[index : index + 2])
        return Shard(self._read, range(first, last))

    def fingerprint(self, index: int) -> str:
        """Return what changes when a tar does: its name, size and time, and where its samples are.

        Without its folder, which may move. Archives and images of disks set all times to one, so
        that tars of two folders may differ in their samples alone.
        """
        path = self._index.paths[index]
        status = path.stat()
        first, last = self._index.firsts[index : index + 2]
        samples = hashlib.sha256(self._index.bounds[first:last].tobytes()).hexdigest()
        return f"{path.name} {status.st_size} {status.st_mtime_ns} {samples}"


class Shard(Sequence[Any]):
    """The records of one tar, each read when it is asked for; a damaged one is a DataError."""

    def __init__(self, read: Callable[[int], object], samples: range) -> None:
        self._read = read
        self._samples = samples

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - a record
        """Return one."""
        return self._read(self._samples[index])


class _Files:
    """Tars opened for reading, the last used ones; each process opens its own."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: OrderedDict[Path, _File] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def read(self, path: Path, start: int, stop: int) -> tuple[str, dict[str, bytes]]:
        # The file stays open while it is held here, whoever pushes it out of the row meanwhile.
        file = self._file(path)
        try:
            return read_span(file.descriptor, start, stop, name=str(path))
        except OSError as error:
            raise DataError(
                f"{path}: {error.strerror or error}, reading the sample at byte {start}",
                reason="unreadable shard",
            ) from error

    def _file(self, path: Path) -> "_File":
        if self._process != os.getpid():  # the lock may be held by a thread that did not come along
            self._open, self._lock, self._process = OrderedDict(), threading.Lock(), os.getpid()
        with self._lock:
            file = self._open.get(path)
            if file is None:
                self._open[path] = file = _File(path)
            self._open.move_to_end(path)
            while len(self._open) > self._limit:
                self._open.popitem(last=False)
        return file

    def __reduce__(self) -> tuple[object, ...]:
        return (_Files, (self._limit,))


class _File:
    """An open file that is closed when nobody uses it any more."""

    def __init__(self, path: Path) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(
                f"{path}: {error.strerror or error}; it was there when the run began",
                reason="unreadable shard",
            ) from error

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
