"""What a process is at work on, written down beforehand: if it dies, another learns what of."""

import contextlib
import itertools
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from kosmosg.data.skips import Skips
from kosmosg.errors import DataError

DEADLY = "killed its worker"
TWICE = 2  # deaths while a record was worked on alone, after which it is left out

T = TypeVar("T")


@runtime_checkable
class _Keyed(Protocol):
    @property
    def key(self) -> str: ...


K = TypeVar("K", bound=_Keyed)


@dataclass(frozen=True, kw_only=True)
class Deaths:
    """What the processes that died at a unit were at work on.

    Args:
        named: How many of them were at work on records; others died between records.
        in_a_row: The last of these, since a record has come through that none had before.
        alone: How often each record was the only one.
        together: Records that were worked on with others; each is tried alone from then on.
    """

    named: int = 0
    in_a_row: int = 0
    alone: Counter[str]
    together: frozenset[str] = frozenset()

    @property
    def deadly(self) -> list[str]:
        """Return the records that are left out."""
        return [key for key, count in self.alone.items() if count >= TWICE]


class Journal:
    """A unit's journal, open in the process that makes the unit.

    Processes append to one file, each under a name of its own; where the last line of one is, there
    it ended. A death from outside and one by a record look alike, so only a record that was worked
    on alone when two processes died is left out. Lines need no fsync: it is the process that dies,
    not the machine.

    Args:
        path: `path_of` the unit.
        sum: Of the unit and the configuration; what a journal says of others does not count.
    """

    def __init__(self, path: Path, sum: str) -> None:
        self._deaths = read_deaths(path, sum)
        self._deadly = frozenset(self._deaths.deadly)
        self._by = f"{sum}-{uuid.uuid4().hex}"
        self._file = path.open("ab", buffering=0)

    def at(self, *keys: str) -> None:
        """Say which records are worked on from now; none, while there is other work."""
        line = json.dumps({"by": self._by, "at": keys})
        with contextlib.suppress(OSError):  # a full disk is told when the shard meets it
            self._file.write(f"{line}\n".encode())

    def each(self, things: Iterable[tuple[str, T]], skips: Skips) -> Iterator[tuple[str, T]]:
        """Yield keys with what belongs to them, each noted first; deadly ones are skipped."""
        for key, thing in things:
            if key in self._deadly:
                skips.skip(deadly(key))
                continue
            self.at(key)
            yield key, thing
            self.at()

    def batches(self, things: Iterable[K], size: int) -> Iterator[list[K]]:
        """Yield lists of at most so many, each noted first; what died with others comes alone."""
        things = iter(things)
        while batch := list(itertools.islice(things, size)):
            for is_alone, some in itertools.groupby(batch, self._is_suspect):
                group = list(some)
                for part in [[one] for one in group] if is_alone else [group]:
                    self.at(*(one.key for one in part))
                    yield part

    def close(self) -> None:
        """Say that this process has come through, and close the file."""
        self.at()
        self._file.close()

    def _is_suspect(self, thing: _Keyed) -> bool:
        return thing.key in self._deaths.together


def path_of(output: Path, name: str) -> Path:
    """Return where a unit's journal is, until the unit is done."""
    return output / f".{name}.journal"


def read_deaths(path: Path, sum: str) -> Deaths:
    """Return what a unit's processes died of; those that ended otherwise do not count."""
    named, in_a_row = 0, 0
    alone, together, through = Counter[str](), set[str](), set[str]()
    for lines in _by_process(path, sum):
        *before, last = lines
        survived = {key for keys in before for key in keys} - set(last)
        is_further = not survived <= through
        through |= survived
        if last:
            named += 1
            in_a_row = 1 if is_further else in_a_row + 1
        if len(last) == 1:
            alone[last[0]] += 1
        else:
            together |= set(last)
    return Deaths(named=named, in_a_row=in_a_row, alone=alone, together=frozenset(together))


def deadly(key: str) -> DataError:
    """Return why a record is left out that has killed."""
    return DataError(
        f"record {key}: {TWICE} processes died while they worked on it alone; look at it, or give"
        " each worker more memory",
        reason=DEADLY,
    )


def _by_process(path: Path, sum: str) -> Iterable[list[list[str]]]:
    """Return each process's lines, in the order in which the processes began."""
    found: dict[str, list[list[str]]] = {}
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        lines = []
    for line in lines:
        try:
            said = json.loads(line)
            by, keys = said["by"], [str(key) for key in said["at"]]
        except (ValueError, TypeError, KeyError):  # cut off, as the process died in writing it
            continue
        if str(by).startswith(f"{sum}-"):
            found.setdefault(by, []).append(keys)
    return found.values()
