"""Streams of records, and a weighted blend of streams."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from kosmosg.data.skips import Skips
from kosmosg.errors import ConfigError

MAX_BLOCK = 10_000


@runtime_checkable
class Stream(Protocol):
    """An endless source of records that depends on nothing but its seed and the position."""

    def batch(self, step: int, size: int) -> Sequence[Any]:
        """Return records number `step * size` to `(step + 1) * size - 1`.

        Resuming at step k is asking for step k: a stream keeps no state.
        """
        ...


@runtime_checkable
class CountingStream(Stream, Protocol):
    """A stream that counts what it leaves out, in the process that reads it."""

    @property
    def skips(self) -> Skips:
        """Return the counts, which whoever reads may take."""
        ...


@runtime_checkable
class BlendedStream(Stream, Protocol):
    """A stream that says of which source each record is."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the names of the sources; none, if they are not known."""
        ...

    def source(self, number: int) -> str:
        """Return the source of record `number`."""
        ...


def sources_of(stream: Stream) -> tuple[str, ...]:
    """Return the names of a stream's sources; none, if they are not known."""
    return stream.sources if isinstance(stream, BlendedStream) else ()


def source_of(stream: Stream, number: int) -> str:
    """Return the source of record `number` of a stream that has sources."""
    assert isinstance(stream, BlendedStream)  # or there would be none
    return stream.source(number)


def rank_slice(global_batch_size: int, *, rank: int, num_ranks: int) -> range:
    """Return which indices of each step's global batch a rank reads.

    All ranks together read each index once, in order. Noise and coins go by these indices, so that
    the number of ranks changes none of them.

    Example:
        >>> rank_slice(8, rank=1, num_ranks=2)
        range(4, 8)
    """
    if not 0 <= rank < num_ranks <= global_batch_size:
        raise ConfigError(
            f"rank {rank} of {num_ranks} with a global batch of {global_batch_size}; ranks count"
            " from 0, and each needs a record"
        )
    first, last = (global_batch_size * number // num_ranks for number in (rank, rank + 1))
    return range(first, last)


def read_slice(stream: Stream, step: int, indices: range, *, global_batch_size: int) -> list[Any]:
    """Return the records of these indices of a step's global batch, and read no others."""
    first, size = step * global_batch_size + indices.start, len(indices)
    if first % size == 0:  # in one call, which some streams answer faster
        return list(stream.batch(first // size, size))
    return [record for index in range(first, first + size) for record in stream.batch(index, 1)]


def seed_of(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part; the same on every machine.

    Example:
        >>> seed_of(1, 2) == seed_of(1, 2), seed_of(1, 2) == seed_of(2, 1)
        (True, False)
    """
    state = 0x9E3779B97F4A7C15
    for part in parts:
        # Numbers keep their 8 bytes whatever their size, so that parts cannot run together.
        data = part.encode() + b"\xff" if isinstance(part, str) else part.to_bytes(8, "little")
        for byte in data:  # FNV-1a over the bytes, then the finaliser of splitmix64
            state = ((state ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


class Mixture:
    """A blend of streams that holds the weights exactly in every block of their sum.

    With weights 2:2:1 each five records in a row hold two, two and one, in an order drawn from
    (seed, block). No source skips or repeats a record.

    Args:
        sources: Streams by name.
        weights: A whole number for each of them.
        seed: Of the order within blocks.

    Raises:
        ConfigError: If names differ, a weight is below 1, or they add up to more than `MAX_BLOCK`.

    Source:
        Paper section 3.2: stage 3 mixes constructed, edits and captions 2:2:1. Deviation: the
        release draws one source for each batch, unseeded (NUMERICS section 9).
    """

    def __init__(
        self, sources: Mapping[str, Stream], weights: Mapping[str, int], *, seed: int
    ) -> None:
        if not sources or sources.keys() != weights.keys():
            raise ConfigError(
                f"mixture of {sorted(sources)} has weights for {sorted(weights)}; name the same"
            )
        for name, weight in weights.items():
            if weight < 1:
                raise ConfigError(f"weight of {name} is {weight}; it must be at least 1")
        if sum(weights.values()) > MAX_BLOCK:
            raise ConfigError(
                f"weights of {dict(weights)} add up to more than {MAX_BLOCK}, so that their order"
                " would take longer to draw than records to read; give a ratio such as 2:2:1"
            )
        self._names = tuple(weights)
        self._sources = [sources[name] for name in weights]
        self._block = np.repeat(np.arange(len(weights)), list(weights.values()))
        self._weights = list(weights.values())
        self._seed = seed
        # The last block, set at once: threads may ask for different ones.
        self._last: tuple[int, np.ndarray] | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the names of the sources."""
        return self._names

    def source(self, number: int) -> str:
        """Return the source of record `number`."""
        block, place = divmod(number, len(self._block))
        return self._names[int(self._order(block)[place])]

    def batch(self, step: int, size: int) -> list[Any]:
        """Return records number `step * size` to `(step + 1) * size - 1` of the blend."""
        return [self._record(step * size + offset) for offset in range(size)]

    def _order(self, block: int) -> np.ndarray:
        """Return which source each record of a block is of."""
        if len(self._sources) == 1:  # every order is the same, and drawing one takes a while
            return self._block
        known = self._last
        if known is None or known[0] != block:
            rng = np.random.default_rng(seed_of(self._seed, block))
            self._last = known = block, rng.permutation(self._block)
        return known[1]

    def _record(self, index: int) -> object:
        block, place = divmod(index, len(self._block))
        order = self._order(block)
        source = int(order[place])
        # Its records in earlier blocks, and those earlier in this one.
        done = block * self._weights[source] + int((order[:place] == source).sum())
        return self._sources[source].batch(done, 1)[0]
