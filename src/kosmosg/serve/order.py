"""Who is next: a bounded queue that shares the device fairly between clients."""

import heapq
from collections.abc import Sequence

from kosmosg.serve.tasks import Slot, Task

_REMEMBERED = 1000  # clients, beside those who wait


class FairQueue:
    """Pictures that wait, each client's in their order.

    The client that has had the least work done is next, counted from when it came: many requests
    of one do not delay the first of another, and nobody saves up turns while away.

    Args:
        most: Pictures that may wait.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[str, list[Slot]] = {}
        self._had: dict[str, float] = {}  # work of each client
        self._now = 0.0  # what the client that was last served had had before

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, slots: Sequence[Slot]) -> bool:
        """Take all of a task's pictures, or none and return False where there is no room."""
        if len(self) + len(slots) > self._most:
            return False
        client = slots[0].task.client
        if client not in self._waiting:
            self._had[client] = max(self._had.get(client, 0.0), self._now)
        self._waiting.setdefault(client, []).extend(slots)
        return True

    def in_order(self) -> list[Slot]:
        """Return all that wait, the next one first, as if nobody came or left."""
        heap = [(self._had[client], client, 0) for client in self._waiting]
        heapq.heapify(heap)
        found = []
        while heap:
            had, client, place = heapq.heappop(heap)
            slots = self._waiting[client]
            found.append(slots[place])
            if place + 1 < len(slots):
                heapq.heappush(heap, (had + slots[place].task.cost, client, place + 1))
        return found

    def take(self, slot: Slot) -> None:
        """Take out a picture that is drawn now."""
        client = slot.task.client
        self._now = max(self._now, self._had[client])
        self._had[client] += slot.task.cost
        self._remove(client, [other for other in self._waiting[client] if other is not slot])

    def discard(self, task: Task) -> None:
        """Take out what is left of a task that nobody wants any more."""
        slots = self._waiting.get(task.client, [])
        self._remove(task.client, [slot for slot in slots if slot.task is not task])

    def forget(self) -> None:
        """Let all be equal again: the device has nothing to do."""
        self._had.clear()
        self._now = 0.0

    def _remove(self, client: str, rest: list[Slot]) -> None:
        if rest:
            self._waiting[client] = rest
            return
        self._waiting.pop(client, None)
        if len(self._had) > _REMEMBERED:
            self._had = {one: had for one, had in self._had.items() if one in self._waiting}
