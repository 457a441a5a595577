"""One unit of work: its records into a shard, then what there is to say of it into a json."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeAlias

from kosmosg.config import from_dict, to_dict
from kosmosg.construct.journal import Journal, path_of
from kosmosg.construct.unit import Unit
from kosmosg.data.records import Record
from kosmosg.data.samples import to_bytes
from kosmosg.data.skips import Skips
from kosmosg.data.tars import check_key, write_shard
from kosmosg.errors import ConfigError, DataError

# Among a record's provenance: the perceptual hash of its target picture; an edit's is followed by
# those of the pictures before and 64 bits of its instruction.
PHASH = "phash"
TELL_S = 0.5

# Yields the records of a unit of the run's kind. One that is bad goes to the skips, one that a rule
# leaves out to their drops. An error that leaves the iterator means that the unit's other records
# are lost: the unit fails. Before it works on records it says so in the journal.
Worker: TypeAlias = Callable[[Any, Skips, Journal], Iterator[Record]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the units of a run have in common.

    Args:
        output: Where the shards go.
        config: Whatever changes the records, as JSON; shards of another one are refused.
        pictures: How a record's pictures are kept; see `samples.to_bytes`.
    """

    output: Path
    config: Mapping[str, Any]
    pictures: Literal["png", "jpg"]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of some records: kept, left out as bad, left out by a rule."""

    records: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict[str, int])
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    named: Mapping[str, list[str]] = field(default_factory=dict[str, list[str]])


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What a shard's json says of it; that it is there says that the shard is whole.

    `sum` is of the configuration and the unit's input, `bytes` the shard's size, `phashes` hold the
    perceptual hash of each record that has one, `duplicates` which record a dropped one repeats.
    """

    unit: str
    counts: Counts
    seconds: float
    bytes: int
    sum: str
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    phashes: Mapping[str, str]
    duplicates: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class Broken:
    """The worker gave up a unit; `again` says whether another attempt may end otherwise."""

    message: str
    again: bool


@dataclass(frozen=True, kw_only=True)
class Fatal:
    """What makes no sense to go on after: no space on the disk, a model that does not load."""

    error: Exception


def attempt(
    unit: Unit, worker: Worker, job: Job, tell: Callable[[Counts], None]
) -> Stats | Broken | Fatal:
    """Make a unit's shard and its json; return what the json says, or what went wrong.

    Args:
        tell: Called with the counts so far, twice a second.
    """
    try:
        return _make(unit, worker, job, tell)
    except _WorkerError as raised:
        error = raised.error
        if isinstance(error, DataError):
            return Broken(message=str(error), again=False)
        return Broken(message=describe(error), again=True)
    except OSError as error:  # of writing: the worker's own are wrapped
        where = str(shard_path(job.output, unit.name))
        return Fatal(error=OSError(error.errno, error.strerror or str(error), where))


def read_done(unit: Unit, job: Job) -> Stats | None:
    """Return what the json of a finished unit says; None if the unit is still to be done.

    Raises:
        ConfigError: If it was made with another configuration, or from another input.
    """
    try:
        stats = read_stats(stats_path(job.output, unit.name))
        size = shard_path(job.output, unit.name).stat().st_size
    except (FileNotFoundError, DataError):  # no json, one damaged by the disk, no shard
        return None
    if stats.sum != sum_of(unit, job):
        raise ConfigError(
            f"{stats_path(job.output, unit.name)} was made {_difference(stats.config, job.config)};"
            " go on as before, or write to another directory"
        )
    return stats if stats.bytes == size else None


def read_stats(path: Path) -> Stats:
    """Return what a shard's json says.

    Raises:
        FileNotFoundError: If there is none.
        DataError: If it is no such json.
    """
    try:
        return from_dict(Stats, json.loads(path.read_bytes()))
    except (ValueError, RecursionError, TypeError, ConfigError) as error:
        raise DataError(
            f"{path} does not say what became of a unit; remove it and construct that unit again",
            reason="bad stats",
        ) from error


def write_json(path: Path, content: object) -> None:
    """Write a dataclass as JSON, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(to_dict(content), file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def shard_path(output: Path, name: str) -> Path:
    """Return where the unit's records go."""
    return output / f"{name}.tar"


def stats_path(output: Path, name: str) -> Path:
    """Return where the unit's json goes."""
    return output / f"{name}.json"


def versions() -> dict[str, str]:
    """Return the versions of what has a hand in the records."""
    names = ("kosmosg", "numpy", "pillow", "torch", "transformers")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


def counted(skips: Skips, records: int) -> Counts:
    """Return the counts of a unit as they are now."""
    return Counts(
        records=records,
        skipped=dict(skips.reasons),
        dropped=dict(skips.dropped),
        named={reason: list(said) for reason, said in skips.named.items()},
    )


def describe(error: BaseException) -> str:
    """Return an error in one line: its kind, its words, and where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = ""
    if trace is not None:
        code = trace.tb_frame.f_code
        place = f" ({Path(code.co_filename).name}, line {trace.tb_lineno}, {code.co_name})"
    return " ".join(f"{type(error).__name__}: {error}{place}".split())


class _WorkerError(Exception):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _make(unit: Unit, worker: Worker, job: Job, tell: Callable[[Counts], None]) -> Stats:
    begun = time.monotonic()
    skips = Skips(limit=1.0)  # the run looks at the share of all units together
    phashes: dict[str, str] = {}
    path = shard_path(job.output, unit.name)
    # While the shard is made again, nobody may take the json of an older one for its own.
    stats_path(job.output, unit.name).unlink(missing_ok=True)
    with closing(Journal(path_of(job.output, unit.name), sum_of(unit, job))) as journal:
        samples = _samples(unit, worker, job, skips, journal, phashes, tell)
        records = write_shard(path, samples)
    stats = Stats(
        unit=unit.name,
        counts=counted(skips, records),
        seconds=round(time.monotonic() - begun, 3),
        bytes=path.stat().st_size,
        sum=sum_of(unit, job),
        config=job.config,
        versions=versions(),
        phashes=phashes,
    )
    write_json(stats_path(job.output, unit.name), stats)
    path_of(job.output, unit.name).unlink(missing_ok=True)
    return stats


def _samples(
    unit: Unit,
    worker: Worker,
    job: Job,
    skips: Skips,
    journal: Journal,
    phashes: dict[str, str],
    tell: Callable[[Counts], None],
) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    seen: set[str] = set()
    told = time.monotonic()
    for record in _records(unit, worker, skips, journal):
        if time.monotonic() - told > TELL_S:
            tell(counted(skips, len(seen)))
            told = time.monotonic()
        try:
            files = _files(record, seen, job)
        except DataError as error:
            skips.skip(error)
            continue
        seen.add(record.key)
        if PHASH in record.provenance:
            phashes[record.key] = record.provenance[PHASH]
        yield record.key, files


def _records(unit: Unit, worker: Worker, skips: Skips, journal: Journal) -> Iterator[Record]:
    try:
        yield from worker(unit, skips, journal)
    except Exception as error:
        raise _WorkerError(error) from error
    journal.at()  # what is left to do is of no record


def _files(record: Record, seen: set[str], job: Job) -> Mapping[str, bytes]:
    check_key(record.key)
    if record.key in seen:
        raise DataError(f"record {record.key} comes twice in its unit", reason="key twice")
    try:
        return to_bytes(record, pictures=job.pictures)
    except Exception as error:
        raise DataError(
            f"record {record.key} cannot be written: {describe(error)}", reason="cannot be written"
        ) from error


def sum_of(unit: Unit, job: Job) -> str:
    """Return the sum of what decides a unit's records: the configuration and the unit's input."""
    content = json.dumps(job.config, sort_keys=True) + repr(unit)
    return hashlib.sha256(content.encode()).hexdigest()


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = _leaves(then), _leaves(now)
    for path in sorted(old.keys() | new.keys()):
        before, after = old.get(path, "nothing"), new.get(path, "nothing")
        if before != after:
            return f"with {path} = {before!r}, now it is {after!r}"
    return "from other input under this name"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for name, value in json.loads(json.dumps(tree)).items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves
