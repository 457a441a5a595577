"""Tensors that stay in their file until they are read."""

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kosmosg.errors import CheckpointError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in a file, and how.

    Args:
        path: Of the file.
        offset: Of its first element, in bytes.
        dtype: As stored.
        shape: Of the tensor.
        stride: In elements.
        crc: Sum of its bytes (CRC-32); None where the file has none for just these.
    """

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    crc: int | None = None

    @property
    def ndim(self) -> int:
        """Its number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor itself."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def extent(self) -> int:
        """Bytes from its first element to its last, both included."""
        return extent(self.shape, self.stride) * self.dtype.itemsize

    def read(self) -> Tensor:
        """Return the tensor, read now.

        Raises:
            CheckpointError: If the file has become shorter, or the bytes are not what was written.
        """
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        data = np.fromfile(self.path, np.uint8, count=self.extent, offset=self.offset)
        if data.size != self.extent:
            raise CheckpointError(f"{self.path} became shorter while it was read; try again")
        if self.crc is not None and zlib.crc32(data.data) != self.crc:
            raise CheckpointError(
                f"{self.path} is damaged: {self.extent} bytes from {self.offset} on are not what "
                "was written there; fetch it again"
            )
        flat = torch.from_numpy(data).view(self.dtype)
        return flat.as_strided(self.shape, self.stride).contiguous()


def extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Return how many elements of a storage lie between a tensor's first and last, inclusive."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a tensor that lies row by row."""
    return tuple(math.prod(shape[index + 1 :]) for index in range(len(shape)))


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file, none of them read yet.

    Raises:
        CheckpointError: If it is not such a file, or is damaged.
    """
    try:
        with safe_open(path, framework="pt"):  # its own checks: header, offsets, length of the file
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); fetch it again"
        ) from None
    found = {}
    for name, row in header.items():
        if name == "__metadata__":
            continue
        if row["dtype"] not in _DTYPES:
            raise CheckpointError(
                f"{path}: {name} is stored as {row['dtype']}, which kosmosg does not read; "
                "give the file in float32, float16 or bfloat16"
            )
        shape = tuple(row["shape"])
        found[name] = StoredTensor(
            path=path,
            offset=8 + length + row["data_offsets"][0],
            dtype=_DTYPES[row["dtype"]],
            shape=shape,
            stride=contiguous_stride(shape),
        )
    return found
