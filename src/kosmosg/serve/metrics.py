"""Counts and times of a server, in Prometheus' text form."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

_HELP = {
    "kosmosg_requests_total": ("counter", "Answers, by path and status."),
    "kosmosg_refused_total": ("counter", "Requests that were refused, by reason."),
    "kosmosg_accepted_total": ("counter", "Requests that were put into the queue."),
    "kosmosg_answered_total": ("counter", "Accepted requests that were answered in full."),
    "kosmosg_left_total": ("counter", "Accepted requests whose client left."),
    "kosmosg_failed_total": ("counter", "Accepted requests that ended in an error."),
    "kosmosg_pictures_total": ("counter", "Pictures drawn."),
    "kosmosg_flagged_pictures_total": ("counter", "Pictures that the safety checker made black."),
    "kosmosg_batched_pictures_total": ("counter", "Pictures in all passes of the U-Net, summed."),
    "kosmosg_work_seconds_sum": ("counter", "Seconds of the device thread, by kind of work."),
    "kosmosg_work_seconds_count": ("counter", "How often it did it."),
    "kosmosg_waiting_pictures": ("gauge", "Pictures that wait."),
    "kosmosg_running_pictures": ("gauge", "Pictures that are drawn."),
    "kosmosg_ready": ("gauge", "1 where requests are taken."),
}


class Metrics:
    """Numbers by name and labels; safe to count in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def count(self, name: str, by: float | int = 1, **labels: str | int) -> None:
        """Add to a count."""
        with self._lock:
            self._counts[name, _labels(labels)] += by  # pyright: ignore[reportArgumentType] -- of seconds, a float

    @contextmanager
    def timed(self, work: str) -> Iterator[None]:
        """Count a piece of the device thread's work and its seconds."""
        began = perf_counter()
        try:
            yield
        finally:
            self.count("kosmosg_work_seconds_sum", perf_counter() - began, work=work)
            self.count("kosmosg_work_seconds_count", work=work)

    def text(self, gauges: Mapping[str, float | int]) -> str:
        """Return all of it, and these that are what they are just now."""
        with self._lock:
            counts = dict(self._counts)
        counts |= {(name, ""): value for name, value in gauges.items()}
        lines = []
        for name, (kind, meaning) in _HELP.items():
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
            found = {labels: value for (one, labels), value in counts.items() if one == name}
            lines += [f"{name}{labels} {value}" for labels, value in sorted(found.items())]
        return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str | int]) -> str:
    inner = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{{{inner}}}" if inner else ""
