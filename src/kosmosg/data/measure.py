"""How long the pieces of each shard are: found once, kept in a file a shard."""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from kosmosg.data.packing import Lengths, pieces
from kosmosg.data.records import Record
from kosmosg.errors import DataError
from kosmosg.sequence import length
from kosmosg.tokenizer import Tokenizer

CACHE_VERSION = 1  # of the files, and of how text is cut into sentences


@runtime_checkable
class Shard(Protocol):
    """Records, each read when it is asked for; a damaged one raises a DataError."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Record: ...


@runtime_checkable
class Source(Protocol):
    """Records in shards, each at its place."""

    @property
    def num_shards(self) -> int:
        """Return how many shards there are."""
        ...

    def shard(self, index: int) -> Shard:
        """Return a shard."""
        ...

    def fingerprint(self, index: int) -> str:
        """Return what changes when the shard does: of a file, its name, size and time, say."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """A shard's lengths, and why records were left out; those have no pieces."""

    lengths: Lengths
    errors: tuple[DataError, ...]


def measure_shards(
    source: Source,
    tokenizer: Tokenizer,
    *,
    num_latents: int,
    cache_dir: Path | None,
    threads: int,
) -> Iterator[Measured]:
    """Yield the lengths of each shard, in order; `threads` shards are read at a time.

    It reads every record once, pictures too, so that a row never begins with a damaged one. With
    `cache_dir` each shard's lengths are kept there: who was stopped goes on where they were, and
    the next reads no record. Another tokenizer, another number of latents or a changed shard is
    measured anew.
    """
    ids = tokenizer.sha256()

    def measured(index: int) -> Measured:
        if cache_dir is None:
            return measure(source.shard(index), tokenizer, num_latents=num_latents)
        parts = (CACHE_VERSION, ids, num_latents, source.fingerprint(index))
        name = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
        path = cache_dir / f"{name}.npz"
        known = _load(path)
        if known is None:
            known = measure(source.shard(index), tokenizer, num_latents=num_latents)
            _save(path, known)
        return known

    pool = ThreadPoolExecutor(threads, thread_name_prefix="measure")
    try:
        yield from tqdm(
            pool.map(measured, range(source.num_shards)),
            "measuring",
            source.num_shards,
            unit="shard",
            disable=None,
            leave=False,
        )
    finally:
        pool.shutdown(cancel_futures=True)


def measure(records: Shard, tokenizer: Tokenizer, *, num_latents: int) -> Measured:
    """Return the lengths of a shard's records; a damaged or an empty one has no pieces."""
    counts: list[int] = []
    sizes: list[int] = []
    pictures: list[bool] = []
    errors: list[DataError] = []
    for index in range(len(records)):
        try:
            record = records[index]
            parts = pieces(record)
            found = [length([part], tokenizer, num_latents=num_latents) - 1 for part in parts]
            if not any(found):
                raise DataError(
                    f"record {record.key} has neither words nor pictures",
                    reason="empty record",
                )
        except DataError as error:
            errors.append(error)
            counts.append(0)
            continue
        counts.append(len(parts))
        sizes += found
        pictures += [not isinstance(part, str) for part in parts]
    return Measured(
        lengths=Lengths(
            counts=np.array(counts, np.int32),
            sizes=np.array(sizes, np.int32),
            pictures=np.array(pictures, np.bool_),
        ),
        errors=tuple(errors),
    )


def _save(path: Path, known: Measured) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(
                file,
                counts=known.lengths.counts,
                sizes=known.lengths.sizes,
                pictures=known.lengths.pictures,
                errors=np.array([str(error) for error in known.errors], np.str_),
                reasons=np.array([error.reason for error in known.errors], np.str_),
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: Path) -> Measured | None:
    """Return kept lengths; None if there are none, or the file is damaged: they are made again."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            lengths = Lengths(counts=kept["counts"], sizes=kept["sizes"], pictures=kept["pictures"])
            errors = tuple(
                DataError(str(error), reason=str(reason))
                for error, reason in zip(kept["errors"], kept["reasons"], strict=True)
            )
    # RuntimeError: a method of packing or a key that zip files may name and this one does not.
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ):
        return None
    return Measured(lengths=lengths, errors=errors)
