import os
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmosg.data.mixture import Mixture
from kosmosg.data.shards import Shards
from kosmosg.data.skips import Skips
from kosmosg.data.tars import write_shard
from kosmosg.errors import ConfigError, DataError
from toys.tars import write_tars


def text(key, files):
    word = files["txt"].decode()
    if word.startswith("bad"):
        raise DataError(f"record {key} is bad", reason="bad word")
    assert word.endswith(key)
    return word


def shards(paths, *, seed=0, limit=1.0, **options):
    return Shards(paths, decode=text, seed=seed, skips=Skips(limit=limit), **options)


@settings(max_examples=15)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    st.integers(1, 10),
    st.integers(0, 2**40),
)
def test_each_sample_comes_once_an_epoch_and_windows_hold(tmp_path_factory, counts, window, seed):
    folder = tmp_path_factory.mktemp("tars")
    stream = shards(write_tars(folder, counts), window=window, seed=seed)
    all_names = {f"{tar}-{i}" for tar, count in enumerate(counts) for i in range(count)}
    for epoch in range(2):
        names = stream.batch(epoch, len(stream))
        assert len(names) == len(all_names)
        assert set(names) == all_names
        # A tar is read within one window alone: tars between its first and last record are few.
        tars = [name.partition("-")[0] for name in names]
        for tar in set(tars):
            last = len(tars) - tars[::-1].index(tar)
            assert len(set(tars[tars.index(tar) : last])) <= window


def test_epochs_and_seeds_are_orders_of_their_own_and_stored_order_is_none(tmp_path):
    paths = write_tars(tmp_path, [6, 6, 6])
    stream = shards(paths, window=2)
    first, second = stream.batch(0, 18), stream.batch(1, 18)
    assert first != second
    assert first != shards(paths, window=2, seed=1).batch(0, 18)
    stored = shards(paths, order="stored").batch(0, 20)
    assert stored == [*sorted(first), "0-0", "0-1"]
    # Within a window of two tars, samples of both are mixed; the third tar's stay apart.
    assert len({name[0] for name in first[:6]}) == 2


def test_a_batch_is_where_it_is_whatever_was_read_before(tmp_path):
    paths = write_tars(tmp_path, [5, 9, 2, 7])
    whole = shards(paths, window=2).batch(0, 120)
    late = shards(paths, window=2)
    assert late.batch(7, 10) == whole[70:80]
    assert late.batch(0, 7) == whole[:7]


def test_threads_and_pickles_and_forks_read_the_same(tmp_path):
    paths = write_tars(tmp_path, [4] * 12)
    stream = shards(paths, window=3)
    whole = shards(paths, window=3).batch(0, 400)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda step: stream.batch(step, 10), range(40)))
    assert [name for part in parts for name in part] == whole
    assert pickle.loads(pickle.dumps(stream)).batch(3, 10) == whole[30:40]


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("kosmosg.data.shards.OPEN_FILES", 4)
    stream = shards(write_tars(tmp_path, [1] * 30), window=1)
    before = len(os.listdir("/proc/self/fd"))
    stream.batch(0, 60)
    assert len(os.listdir("/proc/self/fd")) - before <= 4


def bad(folder, tar, sample):
    """Make a sample bad in place, so that the index still fits."""
    path = folder / f"{tar:03}.tar"
    status = path.stat()
    name = f"{tar}-{sample}".encode()
    head, word = path.read_bytes().split(name + b".txt", 1)
    path.write_bytes(head + name + b".txt" + word.replace(name, b"bad"[: len(name)], 1))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_damaged_sample_is_counted_and_another_stands_in_its_place(tmp_path):
    paths = write_tars(tmp_path, [5, 5])
    whole = shards(paths).batch(0, 30)
    bad(tmp_path, 0, 3)
    stream = shards(paths)
    names = stream.batch(0, 30)
    places = [index for index, name in enumerate(whole) if name == "0-3"]
    assert len(places) == 3
    assert [name for i, name in enumerate(names) if i not in places] == [
        name for name in whole if name != "0-3"
    ]
    assert names == shards(paths).batch(0, 30)
    assert len({names[place] for place in places}) > 1  # not always the same neighbour
    assert stream.skips.reasons["bad word"] >= 3
    assert stream.skips.named["bad word"][0] == "record 0-3 is bad"
    assert stream.skips.num_kept == 30


def test_too_many_damaged_samples_end_it_and_so_do_only_damaged_ones(tmp_path):
    paths = write_tars(tmp_path / "some", [20])
    for sample in range(5):
        bad(tmp_path / "some", 0, sample)
    with pytest.raises(DataError, match=r"\d+ of \d+ records were left out, more than 10%"):
        shards(paths, limit=0.1).batch(0, 400)
    paths = write_tars(tmp_path / "all", [2])
    for sample in range(2):
        bad(tmp_path / "all", 0, sample)
    with pytest.raises(DataError, match=r"17 samples in a row .* the last: record 0-\d is bad"):
        shards(paths).batch(0, 1)


def test_a_half_tar_and_one_that_shrinks_are_counted(tmp_path):
    paths = write_tars(tmp_path, [5, 5])
    paths[0].write_bytes(paths[0].read_bytes()[: 3 * 1024 + 512])
    stream = shards(paths, order="stored")
    assert len(stream) == 7
    assert stream.skips.reasons == Counter({"cut-off shard": 1})
    paths[1].write_bytes(paths[1].read_bytes()[:1024])
    names = stream.batch(0, 7)
    assert names[:3] == ["0-0", "0-1", "1-0"]
    assert {name[:3] for name in names} <= {"0-0", "0-1", "1-0"}
    assert stream.skips.reasons["cut-off shard"] >= 5


def test_tars_that_vanish_or_are_empty_are_named(tmp_path):
    paths = write_tars(tmp_path / "a", [3, 3])
    stream = shards(paths, order="stored")
    paths[0].unlink()
    assert all(name.startswith("1-") for name in stream.batch(0, 6))
    assert "it was there when the run began" in stream.skips.named["unreadable shard"][0]
    with pytest.raises(ConfigError, match=r"000\.tar: no samples in 1 shards; give others"):
        shards(write_tars(tmp_path / "b", [0]))
    (tmp_path / "no.tar").write_bytes(b"x" * 5000)
    with pytest.raises(ConfigError, match=r"no samples in 1 shards \(.*uncompressed tar"):
        shards([tmp_path / "no.tar"])
    with pytest.raises(ConfigError, match="window is 0"):
        shards(paths[1:], window=0)


def test_shards_blend_two_two_one(tmp_path):
    sources = {
        name: shards(write_tars(tmp_path / name, [7, 4], prefix=name), seed=seed)
        for seed, name in enumerate(("example", "edit", "caption"))
    }
    blend = Mixture(sources, {"example": 2, "edit": 2, "caption": 1}, seed=5)
    names = blend.batch(0, 55)
    for start in range(0, 55, 5):
        kinds = Counter(name.rstrip("0123456789-") for name in names[start : start + 5])
        assert kinds == {"example": 2, "edit": 2, "caption": 1}
    examples = [name for name in names if name.startswith("example")]
    assert examples == sources["example"].batch(0, 22)
    assert blend.batch(4, 6) == names[24:30]


def test_a_tar_is_told_from_another_of_its_name_size_and_time(tmp_path):
    fingerprints = []
    for folder, sizes in (("a", (10, 700)), ("b", (700, 10))):
        path, moved = tmp_path / folder / "0.tar", tmp_path / folder / "moved" / "0.tar"
        moved.parent.mkdir(parents=True)
        write_shard(path, [(str(size), {"txt": b"w" * size}) for size in sizes])
        os.utime(path, ns=(0, 0))
        fingerprints.append(shards([path]).fingerprint(0))
        assert shards([path.rename(moved)]).fingerprint(0) == fingerprints[-1]
    assert fingerprints[0] != fingerprints[1]
    assert fingerprints[0].split()[:3] == fingerprints[1].split()[:3]
