"""What frozen parts say of a record, kept on disk: safetensors shards, found by hashes."""

import hashlib
import json
import os
import struct
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from kosmosg.errors import KosmosGError

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies, and the sum of its bytes."""

    path: Path
    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    checksum: int


class TensorCache:
    """Tensors by key, for one set of weights; others have folders of their own.

    Each `put` writes one shard, which appears whole or not at all, so several ranks may share a
    folder. `get` sees what any of them has written. A damaged shard or entry is as if it were not
    there, so that it is computed and written anew. Nothing is ever removed: delete the folder.

    Args:
        directory: Holds a folder for each fingerprint.
        fingerprint: Of all that the tensors follow from, besides the key.

    Raises:
        KosmosGError: If the folder cannot be made.
    """

    def __init__(self, directory: Path, *, fingerprint: str) -> None:
        self._folder = directory / fingerprint[:32]
        self._places: dict[str, dict[str, list[_Place]]] = {}
        self._known: frozenset[str] = frozenset()
        self._seen_ns = -1
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._problem(error) from error

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Return the tensors of a key by name, or None if they are not there whole."""
        self._look()
        found = {}
        for name, places in self._places.get(key, {}).items():
            tensor = next((whole for place in places if (whole := _read(place)) is not None), None)
            if tensor is None:
                return None
            found[name] = tensor
        return found or None

    def put(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write tensors by key and name as one shard; without any, write nothing.

        Raises:
            KosmosGError: If they cannot be written, for one on a full disk.
        """
        if not entries:
            return
        flat = {
            f"{key}/{name}": tensor.detach().to("cpu", copy=True).contiguous()
            for key, tensors in entries.items()
            for name, tensor in tensors.items()
        }
        sums = {name: str(zlib.crc32(_raw(tensor))) for name, tensor in flat.items()}
        shard = hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:32] + _SUFFIX
        part = self._folder / f".{shard}.{os.getpid()}.{threading.get_ident()}.part"
        try:
            part.write_bytes(safetensors.torch.save(flat, metadata=sums))
            part.replace(self._folder / shard)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise self._problem(error) from error

    def _look(self) -> None:
        """Read the heads of shards that are new here.

        What is known is replaced, never changed: two threads may look at the same time.
        """
        try:
            changed_ns = self._folder.stat().st_mtime_ns
            if changed_ns == self._seen_ns:
                return
            shards = {name for name in os.listdir(self._folder) if name.endswith(_SUFFIX)}
        except OSError as error:
            raise self._problem(error) from error
        places, readable = dict(self._places), set(self._known)
        for name in sorted(shards - self._known):
            heads = _heads(self._folder / name)
            if heads:  # one that is damaged may be written anew
                readable.add(name)
            for key, tensors in heads.items():
                known = places.get(key, {})
                places[key] = {
                    tensor: [*known.get(tensor, []), place] for tensor, place in tensors.items()
                }
        self._places, self._known, self._seen_ns = places, frozenset(readable), changed_ns

    def _problem(self, error: OSError) -> KosmosGError:
        return KosmosGError(
            f"cannot use the cache {self._folder}: {error.strerror or error}; make room, choose"
            " another folder, or leave stage.cache out"
        )


def fingerprint(*facts: str, **modules: nn.Module) -> str:
    """Return a sha256 of the modules' weights and configurations, and of further facts.

    Weights count with their type: half precision gives other states.
    """
    total = hashlib.sha256()
    for fact in facts:
        total.update(json.dumps(fact).encode())
    for part, module in modules.items():
        total.update(json.dumps([part, _configuration(module)], default=str).encode())
        for name, value in module.state_dict().items():
            total.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
            total.update(_raw(value.detach().cpu().contiguous()))
    return total.hexdigest()


def key_of(*tensors: Tensor) -> str:
    """Return the sha256 of tensors: their types, shapes and contents."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(_raw(tensor.contiguous()))
    return total.hexdigest()


def _configuration(module: nn.Module) -> dict[str, Any]:
    """Return what the weights do not tell, such as the number of heads."""
    config: Any = getattr(module, "config", {})
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {name: values[name] for name in sorted(values) if not name.startswith("_")}


def _raw(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _heads(path: Path) -> dict[str, dict[str, _Place]]:
    """Return the places of a shard's tensors by key and name; none of a damaged one."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            length = os.fstat(file.fileno()).st_size
            if size > length:
                return {}
            heads = json.loads(file.read(size))
        sums = heads.pop("__metadata__")
        found: dict[str, dict[str, _Place]] = {}
        for full, head in heads.items():
            key, _, name = full.partition("/")
            start, stop = (8 + size + offset for offset in head["data_offsets"])
            place = _Place(
                path, start, stop, _DTYPES[head["dtype"]], tuple(head["shape"]), int(sums[full])
            )
            found.setdefault(key, {})[name] = place
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return {}
    return found


def _read(place: _Place) -> Tensor | None:
    """Return a tensor, or None if its bytes are not those that were written."""
    try:
        with place.path.open("rb") as file:
            file.seek(place.start)
            data = bytearray(file.read(place.stop - place.start))
    except OSError:
        return None
    if not data or zlib.crc32(data) != place.checksum:
        return None
    return torch.frombuffer(data, dtype=place.dtype).reshape(place.shape)
