"""Where the samples of many tars are: found once, kept beside them, 16 bytes a sample."""

import hashlib
import json
import os
import stat
import threading
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt64
from tqdm import tqdm

from kosmosg.data.tars import read_index
from kosmosg.errors import ConfigError, DataError

INDEX_NAME = ".kosmosg-index.npz"
FORMAT_VERSION = 1
THREADS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Spans:
    """The samples of one tar: the bytes that hold each. `damage` says why there are no more."""

    size: int
    mtime_ns: int
    bounds: UInt64[np.ndarray, "samples 2"]
    damage: DataError | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """The samples of several tars, numbered through.

    Tar number t has the samples `firsts[t]` to `firsts[t + 1] - 1`.
    """

    paths: tuple[Path, ...]
    firsts: Int[np.ndarray, " tars_and_one"]
    bounds: UInt64[np.ndarray, "samples 2"]
    damages: tuple[DataError, ...] = field(default=())

    @property
    def num_samples(self) -> int:
        """Return how many there are in all."""
        return int(self.firsts[-1])


def index_tars(paths: Sequence[Path]) -> Index:
    """Return where the samples of these tars are, from the index kept beside them or by reading.

    A tar is read again when its size or time of change is another than its index says. The index
    of a folder is one file in it, or in the user's cache directory where the folder is read-only.
    A damaged tar gives the samples before the damage.

    Raises:
        ConfigError: If a path is not a file that can be read.
    """
    stats = {path: _stat(path) for path in paths}
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        folders.setdefault(path.parent, []).append(path)
    spans: dict[Path, Spans] = {}
    for folder, members in folders.items():
        spans |= _index_folder(folder, {path: stats[path] for path in members})
    counts = [len(spans[path].bounds) for path in paths]
    return Index(
        paths=tuple(paths),
        firsts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        bounds=np.concatenate([spans[path].bounds for path in paths]),
        damages=tuple(damage for path in paths if (damage := spans[path].damage)),
    )


def _stat(path: Path) -> os.stat_result:
    try:
        status = path.stat()
        with path.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(
            f"shard {path}: {error.strerror or error}; correct the path or make it readable"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"shard {path} is no ordinary file; give tars or a folder of them")
    return status


def _index_folder(folder: Path, stats: Mapping[Path, os.stat_result]) -> dict[Path, Spans]:
    kept = _load(folder)
    found = {
        path: kept[path.name]
        for path, status in stats.items()
        if path.name in kept and _is_of(kept[path.name], status)
    }
    missing = [path for path in stats if path not in found]
    if missing:
        made = _read_all(missing, stats)
        found |= made
        _save(folder, kept | {path.name: spans for path, spans in made.items()})
    return found


def _is_of(spans: Spans, status: os.stat_result) -> bool:
    return (spans.size, spans.mtime_ns) == (status.st_size, status.st_mtime_ns)


def _read_all(paths: Sequence[Path], stats: Mapping[Path, os.stat_result]) -> dict[Path, Spans]:
    """Read the headers of tars, in threads: most of it is waiting for the disk."""
    with ThreadPoolExecutor(THREADS) as pool:
        reading = pool.map(lambda path: _read(path, stats[path]), paths)
        # What takes less than a second needs no progress line.
        bar = tqdm(reading, total=len(paths), desc="indexing shards", unit="shard", delay=1)
        return dict(zip(paths, bar, strict=True))


def _read(path: Path, status: os.stat_result) -> Spans:
    bounds: list[int] = []
    damage: DataError | None = None
    try:
        for sample in read_index(path):
            bounds += sample.span
    except DataError as error:
        damage = error
    return Spans(
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        bounds=np.array(bounds, np.uint64).reshape(-1, 2),
        damage=damage,
    )


def _places(folder: Path) -> Iterable[Path]:
    """Yield where the index of a folder may be kept, the better place first."""
    yield folder / INDEX_NAME
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    yield caches / "kosmosg" / "index" / f"{name}.npz"


def _load(folder: Path) -> dict[str, Spans]:
    """Return the kept index of a folder by the tars' names; none if there is none to be trusted."""
    for place in _places(folder):
        try:
            with place.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                _check_stored(file.zip)
                return _parsed(folder, json.loads(file["tars"].tobytes()), file["bounds"])
        # Whatever is wrong with it: it is made anew. It comes with the data, maybe from strangers.
        except (
            OSError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RuntimeError,
            MemoryError,
            zipfile.BadZipFile,
        ):
            continue
    return {}


def _check_stored(file: zipfile.ZipFile) -> None:
    """Pass a file as `_save` writes it: packed, a small one could hold more than the memory."""
    if any(member.compress_type != zipfile.ZIP_STORED for member in file.infolist()):
        raise ValueError("compressed")


def _parsed(folder: Path, about: object, bounds: np.ndarray) -> dict[str, Spans]:
    if not isinstance(about, dict) or about["format_version"] != FORMAT_VERSION:
        raise ValueError("another format")
    if bounds.dtype != np.uint64 or bounds.shape != (sum(t["samples"] for t in about["tars"]), 2):
        raise ValueError("not as many spans as samples")
    spans, first = {}, 0
    for tar in about["tars"]:
        own = bounds[first : first + tar["samples"]]
        first += len(own)
        if (own[:, 0] >= own[:, 1]).any() or (own[:, 1] > tar["size"]).any():
            raise ValueError("spans outside their tar")
        damage = None
        if tar["damage"]:
            message, reason = tar["damage"]
            damage = DataError(f"{folder}/{message}", reason=reason)
        spans[str(tar["name"])] = Spans(
            size=tar["size"], mtime_ns=tar["mtime_ns"], bounds=own, damage=damage
        )
    return spans


def _save(folder: Path, spans: Mapping[str, Spans]) -> None:
    """Keep the index where it can be written: it is only a matter of time, not of results."""
    spans = {name: one for name, one in spans.items() if (folder / name).exists()}
    tars = [
        {
            "name": name,
            "size": one.size,
            "mtime_ns": one.mtime_ns,
            "samples": len(one.bounds),
            # Without the folder, which may be called otherwise by then.
            "damage": one.damage
            and [str(one.damage).removeprefix(f"{folder}/"), one.damage.reason],
        }
        for name, one in spans.items()
    ]
    about = json.dumps({"format_version": FORMAT_VERSION, "tars": tars}).encode()
    bounds = np.concatenate([one.bounds for one in spans.values()])
    for place in _places(folder):
        part = place.with_name(f".{place.name}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            if place.parent != folder:
                place.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                np.savez(file, tars=np.frombuffer(about, np.uint8), bounds=bounds)
            part.replace(place)
        except OSError:
            # A read-only file system refuses this too, though there is nothing to remove.
            with suppress(OSError):
                part.unlink(missing_ok=True)
            continue
        return
