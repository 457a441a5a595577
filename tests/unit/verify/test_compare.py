"""What counts as equal, and that nothing passes by being odd."""

import math

import pytest
import torch

from kosmosg.errors import DataError
from kosmosg.verify.compare import Case, Check, Value, compare, difference, exactly, near


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), 0.5),
        (torch.tensor([3, 4]), torch.tensor([3, 4]), 0.0),
        (torch.ones(2), torch.ones(1, 2), math.inf),
        (torch.ones(1), torch.ones(3), math.inf),
        (torch.empty(0, 2), torch.empty(0, 2), 0.0),
    ],
)
def test_difference(ours, theirs, expected):
    assert difference(ours, theirs) == expected


@pytest.mark.parametrize("one", [math.nan, math.inf])
def test_what_is_no_number_is_never_ok(one):
    odd = torch.tensor([0.0, one])
    for ours, theirs in ((odd, torch.zeros(2)), (torch.zeros(2), odd), (odd, odd)):
        check = Check(case="c", what="w", error=difference(ours, theirs), tolerance=1e-5)
        assert not check.ok
        assert check.badness == math.inf


@pytest.mark.parametrize(
    ("ours", "theirs", "wrong", "note"),
    [
        ([1, 2, 3], [1, 2, 3], 0, ""),
        ([1, 2, 3], [1, 5, 6], 2, "at 1: ours [2], theirs [5]"),
        ([1, 2], [1, 2, 3], 1, "at 2: ours [], theirs [3]"),
        ([], [4], 1, "at 0: ours [], theirs [4]"),
        (True, False, 1, "ours True, theirs False"),
        (["x" * 99], [], 1, "at 0: ours ['" + "x" * 55 + "..., theirs []"),
    ],
)
def test_exactly_counts_and_shows_what_differs(ours, theirs, wrong, note):
    check = exactly("c", "w", ours, theirs)
    assert (check.error, check.tolerance, check.note, check.ok) == (wrong, 0, note, not wrong)


def test_numbers_are_near_within_the_tolerance():
    assert near("c", "w", 1.0, 1.25, 0.25).ok
    assert not near("c", "w", 1.0, 1.5, 0.25).ok


def test_each_tensor_of_a_case_is_compared_or_named():
    case = Case("cases/x", {"in.a": torch.ones(2), "in.b": torch.ones(1), "out.c": torch.ones(3)})
    given = case["in.a"]
    values = [
        Value(key="out.c", ours=given.sum() / 2 + torch.zeros(3), how="again"),
        Value(key="out.d", ours=given),
    ]
    checks = list(compare(case, values))
    assert [(check.what, check.ok, check.note) for check in checks] == [
        ("c (again)", True, ""),
        ("not checked", False, "we compute out.d, which the file lacks"),
        ("not checked", False, "no part of kosmosg computes in.b"),
    ]
    with pytest.raises(DataError, match=r"cases/x has no tensor 'in\.e'"):
        _ = case["in.e"]


def test_another_shape_is_said():
    case = Case("cases/x", {"out.c": torch.ones(3)})
    (check,) = compare(case, [Value(key="out.c", ours=torch.ones(1, 3))])
    assert (check.ok, check.note) == (False, "ours is (1, 3), theirs (3,)")
