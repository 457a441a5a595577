from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmosg.data.readers.names import MAX_LENGTH, key_of, stems
from kosmosg.data.tars import check_key


@given(st.lists(st.text(max_size=200), min_size=2, max_size=5, unique=True))
def test_any_name_becomes_a_key_and_different_names_different_keys(names):
    keys = [key_of(name) for name in names]
    for key in keys:
        check_key(key)
        assert len(key) <= MAX_LENGTH + 11
    assert len(set(keys)) == len(names)


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (("00000", "000000012"), "00000/000000012"),
        (("a-b_C", 7), "a-b_C/7"),
        (("../x",), "_/x-"),
        (("a b",), "a_b-"),
        (("",), "_-"),
        (("\ud800",), "_-"),
        (("x" * 200,), "x" * MAX_LENGTH + "-"),
    ],
)
def test_good_names_stay_and_others_get_a_hash(names, key):
    made = key_of(*names)
    assert made == key or (key.endswith("-") and made[:-10] == key)


def test_files_are_named_shortly_unless_two_would_share():
    files = [Path("d/a.tar"), Path("d/s/a.tar"), Path("d/b.jsonl"), Path("d/b.jsonl.gz")]
    named = ["a", "s/a", "b.jsonl", "b.jsonl.gz"]
    assert list(stems(files, Path("d")).values()) == named
