"""Records left out: counted by reason, the first of each reason named, too many refused."""

import mmap
from collections import Counter

from kosmosg.errors import DataError

NAMED = 5


class Place:
    """Which record is being read, in memory that a forked process shares: for when it hangs."""

    SIZE = 512

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self.SIZE)

    def note(self, what: str) -> None:
        """Say what is being read from now on."""
        data = what.encode()[-self.SIZE + 2 :]
        self._memory[: 2 + len(data)] = len(data).to_bytes(2, "little") + data

    def __str__(self) -> str:
        """Return what was said last, or that nothing was."""
        size = int.from_bytes(self._memory[:2], "little")
        return self._memory[2 : 2 + size].decode(errors="replace") or "none that has a name"


class Skips:
    """What was kept and what was left out of some records.

    Args:
        limit: The share of records, 0 to 1, that may be left out.
        least: Records that must have been seen before the share is looked at; where the limit is 0
            the first that is left out is one too many.
    """

    def __init__(self, *, limit: float = 0.1, least: int = 100) -> None:
        self.num_kept = 0
        self.reasons: Counter[str] = Counter()
        self.named: dict[str, list[str]] = {}
        self.dropped: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()
        self.place: Place | None = None
        self._limit = limit
        self._least = least

    @property
    def num_skipped(self) -> int:
        """Return how many were left out."""
        return self.reasons.total()

    def copy(self) -> "Skips":
        """Return the counts as they stand, while another thread may go on counting."""
        copied = Skips(limit=self._limit, least=self._least)
        copied.num_kept = self.num_kept
        for name in ("reasons", "noted", "dropped"):
            setattr(copied, name, Counter(dict(getattr(self, name))))
        copied.named = {reason: list(named) for reason, named in dict(self.named).items()}
        return copied

    def reading(self, what: str) -> None:
        """Note which record is being read, where somebody wants to know."""
        if self.place is not None:
            self.place.note(what)

    def keep(self, count: int = 1) -> None:
        """Count records that were used."""
        self.num_kept += count

    def skip(self, error: DataError) -> None:
        """Count a record that is left out.

        Raises:
            DataError: If more than the limit are: something is wrong with the data as a whole.
        """
        self.reasons[error.reason] += 1
        self._name(error.reason, [str(error)])
        self._check(error)

    def note(self, what: str) -> None:
        """Count something about a record that is used nevertheless."""
        self.noted[what] += 1

    def take(self) -> "Skips":
        """Return what was counted, for `add` in another process, and begin anew."""
        taken = Skips(limit=self._limit, least=self._least)
        taken.num_kept, self.num_kept = self.num_kept, 0
        taken.reasons, self.reasons = self.reasons, Counter()
        taken.named, self.named = self.named, {}
        taken.noted, self.noted = self.noted, Counter()
        taken.dropped, self.dropped = self.dropped, Counter()
        return taken

    def count_only(self) -> None:
        """Let no share be too many from here on: what is counted is judged where it is added."""
        self._limit = 1.0

    def add(self, other: "Skips") -> None:
        """Count what another one counted.

        Raises:
            DataError: As `skip`.
        """
        self.num_kept += other.num_kept
        self.reasons += other.reasons
        self.noted += other.noted
        self.dropped += other.dropped
        for reason, messages in other.named.items():
            self._name(reason, messages)
        if other.reasons:
            # A copy of what a thread counts may have a reason before its first name.
            last = [m for reason in other.reasons for m in other.named.get(reason) or [reason]][-1]
            self._check(DataError(last))

    def _name(self, reason: str, messages: list[str]) -> None:
        named = self.named.setdefault(reason, [])
        named += messages[: NAMED - len(named)]

    def _check(self, last: DataError) -> None:
        seen = self.num_kept + self.num_skipped
        is_judged = seen >= self._least or not self._limit
        if is_judged and self.num_skipped > self._limit * seen:
            raise DataError(
                f"{self.num_skipped} of {seen} records were left out, more than"
                f" {self._limit:.0%}: {self}; the last: {last}",
                reason="too many left out",
            ) from last

    def drop(self, reason: str, what: str | None = None) -> None:
        """Count a record that a rule leaves out; it is not bad and counts towards no limit.

        Args:
            reason: A short fixed phrase.
            what: Which record, where somebody may want to look at the first of them.
        """
        self.dropped[reason] += 1
        if what is not None:
            self._name(reason, [what])

    def __str__(self) -> str:
        """Return the reasons and their counts, the commonest first."""
        return ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
