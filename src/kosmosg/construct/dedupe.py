"""Near-duplicates among the records of many shards: found by their hashes, the first one stays.

A record may have several hashes; it repeats another if each is near the other's in its place.
"""

import dataclasses
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kosmosg.construct.job import (
    Stats,
    read_stats,
    shard_path,
    stats_path,
    write_json,
)
from kosmosg.construct.output import hold
from kosmosg.construct.phash import MAX_DISTANCE
from kosmosg.data.tars import read_index, read_sample, write_shard
from kosmosg.errors import ConfigError, DataError

DUPLICATE = "near-duplicate"

_HASHES = re.compile(r"[0-9a-f]{16}(?: [0-9a-f]{16})*")
_BANDS, _BAND_BITS = MAX_DISTANCE + 1, 16


@dataclass(frozen=True, kw_only=True)
class Deduped:
    """What came of it: records that stay, records dropped by this call, pairs by name to show."""

    records: int
    dropped: int
    pairs: Mapping[str, str]


class Near:
    """64-bit hashes among which near ones are found without comparing all with all.

    Hashes that differ in at most 3 of 64 bits are equal in one of 4 bands of 16 bits, so a hash is
    compared with those that share a band with it. A million random ones take 43 s and 40 MB.
    """

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._bands: list[dict[int, array[int]]] = [{} for _ in range(_BANDS)]

    def find(self, one: int, distance: int) -> int | None:
        """Return the number of the first hash within so many bits; None if there is none."""
        return min(self.found(one, distance), default=None)

    def found(self, one: int, distance: int) -> set[int]:
        """Return the numbers of all hashes within so many bits."""
        found: set[int] = set()
        for band, key in zip(self._bands, _keys(one), strict=True):
            if key in band:
                numbers = np.frombuffer(band[key], np.uint32)
                hashes = np.frombuffer(self._hashes, np.uint64)[numbers]
                near = np.bitwise_count(hashes ^ np.uint64(one)) <= distance
                found.update(numbers[near].tolist())
        return found

    def add(self, one: int) -> None:
        """Add a hash; they are numbered from 0."""
        number = len(self._hashes)
        self._hashes.append(one)
        for band, key in zip(self._bands, _keys(one), strict=True):
            band.setdefault(key, array("I")).append(number)


def dedupe(output: Path, *, distance: int) -> Deduped:
    """Drop records of a run's shards whose picture another record before them has.

    The order is that of the shards' names and of the records in them; what has been dropped once
    is compared with nothing. So the result is the same however often this is killed and called
    again: first what is to go is decided from the jsons alone, then shards are written again, each
    whole, its json after it.

    Args:
        output: The directory of a run that is over.
        distance: Bits of 64 in which hashes of one picture may differ, 0 to 3.

    Raises:
        ConfigError: If the distance is another, or a run is still at work.
        DataError: If there are no such shards, or one is damaged.
    """
    if not 0 <= distance <= MAX_DISTANCE:
        raise ConfigError(f"distance is {distance}; give 0 to {MAX_DISTANCE}")
    names = [path.stem for path in sorted(output.glob("*.tar"))]
    if not names:
        raise DataError(f"{output} holds no shards; name what `kosmosg construct` wrote")
    with hold(output):
        pairs = decide((_stats(output, name) for name in names), distance=distance)
        by_unit: dict[str, dict[str, str]] = {}
        for place, other in pairs.items():
            unit, _, key = place.partition(":")
            by_unit.setdefault(unit, {})[key] = other
        for unit, repeats in by_unit.items():
            _drop(output, unit, repeats)
        records = sum(_stats(output, name).counts.records for name in names)
    return Deduped(records=records, dropped=len(pairs), pairs=pairs)


def decide(shards: Iterator[Stats], *, distance: int) -> dict[str, str]:
    """Return which record, as `unit:key`, repeats which other that stays.

    Raises:
        DataError: If a hash is none.
    """
    near, stays, repeats = Near(), list[tuple[str, list[int]]](), dict[str, str]()
    for stats in shards:
        for key, text in stats.phashes.items():
            place = f"{stats.unit}:{key}"
            first, *others = _hashes_of(text, place)
            same = (
                stays[number][0]
                for number in sorted(near.found(first, distance))
                if _are_near(others, stays[number][1], distance)
            )
            other = next(same, None)
            if other is None:
                near.add(first)
                stays.append((place, others))
            else:
                repeats[place] = other
    return repeats


def _drop(output: Path, unit: str, repeats: Mapping[str, str]) -> None:
    stats, path = _stats(output, unit), shard_path(output, unit)
    with path.open("rb") as file:
        kept = (
            (sample.key, read_sample(file, sample))
            for sample in read_index(path)
            if sample.key not in repeats
        )
        records = write_shard(path, kept)
    counts = stats.counts
    dropped = Counter(counts.dropped) + Counter({DUPLICATE: len(repeats)})
    changed = dataclasses.replace(
        stats,
        counts=dataclasses.replace(counts, records=records, dropped=dict(dropped)),
        bytes=path.stat().st_size,
        phashes={key: one for key, one in stats.phashes.items() if key not in repeats},
        duplicates={**stats.duplicates, **repeats},
    )
    write_json(stats_path(output, unit), changed)


def _stats(output: Path, name: str) -> Stats:
    try:
        stats = read_stats(stats_path(output, name))
    except FileNotFoundError as error:
        raise DataError(
            f"{shard_path(output, name)} has no json beside it: it is not finished; give the"
            " construct command again first",
            reason="unfinished shard",
        ) from error
    if stats.unit != name:  # which says what shard would be written
        raise DataError(
            f"{stats_path(output, name)} is of unit {stats.unit[:80]!r}; call it and its shard so"
            " again",
            reason="bad stats",
        )
    return stats


def _are_near(some: list[int], others: list[int], distance: int) -> bool:
    return len(some) == len(others) and all(
        (one ^ other).bit_count() <= distance for one, other in zip(some, others, strict=True)
    )


def _hashes_of(text: str, place: str) -> list[int]:
    if not _HASHES.fullmatch(text):
        raise DataError(
            f"{place} has phash {text[:40]!r}, not 16 digits in hexadecimal; construct it again",
            reason="bad hash",
        )
    return [int(one, 16) for one in text.split()]


def _keys(one: int) -> list[int]:
    return [one >> (_BAND_BITS * band) & (2**_BAND_BITS - 1) for band in range(_BANDS)]
