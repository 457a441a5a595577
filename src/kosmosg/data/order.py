"""In which order the records of shards come, epoch after epoch: a function of (seed, number)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from kosmosg.data.mixture import seed_of


class Order:
    """Finds record number n of an endless run over shards, each record once an epoch.

    Shards come in an order drawn from (seed, epoch); the records of `window` shards that follow one
    another are then mixed, by (seed, epoch, window), so that reading stays near in a few files.

    Args:
        counts: Records of each shard, at least one in all.
        seed: None: as they stand, in each epoch.

    Source:
        docs/adr/0015.
    """

    def __init__(self, counts: Sequence[int], *, seed: int | None, window: int) -> None:
        self.num_records = sum(counts)
        self._counts = np.array(counts, np.int64)
        self._seed = seed
        self._window = window
        # The last epoch and the last window, each set at once: threads may ask for different ones.
        self._epoch: tuple[int, Int[np.ndarray, " shards"], Int[np.ndarray, " windows"]] | None
        self._epoch = None
        self._mixed: tuple[tuple[int, int], Int[np.ndarray, "records 2"]] | None = None

    def __getitem__(self, number: int) -> tuple[int, int]:
        """Return the shard of record `number`, and the record's place there."""
        epoch, place = divmod(number, self.num_records)
        shards, ends = self._of_epoch(epoch)
        window = int(np.searchsorted(ends, place, side="right"))
        begin = int(ends[window - 1]) if window else 0
        shard, record = self._of_window(epoch, window, shards)[place - begin].tolist()
        return shard, record

    def _of_epoch(self, epoch: int) -> tuple[Int[np.ndarray, " shards"], Int[np.ndarray, " _"]]:
        """Return the shards in their order, and how many records there are up to each window."""
        known = self._epoch
        if known is not None and known[0] == epoch:
            return known[1], known[2]
        shards = np.arange(len(self._counts))
        if self._seed is not None:
            shards = np.random.default_rng(seed_of(self._seed, epoch)).permutation(shards)
        starts = np.arange(0, len(shards), self._window)
        ends = np.add.reduceat(self._counts[shards], starts).cumsum()
        self._epoch = epoch, shards, ends
        return shards, ends

    def _of_window(
        self, epoch: int, window: int, shards: Int[np.ndarray, " shards"]
    ) -> Int[np.ndarray, "records 2"]:
        """Return (shard, record) of all records of a window, mixed."""
        known = self._mixed
        if known is not None and known[0] == (epoch, window):
            return known[1]
        chosen = shards[window * self._window : (window + 1) * self._window]
        counts = self._counts[chosen]
        begin = np.repeat(counts.cumsum() - counts, counts)
        order = np.stack([np.repeat(chosen, counts), np.arange(counts.sum()) - begin], 1)
        if self._seed is not None:
            order = np.random.default_rng(seed_of(self._seed, epoch, window)).permutation(order)
        self._mixed = (epoch, window), order
        return order
