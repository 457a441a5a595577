"""What shards hold, in numbers."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kosmosg.data.foreign import record_of
from kosmosg.data.looking import kind_of, pictures_of, texts_of, walk
from kosmosg.data.records import Document, Example, Record
from kosmosg.errors import DataError

SIDES = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048)
ASPECTS = (1.01, 1.34, 1.51, 1.79, 2.01, 4.01)
WORDS = (1, 5, 10, 20, 40, 80, 160)
FEW = (1, 2, 3, 4, 5, 9, 17)


@dataclass(kw_only=True)
class Histogram:
    """Counts of values below the first bound, from each bound to the next, and from the last."""

    bounds: tuple[int | float, ...]
    counts: list[int] = field(default_factory=list[int])
    least: int | float = 0
    most: int | float = 0
    total: int | float = 0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: int | float) -> None:
        """Count a value."""
        self.least = min(self.least, value) if self.num_values else value
        self.most = max(self.most, value)
        self.total += value
        self.counts[bisect_right(self.bounds, value)] += 1

    @property
    def num_values(self) -> int:
        """Return how many were counted."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Return their mean, 0 of none."""
        return self.total / max(self.num_values, 1)


def _of(bounds: tuple[int | float, ...]) -> Histogram:
    return Histogram(bounds=bounds)


@dataclass(kw_only=True)
class Stats:
    """Sums and histograms over the records of shards.

    `sides` are the shorter sides of pictures in pixels, `aspects` the longer side over the shorter;
    both leave out entities' pictures. `num_bytes` counts files, without the tar's own.
    """

    num_shards: int
    num_records: Counter[str] = field(default_factory=Counter[str])
    num_bytes: Counter[str] = field(default_factory=Counter[str])
    left_out: Counter[str] = field(default_factory=Counter[str])
    num_keys_twice: int = 0
    sides: Histogram = field(default_factory=lambda: _of(SIDES))
    aspects: Histogram = field(default_factory=lambda: _of(ASPECTS))
    words: Histogram = field(default_factory=lambda: _of(WORDS))
    entities_per_example: Histogram = field(default_factory=lambda: _of(FEW))
    pictures_per_document: Histogram = field(default_factory=lambda: _of(FEW))
    num_masks: int = 0


def collect(
    tars: Sequence[Path],
    *,
    limit: int | None = None,
    done: Callable[[int], object] | None = None,
) -> Stats:
    """Return what is in shards; records that cannot be read are counted by reason.

    Args:
        limit: Samples to look at, at most.
        done: Told the number of bytes that each step got further.
    """
    stats = Stats(num_shards=len(tars))
    keys: set[str] = set()
    for _, key, files in walk(tars, limit=limit, done=done):
        stats.num_keys_twice += key in keys
        if key:
            keys.add(key)
        try:
            if isinstance(files, DataError):
                raise files
            record = record_of(key, files)
        except DataError as error:
            stats.left_out[error.reason] += 1
            continue
        stats.num_bytes[kind_of(record)] += sum(len(data) for data in files.values())
        _add(stats, record)
    return stats


def _add(stats: Stats, record: Record) -> None:
    stats.num_records[kind_of(record)] += 1
    for text in texts_of(record):
        stats.words.add(len(text.split()))
    pictures = pictures_of(record)
    for image in pictures:
        stats.sides.add(min(image.size))
        stats.aspects.add(max(image.size) / min(image.size))
    if isinstance(record, Document):
        stats.pictures_per_document.add(len(pictures))
    if isinstance(record, Example):
        stats.entities_per_example.add(len(record.entities))
        stats.num_masks += sum(entity.mask is not None for entity in record.entities)
