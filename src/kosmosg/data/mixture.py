"""Streams of records, and a weighted blend of streams."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Stream(Protocol):
    """An endless source of records that depends on nothing but its seed and the position."""

    def batch(self, step: int, size: int) -> Sequence[Any]:
        """Return records number `step * size` to `(step + 1) * size - 1`.

        Resuming at step k is asking for step k: a stream keeps no state.
        """
        ...
