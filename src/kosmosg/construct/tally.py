"""What became of a run's records so far, and whether too many of them are bad."""

from collections import Counter
from collections.abc import Sequence

from kosmosg.construct.job import Counts
from kosmosg.construct.journal import DEADLY, Deaths, deadly
from kosmosg.data.skips import NAMED
from kosmosg.errors import DataError

LEAST = 100  # records that must have been seen before the share of bad ones is looked at


class Tally:
    """Counts of finished units, of those at work by place, of deadly records of those that wait.

    Args:
        limit: The share of records, 0 to 1, that may be bad.
    """

    def __init__(self, limit: float) -> None:
        self.done = Counts()
        self._limit = limit
        self._live: dict[int, tuple[str, Counts]] = {}
        self._deadly: dict[str, Counts] = {}

    @property
    def records(self) -> int:
        """Return how many are made, in units at work too."""
        return self.done.records + sum(counts.records for _, counts in self._live.values())

    def add(self, counts: Counts) -> None:
        """Count a finished unit."""
        self.done = _sum([self.done, counts])

    def see(self, place: int, unit: str, counts: Counts) -> None:
        """Note how far the unit is."""
        self._live[place] = (unit, counts)

    def leave(self, place: int) -> None:
        """Forget how far the unit was: it is done, or will be made anew."""
        self._live.pop(place, None)

    def condemn(self, unit: str, deaths: Deaths) -> None:
        """Note the records that killed, until the unit is done and has counted them itself."""
        keys = deaths.deadly
        if keys:
            named = [str(deadly(key)) for key in keys[:NAMED]]
            self._deadly[unit] = Counts(skipped={DEADLY: len(keys)}, named={DEADLY: named})

    def forget(self, unit: str) -> None:
        """Forget the unit's records that killed: it is over."""
        self._deadly.pop(unit, None)

    def check(self) -> None:
        """Pass a share of bad records that is within the limit.

        Raises:
            DataError: If it is not.
        """
        at_work = {unit for unit, _ in self._live.values()}
        waiting = [counts for unit, counts in self._deadly.items() if unit not in at_work]
        counts = _sum([self.done, *(one for _, one in self._live.values()), *waiting])
        bad = sum(counts.skipped.values())
        seen = counts.records + bad  # what a rule leaves out says nothing of the rest
        if seen >= LEAST and bad > self._limit * seen:
            reasons = Counter(counts.skipped).most_common()
            raise DataError(
                f"{bad} of {seen} records are bad, more than {self._limit:.0%}:"
                f" {', '.join(f'{count} {reason}' for reason, count in reasons)}; such as:"
                f" {counts.named[reasons[0][0]][0]}; repair the input, or raise the limit and give"
                " the same command",
                reason="too many left out",
            )


def _sum(parts: Sequence[Counts]) -> Counts:
    named: dict[str, list[str]] = {}
    for part in parts:
        for reason, said in part.named.items():
            named[reason] = [*named.get(reason, []), *said][:NAMED]
    return Counts(
        records=sum(part.records for part in parts),
        skipped=dict(sum((Counter(part.skipped) for part in parts), Counter[str]())),
        dropped=dict(sum((Counter(part.dropped) for part in parts), Counter[str]())),
        named=named,
    )
