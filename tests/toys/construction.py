"""Units of small texts, and a worker that does with each word what the word says.

`python -m toys.construction OUTPUT NUM_UNITS NUM_RECORDS WORKERS WORD` runs a job of them.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kosmosg.construct.executor import Summary, run
from kosmosg.construct.job import Worker, describe
from kosmosg.construct.journal import Journal
from kosmosg.construct.unit import Unit
from kosmosg.data.records import Caption, Record
from kosmosg.data.skips import Skips
from kosmosg.data.tars import read_index
from kosmosg.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Words(Unit):
    """A record for each word, keyed by the unit's name and the word's place."""

    words: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        return [f"{self.name}/{place}" for place in range(len(self.words))]


@dataclass(frozen=True)
class MakeReader:
    """Makes workers; `flags` is where they leave their marks, `word` what each does when made.

    A worker reads words one by one and acts upon them a batch at a time; "decode:WORD" is acted
    upon when it is read.
    """

    flags: Path
    word: str = "live"
    batch_size: int = 1

    def __call__(self) -> Worker:
        (self.flags / f"made-{os.getpid()}").touch()
        act(self.word, self.flags)
        return Reader(self.flags, self.batch_size)


def made(flags: Path) -> list[int]:
    """The processes in which workers were made."""
    return [int(path.name.removeprefix("made-")) for path in flags.glob("made-*")]


@dataclass(frozen=True)
class Reader:
    flags: Path
    batch_size: int

    def __call__(self, unit: Words, skips: Skips, journal: Journal) -> Iterator[Record]:
        read = self._read(journal.each(zip(unit.keys, unit.words, strict=True), skips))
        for batch in journal.batches(read, self.batch_size):
            for one in batch:
                try:
                    yield self._one(one.key, one.text)
                except DataError as error:
                    skips.skip(error)
                except ArithmeticError as error:
                    what = f"{one.key}: {describe(error)}"
                    skips.skip(DataError(what, reason=type(error).__name__))
        if "stumble" in unit.words and not (self.flags / "stumbled").exists():
            (self.flags / "stumbled").touch()
            raise RuntimeError("the server is away")
        if "fall" in unit.words:
            raise RuntimeError("the server is gone")
        journal.at()
        for word in unit.words:
            if word.startswith("end "):
                act(word.removeprefix("end "), self.flags)
        if "leave" in unit.words:
            raise DataError(f"unit {unit.name} ends in the middle", reason="cut off")

    def _read(self, words: Iterator[tuple[str, str]]) -> Iterator[Caption]:
        for key, word in words:
            if word.startswith("decode:"):
                act(word.removeprefix("decode:"), self.flags)
            yield Caption(key=key, text=word)

    def _one(self, key: str, word: str) -> Record:
        if word == "bad":
            raise DataError(f"record {key} is bad", reason="bad word")
        if word == "blank key":
            return Caption(key="no key", text=word)
        act("die" if word == f"die at {key}" else word, self.flags)
        return Caption(key=key, text=word)


def act(word: str, flags: Path) -> None:
    name, _, value = word.partition(":")
    match name:
        case "raise":
            raise ZeroDivisionError(value)
        case "config":
            raise ConfigError("no model in models/blip2; put it there")
        case "sleep":
            time.sleep(float(value))
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "once" if not (flags / value).exists():  # dies the first time that it is read
            (flags / value).touch()
            os.kill(os.getpid(), signal.SIGKILL)


def until(what: Callable[[], object], seconds: float = 60) -> None:
    """Wait; without an end a thread that waits would keep the interpreter from ending."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def units_of(*words: Sequence[str]) -> list[Words]:
    return [Words(name=f"{number:03}", words=tuple(some)) for number, some in enumerate(words)]


def construct(units: Sequence[Words], output: Path, flags: Path, **changes: object) -> Summary:
    flags.mkdir(exist_ok=True)
    wanted = {"workers": 0, "kind": "local", "skips_limit": 0.5, "config": {"size": 1}} | changes
    make = wanted.pop("make", MakeReader(flags))
    return run(units, make, output=output, **wanted)


def keys_in(output: Path) -> list[str]:
    """Return the keys of all shards, in the order of shards and places."""
    return [sample.key for shard in sorted(output.glob("*.tar")) for sample in read_index(shard)]


def leftovers(output: Path) -> list[str]:
    return [path.name for path in output.glob("*") if path.suffix in (".part", ".journal")]


if __name__ == "__main__":
    folder, num_units, num_records, num_workers, action = sys.argv[1:]
    out = Path(folder)
    todo = units_of(*[[action] * int(num_records)] * int(num_units))
    construct(todo, out, out.with_name("flags"), workers=int(num_workers))
