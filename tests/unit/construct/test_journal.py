"""What a unit's journal says of the processes that died at it."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from kosmosg.construct.journal import DEADLY, Journal, read_deaths
from kosmosg.data.skips import Skips


@dataclass(frozen=True)
class Thing:
    key: str


def died(path: Path, *lines: str) -> None:
    """Leave what a process would that died at the last of these keys."""
    journal = Journal(path, "sum")
    for keys in lines:
        journal.at(*keys.split())
    journal._file.close()


def test_one_alone_is_suspected_once_and_left_out_the_second_time(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    died(path, "a", "b")
    assert read_deaths(path, "sum").deadly == []
    died(path, "a", "b")
    assert read_deaths(path, "sum").deadly == ["b"]
    skips = Skips()
    with closing(Journal(path, "sum")) as journal:
        assert list(journal.each(zip("abc", "ABC", strict=True), skips)) == [("a", "A"), ("c", "C")]
    assert skips.reasons == {DEADLY: 1}
    assert skips.named[DEADLY][0].startswith("record b: 2 processes died")


def test_those_of_a_batch_come_alone_and_none_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for _ in range(3):
        died(path, "a b", "c d")
    assert read_deaths(path, "sum").deadly == []
    with closing(Journal(path, "sum")) as journal:
        batches = list(journal.batches(map(Thing, "abcdefg"), 3))
    assert [[one.key for one in batch] for batch in batches] == [
        ["a", "b"],
        ["c"],
        ["d"],
        ["e", "f"],
        ["g"],
    ]


def test_a_process_that_came_through_blames_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for _ in range(3):
        with closing(Journal(path, "sum")) as journal:
            journal.at("a")
        died(path, "a", "")
    deaths = read_deaths(path, "sum")
    assert (deaths.named, deaths.deadly) == (0, [])


def test_deaths_are_in_a_row_until_another_record_comes_through(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    rows = []
    for lines in (["a"], ["a"], ["b"], ["b"], ["c", "d"], ["c", "d"], ["c", "e f"]):
        died(path, *lines)
        rows.append(read_deaths(path, "sum").in_a_row)
    assert rows == [1, 2, 3, 4, 1, 2, 3]


def test_other_input_and_half_a_line_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    died(path, "a")
    died(path, "a")
    assert read_deaths(path, "other").deadly == []
    path.write_bytes(path.read_bytes()[:-5])  # the second died while it wrote
    assert read_deaths(path, "sum").deadly == []
    died(path, "b")
    assert read_deaths(path, "sum").alone == {"a": 1}


def test_lines_of_processes_may_be_mixed(tmp_path: Path) -> None:
    """One that was taken for dead goes on beside its successor."""
    path = tmp_path / "journal"
    one, other = Journal(path, "sum"), Journal(path, "sum")
    one.at("a")
    other.at("a")
    one.at("b")
    other.at("c")
    one.close()
    other._file.close()
    assert read_deaths(path, "sum").alone == {"c": 1}
