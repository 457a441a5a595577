"""Batches from one process to another, in memory that both hold and use again."""

import ctypes
import functools
import mmap
import os
import pickle
import socket
import struct
import sys
import tempfile
import weakref
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64

_HEAD = struct.Struct("<QQ")  # bytes of the message, bytes of the memory that holds it


class Sender:
    """Writes messages into numbered pieces of memory, of which the receiver says which is free.

    Memory that is used again has its pages already. Fresh ones cost this machine seven times as
    much time as the writing itself.
    """

    def __init__(self) -> None:
        self._pieces: dict[int, mmap.mmap] = {}

    def send(self, to: socket.socket, number: int, message: object) -> None:
        """Send a message; the contents of its tensors are written once and read where they are."""
        buffers: list[pickle.PickleBuffer] = []
        stream = BytesIO()
        _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(message)
        parts = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
        head = struct.pack(f"<{1 + len(parts)}Q", len(parts), *map(len, parts))
        size = len(head)
        for part in parts:
            size += -size % ALIGNMENT + len(part)
        piece, descriptor = self._pieces.get(number), None
        if piece is None or len(piece) < size:
            capacity = size + size // 4 + mmap.PAGESIZE
            descriptor = _memory_file(capacity)
            self._pieces[number] = piece = mmap.mmap(descriptor, capacity)
        piece[: len(head)] = head
        position = len(head)
        for part in parts:
            position += -position % ALIGNMENT
            piece[position : position + len(part)] = part
            position += len(part)
        told = _HEAD.pack(size, len(piece))
        if descriptor is None:
            to.sendall(told)
        else:
            socket.send_fds(to, [told], [descriptor])
            os.close(descriptor)


class Receiver:
    """Reads what a `Sender` wrote; memory is free again when the last tensor in it is gone."""

    def __init__(self) -> None:
        self._pieces: dict[int, mmap.mmap] = {}
        self._free: list[int] = []
        self._made = 0

    def free_piece(self) -> int:
        """Return the number of a piece of memory that nobody uses."""
        if self._free:
            return self._free.pop()
        self._made += 1
        return self._made

    def receive(self, source: socket.socket, number: int) -> Any:  # noqa: ANN401 - what was sent
        """Return the message that the sender writes into this piece of memory.

        Raises:
            ConnectionError: If the sender is gone.
        """
        head, descriptors, _, _ = socket.recv_fds(source, _HEAD.size, 1)
        if not head:
            raise ConnectionResetError("the sender is gone")
        size, capacity = _HEAD.unpack(head)
        for descriptor in descriptors:
            self._pieces[number] = mmap.mmap(descriptor, capacity)
            os.close(descriptor)
        lease = _lease(capacity).from_buffer(self._pieces[number])
        weakref.finalize(lease, self._free.append, number).atexit = False
        memory = memoryview(lease).cast("B")[:size]
        (count,) = struct.unpack_from("<Q", memory)
        position = 8 * (1 + count)
        parts: list[memoryview] = []
        for length in struct.unpack_from(f"<{count}Q", memory, 8):
            position += -position % ALIGNMENT
            parts.append(memory[position : position + length])
            position += length
        # Pickled a moment ago by a process of our own.
        return pickle.loads(parts[0], buffers=parts[1:])


@functools.cache
def _lease(capacity: int) -> Any:  # noqa: ANN401 - ctypes' array types have no name to be told by
    """Return the type of what says by its end that a piece of memory is no longer used."""
    # A class of Python's own, as plain arrays cannot be watched.
    return type("Lease", (ctypes.c_char * capacity,), {})


class _Pickler(pickle.Pickler):
    """Leaves the contents of tensors out of the pickle, as buffers of their own."""

    def reducer_override(self, obj: object) -> Any:  # noqa: ANN401 - as the library says
        if type(obj) is not Tensor:
            return NotImplemented
        values = obj.detach().contiguous()
        raw: Any = values.reshape(-1).view(torch.uint8).numpy()
        return _tensor, (pickle.PickleBuffer(raw), values.dtype, tuple(values.shape))


def _tensor(raw: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not len(raw):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(raw, dtype=dtype).reshape(shape)


def _memory_file(size: int) -> int:
    # Not under /dev/shm, which containers keep small.
    if sys.platform == "linux":
        descriptor = os.memfd_create("kosmosg-batch")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
