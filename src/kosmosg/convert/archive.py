"""The zip files that torch writes: where things lie in one, and how to write one in a stream."""

import io
import pickle
import re
import stat
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from kosmosg.convert.stored import contiguous_stride
from kosmosg.errors import CheckpointError

# What is read into memory and walked through; that of a full-size checkpoint has about 1 MB.
MAX_PICKLE_BYTES = 16 * 2**20
_MAX_ENTRIES = 200_000
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_LOCAL_HEADER = 30
_END, _END_BYTES = b"PK\x05\x06", 22  # the last record of a zip, which has no comment


class Place(NamedTuple):
    """Where an entry lies in the file, its size in bytes, and their sum as the zip has it."""

    offset: int
    size: int
    crc: int


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A torch file: its pickle, and where each storage lies, by its key."""

    path: Path
    pickle: bytes
    storages: Mapping[str, Place]


def read_archive(path: Path) -> Archive:
    """Return the pickle of a file that `torch.save` wrote, and where its storages lie.

    Nothing is unpacked: entries must be stored as they are, whole, and apart from one another.

    Raises:
        CheckpointError: If it is no such file, is cut short, or was tampered with.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_LEGACY))
            if start == _LEGACY:
                raise CheckpointError(
                    f"{path} has torch's format from before version 1.6; "
                    "load and save it again with torch >= 1.6"
                )
            if not start.startswith(b"PK"):
                raise CheckpointError(
                    f"{path} is not a checkpoint of torch; give the authors' .pt file"
                )
            return _read(path, file)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise CheckpointError(f"{path} is cut short or damaged ({error}); fetch it again") from None
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path}: {error.strerror or error}; give the file of a checkpoint"
        ) from None


def _read(path: Path, file: Any) -> Archive:  # noqa: ANN401 -- an open binary file
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    file.seek(-_END_BYTES, io.SEEK_END)
    if file.read(len(_END)) != _END:  # zipfile takes what follows the end for a comment
        raise zipfile.BadZipFile("it goes on after its end")
    if len(entries) > _MAX_ENTRIES:
        raise _tampered(path, f"it has {len(entries)} entries")
    names = [entry.filename for entry in entries]
    twice, count = max(Counter(names).items(), key=itemgetter(1), default=("", 0))
    if count > 1:
        raise _tampered(path, f"it has the entry {twice[:80]!r} twice")
    roots = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl")]
    if len(roots) != 1 or "/" in roots[0] or any(n.endswith("/constants.pkl") for n in names):
        raise CheckpointError(
            f"{path} is a zip file but not what torch.save writes; give the authors' .pt file"
        )
    places = {entry.filename: _place(path, file, entry) for entry in entries}
    end = 0
    for name, (offset, size, _) in sorted(places.items(), key=lambda item: item[1]):
        if offset < end:
            raise _tampered(path, f"its entry {name[:80]!r} lies over another one")
        end = offset + size
    order = places.get(f"{roots[0]}/byteorder")
    if order is not None and _bytes(file, order, limit=16) != b"little":
        raise CheckpointError(
            f"{path} was written on a big-endian machine; load and save it on a little-endian one"
        )
    place = places[f"{roots[0]}/data.pkl"]
    if place.size > MAX_PICKLE_BYTES:
        raise _tampered(path, f"its pickle has {place.size} bytes, more than {MAX_PICKLE_BYTES}")
    data = _bytes(file, place, limit=MAX_PICKLE_BYTES)
    if zlib.crc32(data) != place.crc:
        raise CheckpointError(
            f"{path} is damaged: its pickle is not what was written; fetch it again"
        )
    storage = re.compile(re.escape(roots[0]) + r"/data/(\d+)")
    return Archive(
        path=path,
        pickle=data,
        storages={m[1]: place for n, place in places.items() if (m := storage.fullmatch(n))},
    )


def _place(path: Path, file: Any, entry: zipfile.ZipInfo) -> Place:  # noqa: ANN401
    """Return where an entry's bytes are, after comparing both its headers."""
    name = entry.filename
    parts = name.split("/")
    if ".." in parts or name.startswith("/") or "\\" in name:
        raise _tampered(path, f"its entry {name[:80]!r} has the name of another place")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise _tampered(path, f"its entry {name[:80]!r} is a link")
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise _tampered(path, f"its entry {name[:80]!r} is compressed")
    if entry.flag_bits & 0x1:
        raise _tampered(path, f"its entry {name[:80]!r} is encrypted")
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER)
    name_size = int.from_bytes(header[26:28], "little")
    extra_size = int.from_bytes(header[28:30], "little")
    if header[:4] != b"PK\x03\x04" or file.read(name_size) != name.encode():
        raise _tampered(path, f"its entry {name[:80]!r} has two headers that differ")
    offset = entry.header_offset + _LOCAL_HEADER + name_size + extra_size
    if offset + entry.file_size > file.seek(0, io.SEEK_END):
        raise _tampered(path, f"its entry {name[:80]!r} reaches beyond the end of the file")
    return Place(offset, entry.file_size, entry.CRC)


def _bytes(file: Any, place: Place, *, limit: int) -> bytes:  # noqa: ANN401
    file.seek(place.offset)
    return file.read(min(place.size, limit))


def _tampered(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is refused: {what}; torch.save writes no such file")


# ----------------------------------------------------------------------------------------- writing


@runtime_checkable
class Source(Protocol):
    """A tensor that can say what it is before it is read."""

    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    def read(self) -> Tensor: ...  # noqa: D102


class _Storage:
    def __init__(self, source: Source, key: str) -> None:
        self.source, self.key = source, key


class _Pickler(pickle.Pickler):
    """Writes sources as torch writes tensors; the same source twice is one storage."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)
        self.storages: dict[int, _Storage] = {}

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401 -- pickle's own signature
        if isinstance(obj, type) or not isinstance(obj, Source):
            return NotImplemented
        storage = self.storages.setdefault(id(obj), _Storage(obj, str(len(self.storages))))
        shape = tuple(obj.shape)
        layout = (0, shape, contiguous_stride(shape), False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, (storage, *layout)  # pyright: ignore[reportAttributeAccessIssue]

    def persistent_id(self, obj: Any) -> Any:  # noqa: ANN401 -- pickle's own signature
        if not isinstance(obj, _Storage):
            return None
        name = {torch.float32: "Float", torch.float16: "Half", torch.bfloat16: "BFloat16"}
        kind = getattr(torch, f"{name[obj.source.dtype]}Storage")
        numel = torch.Size(obj.source.shape).numel()
        return ("storage", kind, obj.key, "cpu", numel)


def write_archive(path: Path, data: Mapping[str, Any]) -> None:
    """Write a file that `torch.load(weights_only=True)` reads, one tensor in memory at a time.

    Args:
        path: Of the file.
        data: Plain Python data in which a `Source` is written as a tensor; float32, float16 or
            bfloat16.

    Raises:
        OSError: If it cannot be written.
    """
    pickled = io.BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(dict(data))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled.getvalue())
        archive.writestr("archive/byteorder", b"little")
        for storage in pickler.storages.values():
            values = storage.source.read().contiguous().flatten().view(torch.uint8)
            entry = zipfile.ZipInfo(f"archive/data/{storage.key}")
            with archive.open(entry, "w", force_zip64=True) as file:
                file.write(values.numpy().data)
        archive.writestr("archive/version", b"3\n")
