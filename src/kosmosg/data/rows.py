"""Packed rows of stage 1 as a stream: measured once, then read by position like any record."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Int

from kosmosg.data.measure import Source, measure_shards
from kosmosg.data.mixture import Mixture
from kosmosg.data.order import Order
from kosmosg.data.packing import SEQ_LEN, Lengths, Piece, pack, pieces
from kosmosg.data.skips import Skips
from kosmosg.errors import ConfigError, DataError
from kosmosg.sequence import Segment
from kosmosg.tokenizer import Tokenizer

BATCH_TOKENS = 1_200_000
WEIGHTS = {"text": 5, "pairs": 5, "interleaved": 2}
# Rows one after another without anything that can be read, after which reading gives up.
MAX_EMPTY = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A packed row: what it holds of each document, and the documents' keys."""

    key: str
    documents: tuple[str, ...]
    segments: tuple[Segment, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """A shard's rows.

    Attributes:
        bounds: Of `pack`.
        left_out: The records that are damaged or without ids.
        fill: The share of the rows' positions that hold something, 0 to 1.
    """

    bounds: Int[np.ndarray, "bounds 3"]
    left_out: frozenset[int]
    fill: float

    @property
    def num_rows(self) -> int:
        """Return how many rows there are."""
        return len(self.bounds) - 1


def pack_shards(
    source: Source,
    tokenizer: Tokenizer,
    *,
    num_latents: int,
    skips: Skips,
    seq_len: int = SEQ_LEN,
    cache_dir: Path | None = None,
    threads: int = 2,
) -> list[Packed]:
    """Return the rows of all shards, from the lengths of their pieces (`measure_shards`).

    Args:
        skips: Counts the records that are left out, in the shards' order.
        cache_dir: Where the lengths are kept; None: nowhere.

    Raises:
        ConfigError: If a picture is longer than a row, or there is nothing to pack.
        DataError: If too many records are left out.
    """
    packed: list[Packed] = []
    for shard in measure_shards(
        source, tokenizer, num_latents=num_latents, cache_dir=cache_dir, threads=threads
    ):
        skips.keep(len(shard.lengths.counts) - len(shard.errors))
        for error in shard.errors:
            skips.skip(error)
        packed.append(_pack(shard.lengths, seq_len))
    if not any(shard.num_rows for shard in packed):
        raise ConfigError(
            f"the {source.num_shards} shards hold nothing to pack ({str(skips) or 'no records'});"
            " name others"
        )
    return packed


def fill_rate(packed: Sequence[Packed]) -> float:
    """Return the share of all rows' positions that hold something, 0 to 1."""
    rows = sum(shard.num_rows for shard in packed)
    return sum(shard.fill * shard.num_rows for shard in packed) / rows


def _pack(lengths: Lengths, seq_len: int) -> Packed:
    bounds = pack(lengths, seq_len=seq_len)
    owner = np.repeat(np.arange(len(lengths.counts)), lengths.counts)
    # A `<s>` for each record with ids, and for each row that does not begin with a record.
    opened = len(np.unique(owner[lengths.sizes > 0])) + int(bounds[:-1, 1:].any(1).sum())
    used = int(lengths.sizes.sum()) + opened
    return Packed(
        bounds=bounds,
        left_out=frozenset(np.flatnonzero(lengths.counts == 0).tolist()),
        fill=used / max(1, (len(bounds) - 1) * seq_len),
    )


class PackedRows:
    """An endless stream of packed rows: record n is a pure function of (seed, n).

    An epoch has each row once, in the manner of `Order`. A record that can no longer be read is
    left out of its row and counted; a row of nothing else gives way to the next.

    Args:
        packed: Of `pack_shards`, for this source.
        seed: Of the order; None: that of the files.
        skips: Counts what is left out while reading.

    Raises:
        ConfigError: If the rows are of another number of shards.
    """

    def __init__(
        self,
        source: Source,
        packed: Sequence[Packed],
        *,
        seed: int | None,
        skips: Skips,
        window: int = 8,
    ) -> None:
        if len(packed) != source.num_shards:
            raise ConfigError(
                f"rows of {len(packed)} shards for a source of {source.num_shards}; pack it again"
            )
        self.skips = skips
        self._source = source
        self._packed = packed
        self._order = Order([shard.num_rows for shard in packed], seed=seed, window=window)

    @property
    def num_rows(self) -> int:
        """Return how many rows an epoch has."""
        return self._order.num_records

    def batch(self, step: int, size: int) -> list[Row]:
        """Return rows number `step * size` to `(step + 1) * size - 1`."""
        return [self._readable(step * size + offset) for offset in range(size)]

    def _readable(self, number: int) -> Row:
        for attempt in range(MAX_EMPTY):
            row = self._read(*self._order[number + attempt])
            if row.segments:
                return row
        raise DataError(
            f"rows {number} to {number + MAX_EMPTY - 1} hold no record that can be read:"
            f" {self.skips}; look at the shards",
            reason="unreadable rows",
        )

    def _read(self, shard: int, row: int) -> Row:
        packed, records = self._packed[shard], self._source.shard(shard)
        keys: list[str] = []
        segments: list[Segment] = []
        for index, first, last in _ranges(*packed.bounds[row : row + 2].tolist()):
            if index in packed.left_out:
                continue
            try:
                record = records[index]
                segment = _segment(pieces(record), first, last)
            except DataError as error:
                self.skips.skip(error)
                continue
            keys.append(record.key)
            segments.append(segment)
            self.skips.keep()
        return Row(key=f"{shard}-{row}", documents=tuple(keys), segments=tuple(segments))


Place: TypeAlias = tuple[int, int]  # a piece, and an id in it


def _ranges(first: list[int], last: list[int]) -> Iterator[tuple[int, Place, Place | None]]:
    """Yield each record between two bounds: its number, where it begins, where it is cut."""
    (start, *begin), (stop, piece, token) = first, last
    for index in range(start, stop):
        yield index, (begin[0], begin[1]) if index == start else (0, 0), None
    if piece or token:
        yield stop, (begin[0], begin[1]) if stop == start else (0, 0), (piece, token)


def _segment(parts: Sequence[Piece], first: Place, last: Place | None) -> Segment:
    piece, start = first
    if last is None:
        return Segment(parts=parts[piece:], start=start, ends=True)
    end, stop = last
    return Segment(
        parts=parts[piece : end + (stop > 0)], start=start, stop=stop or None, ends=False
    )


def batch_rows(tokens: int = BATCH_TOKENS, *, seq_len: int = SEQ_LEN) -> int:
    """Return how many rows make a batch of so many tokens: whole blocks of 5 + 5 + 2.

    Example:
        >>> batch_rows(), batch_rows() * 2048
        (588, 1204224)
    """
    block = sum(WEIGHTS.values())
    return max(1, round(tokens / seq_len / block)) * block


def blend(*, text: PackedRows, pairs: PackedRows, interleaved: PackedRows, seed: int) -> Mixture:
    """Return stage 1's stream: rows of text, captioned pictures and pages, 5:5:2.

    A batch of 588 rows (`batch_rows`) of 2048 positions holds 245, 245 and 98 of them: 0.50M, 0.50M
    and 0.20M tokens.

    Source:
        Paper appendix A: 1.2 million tokens a batch, of which 0.5M text, 0.5M captioned pictures
        and 0.2M interleaved data.
    """
    sources = {"text": text, "pairs": pairs, "interleaved": interleaved}
    return Mixture(sources, WEIGHTS, seed=seed)
