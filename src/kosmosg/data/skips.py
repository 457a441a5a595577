"""Records left out: counted by reason, the first of each reason named, too many refused."""

from collections import Counter

from kosmosg.errors import DataError

NAMED = 5


class Skips:
    """What was kept and what was left out of some records.

    Args:
        limit: The share of records, 0 to 1, that may be left out.
        least: Records that must have been seen before the share is looked at.
    """

    def __init__(self, *, limit: float = 0.1, least: int = 100) -> None:
        self.num_kept = 0
        self.reasons: Counter[str] = Counter()
        self.named: dict[str, list[str]] = {}
        self.dropped: Counter[str] = Counter()
        self._limit = limit
        self._least = least

    @property
    def num_skipped(self) -> int:
        """Return how many were left out."""
        return self.reasons.total()

    def keep(self, count: int = 1) -> None:
        """Count records that were used."""
        self.num_kept += count

    def skip(self, error: DataError) -> None:
        """Count a record that is left out.

        Raises:
            DataError: If more than the limit are: something is wrong with the data as a whole.
        """
        self.reasons[error.reason] += 1
        named = self.named.setdefault(error.reason, [])
        if len(named) < NAMED:
            named.append(str(error))
        seen = self.num_kept + self.num_skipped
        if seen >= self._least and self.num_skipped > self._limit * seen:
            raise DataError(
                f"{self.num_skipped} of {seen} records were left out, more than"
                f" {self._limit:.0%}: {self}; the last: {error}",
                reason="too many left out",
            ) from error

    def drop(self, reason: str) -> None:
        """Count a record that a rule leaves out; it is not bad and counts towards no limit."""
        self.dropped[reason] += 1

    def __str__(self) -> str:
        """Return the reasons and their counts, the commonest first."""
        return ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
