"""A user's own folder as shards: converted once, before its first run, and kept beside it."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from kosmosg.data.readers.formats import READERS, detect
from kosmosg.data.records import Record
from kosmosg.data.samples import to_bytes
from kosmosg.data.skips import Skips
from kosmosg.data.sources import DataConfig
from kosmosg.data.tars import tars_in, write_shard
from kosmosg.errors import ConfigError, DataError

STATS = "stats.json"
FORMAT = "folders"
PER_SHARD = 1000


def with_shards(config: DataConfig, directory: Path) -> DataConfig:
    """Return the configuration with each folder of pictures and texts replaced by shards of it.

    Paths that hold tars stay as they are. A folder is `target/` with `control/` and texts, or
    pictures with a .txt of the same name (docs/data-formats.md); its pictures keep every pixel.

    Args:
        config: Whose sources may be such folders.
        directory: Where shards go, one folder for each; those that are there already are used.

    Raises:
        ConfigError: If a folder is in another format, or has changed since it was converted.
        DataError: If more than `max_skipped` of a folder cannot be read.
    """
    sources = {}
    for name, source in config.sources.items():
        paths = [
            text
            if (folder := own_folder(text)) is None
            else str(_shards_of(folder, name, directory / f"{name}-{number}", config.max_skipped))
            for number, text in enumerate(source.each_path())
        ]
        sources[name] = replace(source, paths=tuple(paths))
    return replace(config, sources=sources)


def own_folder(path: str) -> Path | None:
    """Return the folder of a path that holds no tars, and so must be in a user's own format."""
    folder = Path(path).expanduser()
    return folder if folder.is_dir() and not tars_in(folder) else None


def _shards_of(folder: Path, name: str, out: Path, max_skipped: float) -> Path:
    """Return the directory of a folder's shards, after making them if they are not there."""
    check_format(folder, name)
    seen = _listing(folder)
    if (out / STATS).is_file():
        if json.loads((out / STATS).read_text(encoding="utf-8")).get("folder") != seen:
            raise ConfigError(
                f"data source {name!r}: {folder} has changed since it was converted to {out};"
                " put its files back to go on, or start a new run"
            )
        return out
    skips = Skips(limit=max_skipped)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        count = _write(READERS[FORMAT](folder, skips=skips), part, skips)
        if not count:
            raise DataError(f"{folder} gave no record; left out: {str(skips) or 'nothing'}")
        noted = {"folder": seen, "records": count, "skipped": dict(skips.reasons)}
        noted["named"] = skips.named
        text = json.dumps(noted, indent=1, ensure_ascii=False)
        (part / STATS).write_bytes(text.encode("utf-8", "backslashreplace") + b"\n")
        try:
            part.replace(out)
        except OSError:
            if not (out / STATS).is_file():  # else another process of this run was faster
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def check_format(folder: Path, name: str) -> None:
    """Pass a folder that `with_shards` can read, of the source `name`.

    Raises:
        ConfigError: If it is in another format, or in none.
    """
    try:
        found = detect(folder)
    except ConfigError:
        raise ConfigError(
            f"data source {name!r}: {folder} has neither tars, nor target/ and control/ with texts,"
            " nor pictures with a .txt of the same name; name another folder"
        ) from None
    if found != FORMAT:
        raise ConfigError(
            f"data source {name!r}: {folder} is in the format {found}; make shards of it first:"
            f" kosmosg data convert {found} {folder} -o SHARDS, then name SHARDS"
        )


def _write(records: Iterator[Record], out: Path, skips: Skips) -> int:
    """Write shards of so many records each; return how many records there are."""
    seen: set[str] = set()

    def fresh() -> Iterator[Record]:
        for record in records:
            if record.key in seen:
                what = f"record {record.key} comes twice; rename one"
                skips.skip(DataError(what, reason="key twice"))
                continue
            seen.add(record.key)
            yield record

    left, number, count = fresh(), 0, 0
    while (first := next(left, None)) is not None:
        shard = chain([first], islice(left, PER_SHARD - 1))
        count += write_shard(
            out / f"{FORMAT}-{number:06d}.tar",
            ((record.key, to_bytes(record, pictures="png")) for record in shard),
        )
        number += 1
    return count


def _listing(folder: Path) -> str:
    """Return what changes when a file of the folder does: its name, size or time."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            state = path.stat()
            said = f"{path.relative_to(folder).as_posix()}\0{state.st_size}\0{state.st_mtime_ns}\n"
            total.update(said.encode("utf-8", "surrogateescape"))
    return total.hexdigest()
