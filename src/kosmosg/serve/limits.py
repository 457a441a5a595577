"""How much one client may ask for: requests a minute, and bytes of all that is being read."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

_CLIENTS = 10_000


class Rate:
    """Requests of each client in a minute; a quarter of them may come at once.

    Args:
        per_minute: Of one client; None lets all pass.
        clock: Seconds.
    """

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when

    def seconds_to_wait(self, client: str) -> float:
        """Count a request and return 0, or return how long the client has to wait."""
        if self._per_minute is None:
            return 0.0
        a_second, most = self._per_minute / 60, max(1.0, self._per_minute / 4)
        now = self._clock()
        with self._lock:
            tokens, then = self._clients.pop(client, (most, now))
            tokens = min(most, tokens + (now - then) * a_second)
            allowed = tokens >= 1
            self._clients[client] = (tokens - allowed, now)
            if len(self._clients) > _CLIENTS:
                self._clients.popitem(last=False)  # the one that came last longest ago
        return 0.0 if allowed else (1 - tokens) / a_second


class Room:
    """Bytes of request bodies in memory, all clients' together.

    Args:
        most: Bytes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    def take(self, size: int) -> bool:
        """Take so many bytes, or none and return False."""
        if self._taken + size > self._most:
            return False
        self._taken += size
        return True

    def give_back(self, size: int) -> None:
        """Return bytes that were taken."""
        self._taken -= size
