"""Units of small texts, and a worker that does with each word what the word says.

`python -m toys.construction OUTPUT NUM_UNITS NUM_RECORDS WORKERS WORD` runs a job of them.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kosmosg.construct.executor import Summary, run
from kosmosg.construct.job import Worker, describe
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
    """Makes workers; `flags` is where they leave their marks, `word` what each does when made."""

    flags: Path
    word: str = "live"

    def __call__(self) -> Worker:
        (self.flags / f"made-{os.getpid()}").touch()
        act(self.word, self.flags)
        return Reader(self.flags)


def made(flags: Path) -> list[int]:
    """The processes in which workers were made."""
    return [int(path.name.removeprefix("made-")) for path in flags.glob("made-*")]


@dataclass(frozen=True)
class Reader:
    flags: Path

    def __call__(self, unit: Words, skips: Skips) -> Iterator[Record]:
        for key, word in zip(unit.keys, unit.words, strict=True):
            try:
                yield self._one(key, word)
            except DataError as error:
                skips.skip(error)
            except ArithmeticError as error:
                skips.skip(DataError(f"{key}: {describe(error)}", reason=type(error).__name__))
        if "stumble" in unit.words and not (self.flags / "stumbled").exists():
            (self.flags / "stumbled").touch()
            raise RuntimeError("the server is away")
        if "fall" in unit.words:
            raise RuntimeError("the server is gone")
        if "leave" in unit.words:
            raise DataError(f"unit {unit.name} ends in the middle", reason="cut off")

    def _one(self, key: str, word: str) -> Record:
        if word == "bad":
            raise DataError(f"record {key} is bad", reason="bad word")
        if word == "blank key":
            return Caption(key="no key", text=word)
        act(word, self.flags)
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
        case "once" if not (flags / value).exists():  # dies the first time that it is read
            (flags / value).touch()
            os.kill(os.getpid(), signal.SIGKILL)


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
    return [path.name for path in output.glob("*.part")]


if __name__ == "__main__":
    folder, num_units, num_records, num_workers, action = sys.argv[1:]
    out = Path(folder)
    todo = units_of(*[[action] * int(num_records)] * int(num_units))
    construct(todo, out, out.with_name("flags"), workers=int(num_workers))
