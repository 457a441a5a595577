"""Their numbers beside ours: cases, values, checks."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Shaped
from safetensors.torch import load_file
from torch import Tensor

from kosmosg.errors import DataError

# Two float32 implementations agree to 4e-6 on every case; a wrong epsilon already gives 4e-5.
TOLERANCE = 1e-5
EXACT = 0.0
TAP = "out.tap."  # the output of some layer


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison: the largest difference, and how large it may be.

    `case` is the file's path in the folder, `what` the thing compared. `note` says what is wrong
    where no difference can tell it.
    """

    case: str
    what: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the difference is small enough; one that is not a number is not."""
        return self.error <= self.tolerance

    @property
    def badness(self) -> float:
        """The difference in units of the tolerance, for finding the worst."""
        if self.ok:
            return self.error / self.tolerance if self.tolerance else 0.0
        return math.inf


@dataclass(frozen=True, kw_only=True)
class Value:
    """What we compute for the tensor `key` of a case; `how`, where there is more than one way."""

    key: str
    ours: Shaped[Tensor, "..."]
    how: str = ""
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class Case:
    """The tensors of one golden file, which remembers those that were looked at."""

    name: str
    tensors: Mapping[str, Tensor]
    _seen: set[str] = field(default_factory=set)

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def __getitem__(self, key: str) -> Shaped[Tensor, "..."]:
        """Return a tensor.

        Raises:
            DataError: If the file lacks it.
        """
        if key not in self.tensors:
            raise DataError(f"{self.name} has no tensor {key!r}; copy the file again")
        self._seen.add(key)
        return self.tensors[key]

    def get(self, key: str) -> Shaped[Tensor, "..."] | None:
        """Return a tensor, or None if the file lacks it."""
        return self[key] if key in self.tensors else None

    def unseen(self) -> list[str]:
        """Return the keys that nobody has asked for."""
        return sorted(self.tensors.keys() - self._seen)


def read_case(directory: Path, name: str, more: Mapping[str, Tensor] | None = None) -> Case:
    """Return a case of the folder, with tensors that other files hold of it."""
    return Case(name, load_file(directory / name) | dict(more or {}))


def compare(case: Case, values: Iterable[Value]) -> Iterator[Check]:
    """Yield each comparison, and a failure for each tensor that nothing was compared with.

    A recording may leave out layers; a result that it leaves out is a failure.
    """
    for value in values:
        what = f"{value.key.removeprefix('out.')}{f' ({value.how})' if value.how else ''}"
        if value.key not in case and value.key.startswith(TAP):
            continue
        if value.key not in case:
            yield not_checked(case.name, f"we compute {value.key}, which the file lacks")
            continue
        theirs = case[value.key]
        yield Check(
            case=case.name,
            what=what,
            error=difference(value.ours, theirs),
            tolerance=value.tolerance,
            note="" if value.ours.shape == theirs.shape else _shapes(value.ours, theirs),
        )
    for key in case.unseen():
        yield not_checked(case.name, f"no part of kosmosg computes {key}")


def difference(ours: Shaped[Tensor, "..."], theirs: Shaped[Tensor, "..."]) -> float:
    """Return the largest absolute difference; infinity between tensors of unlike shapes."""
    if ours.shape != theirs.shape:
        return math.inf
    if not ours.numel():
        return 0.0
    return (ours.detach().double() - theirs.double()).abs().max().item()


def exactly(case: str, what: str, ours: object, theirs: object) -> Check:
    """Return the comparison of two things that must be equal; the error counts what is not."""
    if ours == theirs:
        return Check(case=case, what=what, error=0.0, tolerance=EXACT)
    note, wrong = f"ours {_short(ours)}, theirs {_short(theirs)}", 1
    if isinstance(ours, list) and isinstance(theirs, list):
        pairs = list(zip(ours, theirs, strict=False))
        unlike = [index for index, (one, other) in enumerate(pairs) if one != other]
        wrong = len(unlike) + abs(len(ours) - len(theirs))
        at = unlike[0] if unlike else len(pairs)
        note = f"at {at}: ours {_short(ours[at : at + 1])}, theirs {_short(theirs[at : at + 1])}"
    return Check(case=case, what=what, error=float(wrong), tolerance=EXACT, note=note)


def near(case: str, what: str, ours: float, theirs: float, tolerance: float) -> Check:
    """Return the comparison of two numbers."""
    return Check(case=case, what=what, error=abs(ours - theirs), tolerance=tolerance)


def not_checked(case: str, why: str) -> Check:
    """Return the failure of something that could not be compared."""
    return Check(case=case, what="not checked", error=math.inf, tolerance=EXACT, note=why)


def _shapes(ours: Tensor, theirs: Tensor) -> str:
    return f"ours is {tuple(ours.shape)}, theirs {tuple(theirs.shape)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
