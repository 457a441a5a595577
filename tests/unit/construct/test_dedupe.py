"""Near-duplicates: what goes, what stays, and that a killed run of it changes nothing."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmosg.construct import dedupe as module
from kosmosg.construct.dedupe import Near, dedupe
from kosmosg.data.records import Caption
from kosmosg.data.tars import read_index, read_sample
from kosmosg.errors import ConfigError, DataError
from toys.construction import Words, construct, keys_in, units_of

A, B = 0x0123456789ABCDEF, 0xFEDCBA9876543210


def reader():
    """Words are hashes in hexadecimal, or a dash for a record without a picture."""

    def read(unit: Words, _skips: object, _journal: object) -> Iterator[Caption]:
        for key, word in zip(unit.keys, unit.words, strict=True):
            yield Caption(key=key, text=word, provenance={} if word == "-" else {"phash": word})

    return read


def shards_of(tmp_path: Path, *units: list[int | None]) -> Path:
    words = [["-" if one is None else f"{one:016x}" for one in unit] for unit in units]
    construct(units_of(*words), tmp_path / "shards", tmp_path / "flags", make=reader)
    return tmp_path / "shards"


def test_the_first_stays(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, [A, None, B], [B, A ^ 7, None], [A, A ^ 1])
    done = dedupe(shards, distance=3)
    assert keys_in(shards) == ["000/0", "000/1", "000/2", "001/2"]
    assert (done.records, done.dropped) == (4, 4)
    assert done.pairs["001:001/1"] == "000:000/0"
    said = json.loads((shards / "001.json").read_text())
    assert said["duplicates"] == {"001/0": "000:000/2", "001/1": "000:000/0"}
    assert said["counts"]["dropped"] == {"near-duplicate": 2}
    assert said["counts"]["records"] == 1
    with (shards / "001.tar").open("rb") as file:
        (left,) = [read_sample(file, sample) for sample in read_index(shards / "001.tar")]
    assert json.loads(left["json"])["text"] == "-"


def test_a_json_of_another_name_leads_to_no_other_shard(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = shards_of(tmp_path / "other", [A, A])
    shards = shards_of(tmp_path, [A, A])
    said = shards / "000.json"
    said.write_text(said.read_text().replace('"000"', '"../other/shards/000"'))
    with pytest.raises(DataError, match=r"000.json is of unit '\.\./other/shards/000'; call it"):
        dedupe(shards, distance=0)
    assert keys_in(other) == ["000/0", "000/1"]


def test_at_distance_0_only_equal_hashes_go(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, [A, A ^ 1, A, B])
    assert dedupe(shards, distance=0).dropped == 1
    assert keys_in(shards) == ["000/0", "000/1", "000/3"]


def test_a_chain_of_near_ones_is_cut_by_who_stays(tmp_path: Path) -> None:
    """0 and 3 bits are near, 0 and 6 are not, and what went is compared with nothing."""
    shards = shards_of(tmp_path, [A, A ^ 0b111, A ^ 0b111111])
    dedupe(shards, distance=3)
    assert keys_in(shards) == ["000/0", "000/2"]


def test_again_changes_nothing_and_the_run_is_still_done(tmp_path: Path) -> None:
    units = ([A, B], [A ^ 1, B, None])
    shards = shards_of(tmp_path, *units)
    dedupe(shards, distance=1)
    before = {path.name: path.read_bytes() for path in shards.glob("0*")}
    assert dedupe(shards, distance=1).dropped == 0
    shards_of(tmp_path, *units)  # no unit is made again
    assert {path.name: path.read_bytes() for path in shards.glob("0*")} == before
    said = json.loads((shards / "summary.json").read_text())["counts"]
    assert (said["records"], said["dropped"]) == (3, {"near-duplicate": 2})


@pytest.mark.parametrize("writes", range(4))
def test_ended_anywhere_it_comes_to_the_same(
    tmp_path: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended before each of the files that it writes: two shards and their jsons, in turns."""
    units = ([A, B], [A, None], [B ^ 1, A ^ 2, None])
    for name in ("straight", "broken"):
        (tmp_path / name).mkdir()
    straight = shards_of(tmp_path / "straight", *units)
    dedupe(straight, distance=3)
    broken = shards_of(tmp_path / "broken", *units)
    left = iter(range(writes))

    def until_the_end(write):
        def wrapped(*args):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return write(*args)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_shard", until_the_end(module.write_shard))
        patch.setattr(module, "write_json", until_the_end(module.write_json))
        with pytest.raises(KeyboardInterrupt):
            dedupe(broken, distance=3)
    dedupe(broken, distance=3)
    assert keys_in(broken) == keys_in(straight) == ["000/0", "000/1", "001/1", "002/2"]
    for path in straight.glob("0*.tar"):
        assert (broken / path.name).read_bytes() == path.read_bytes()
    one, other = (json.loads((at / "002.json").read_text()) for at in (straight, broken))
    assert one["counts"] == other["counts"]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(0, 63), max_size=5)), max_size=60),
    st.integers(0, 3),
)
def test_near_finds_what_a_comparison_of_all_finds(
    drawn: list[tuple[int, list[int]]], distance: int
) -> None:
    seeds = np.random.default_rng(0).integers(0, 2**64, 6, np.uint64)
    near, kept = Near(), list[int]()
    for which, flips in drawn:
        one = int(seeds[which])
        for bit in flips:
            one ^= 1 << bit
        close = [i for i, other in enumerate(kept) if (one ^ other).bit_count() <= distance]
        assert near.find(one, distance) == (close[0] if close else None)
        near.add(one)
        kept.append(one)


def test_what_cannot_be_deduped(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no shards"):
        dedupe(tmp_path, distance=0)
    with pytest.raises(ConfigError, match="distance is 4; give 0 to 3"):
        dedupe(tmp_path, distance=4)
    shards = shards_of(tmp_path, [A], [1 << 64])
    with pytest.raises(DataError, match="001:001/0 has phash '10000000000000000', not 16 digits"):
        dedupe(shards, distance=0)
    (shards / "000.json").unlink()
    with pytest.raises(DataError, match="no json beside it: it is not finished"):
        dedupe(shards, distance=0)
