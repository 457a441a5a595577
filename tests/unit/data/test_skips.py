import os

import pytest

from kosmosg.data.skips import Place, Skips
from kosmosg.errors import DataError


def bad(number: int, reason: str = "bad json") -> DataError:
    return DataError(f"record {number} is bad", reason=reason)


def test_what_is_left_out_is_counted_and_the_first_of_each_reason_named():
    skips = Skips(limit=1.0)
    skips.keep(3)
    for number in range(7):
        skips.skip(bad(number))
    skips.skip(bad(9, "no picture"))
    assert (skips.num_kept, skips.num_skipped) == (3, 8)
    assert str(skips) == "7 bad json, 1 no picture"
    assert skips.named["bad json"] == [f"record {number} is bad" for number in range(5)]


def test_too_many_stop_the_work_once_enough_were_seen():
    skips = Skips(limit=0.1, least=20)
    skips.keep(10)
    for number in range(9):
        skips.skip(bad(number))
    with pytest.raises(DataError, match="10 of 20 records were left out, more than 10%: 10 bad"):
        skips.skip(bad(9))


def test_as_many_as_the_limit_are_no_reason_to_stop():
    skips = Skips(limit=0.5, least=2)
    skips.keep(2)
    skips.skip(bad(0))
    skips.skip(bad(1))
    assert skips.num_skipped == 2


def test_what_a_rule_drops_is_counted_and_towards_no_limit():
    skips = Skips(limit=0.0, least=1)
    for _ in range(3):
        skips.drop("too small")
    assert (skips.dropped, skips.num_skipped) == ({"too small": 3}, 0)


def test_what_was_counted_elsewhere_is_added_up():
    here, there = Skips(limit=0.5, least=10), Skips(limit=0.5, least=10)
    for count, skips in ((4, here), (3, there)):
        skips.keep(count)
        for number in range(count):
            skips.skip(bad(number + 10 * count))
            skips.note("odd")
    here.add(there.take())
    assert (there.num_kept, there.num_skipped, there.named, there.noted) == (0, 0, {}, {})
    assert (here.num_kept, here.num_skipped, here.noted["odd"]) == (7, 7, 7)
    assert here.named["bad json"] == [f"record {n} is bad" for n in (40, 41, 42, 43, 30)]
    there.count_only()
    for _ in range(20):
        there.skip(bad(0, "no json"))
    with pytest.raises(DataError, match=r"27 of 34 .* the last: record 0 is bad"):
        here.add(there.take())


def test_a_limit_of_none_counts_from_the_first():
    with pytest.raises(DataError, match="1 of 1 records were left out, more than 0%: 1 x"):
        Skips(limit=0.0).skip(DataError("a", reason="x"))


def test_a_copy_stands_by_itself_and_can_be_added_before_its_names_are_there():
    skips = Skips(limit=1.0)
    skips.skip(DataError("record 1 is bad", reason="bad"))
    copied = skips.copy()
    skips.skip(DataError("record 2 is bad", reason="bad"))
    assert (copied.num_skipped, copied.named) == (1, {"bad": ["record 1 is bad"]})
    copied.named.clear()
    total = Skips(limit=1.0)
    total.add(copied)
    assert total.reasons == {"bad": 1}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_place_is_told_to_whoever_shares_the_memory():
    place = Place()
    assert str(place) == "none that has a name"
    if os.fork() == 0:
        place.note("x" * 600 + "a.tar: key-7")
        os._exit(0)
    os.wait()
    assert str(place).endswith("xa.tar: key-7")
    assert len(str(place)) == Place.SIZE - 2
