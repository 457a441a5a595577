import errno
import io
import os
import shutil
import zipfile

import numpy as np
import pytest

from kosmosg.data.index import INDEX_NAME, index_tars
from kosmosg.data.tars import read_index, read_span, write_shard
from kosmosg.errors import ConfigError
from toys.tars import write_tars


def keys(index):
    found = []
    for tar, path in enumerate(index.paths):
        descriptor = os.open(path, os.O_RDONLY)
        for start, stop in index.bounds[index.firsts[tar] : index.firsts[tar + 1]].tolist():
            found.append(read_span(descriptor, start, stop, name="a tar")[0])
        os.close(descriptor)
    return found


def test_samples_are_found_in_their_order(tmp_path):
    paths = write_tars(tmp_path, [3, 0, 2])
    index = index_tars(paths)
    assert index.firsts.tolist() == [0, 3, 3, 5]
    assert keys(index) == ["0-0", "0-1", "0-2", "2-0", "2-1"]
    assert index.bounds.nbytes == 16 * index.num_samples


def test_the_index_is_kept_and_renewed_for_what_changed(tmp_path, monkeypatch):
    paths = write_tars(tmp_path, [3, 2])
    index_tars(paths)
    read = []
    monkeypatch.setattr(
        "kosmosg.data.index.read_index", lambda path: read.append(path.name) or read_index(path)
    )
    assert keys(index_tars(paths)) == ["0-0", "0-1", "0-2", "1-0", "1-1"]
    assert read == []
    write_shard(paths[1], [("new", {"txt": b""})])
    (extra,) = write_tars(tmp_path / "more", [1], prefix="x")
    extra = extra.rename(tmp_path / "002.tar")
    assert keys(index_tars([*paths, extra])) == ["0-0", "0-1", "0-2", "new", "x0-0"]
    assert sorted(read) == ["001.tar", "002.tar"]
    assert keys(index_tars([extra])) == ["x0-0"]  # a part of what is kept
    assert len(read) == 2


def test_a_folder_that_cannot_be_written_is_indexed_in_the_cache(tmp_path, monkeypatch):
    paths = write_tars(tmp_path / "data", [2])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    replace = os.replace

    def refuse(source, target):
        if os.fspath(target).startswith(str(tmp_path / "data")):
            raise PermissionError(13, "no")  # root, who may run the tests, may write anywhere
        return replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    index_tars(paths)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["000.tar"]
    (kept,) = (tmp_path / "cache" / "kosmosg" / "index").iterdir()
    before = kept.stat().st_mtime_ns
    assert keys(index_tars(paths)) == ["0-0", "0-1"]
    assert kept.stat().st_mtime_ns == before


def test_a_read_only_file_system_is_indexed_in_the_cache(tmp_path, monkeypatch):
    paths = write_tars(tmp_path / "data", [2])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opening, unlink = io.open, os.unlink

    def check(path):
        if os.fspath(path).startswith(str(tmp_path / "data")):
            raise OSError(errno.EROFS, "Read-only file system")

    def open_one(path, mode="r", *args, **options):
        if "w" in mode:
            check(path)
        return opening(path, mode, *args, **options)

    def unlink_one(path, *args, **options):  # which such a system refuses before it looks
        check(path)
        unlink(path, *args, **options)

    monkeypatch.setattr(io, "open", open_one)
    monkeypatch.setattr(os, "unlink", unlink_one)
    assert keys(index_tars(paths)) == ["0-0", "0-1"]
    assert len(list((tmp_path / "cache" / "kosmosg" / "index").iterdir())) == 1


DAMAGES = [b"", b"no zip", "cut", "outside", "object", "compressed", "no array", "method"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_hostile_index_is_made_anew(tmp_path, damage):
    paths = write_tars(tmp_path, [3])
    index_tars(paths)
    kept = tmp_path / INDEX_NAME
    with np.load(kept) as file:
        parts = dict(file)
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:200])
    elif damage == "outside":
        np.savez(kept, tars=parts["tars"], bounds=parts["bounds"] + np.uint64(10**9))
    elif damage == "object":  # a pickle, which would be executed
        np.savez(kept, tars=np.array([{}], object), bounds=parts["bounds"])
    elif damage == "compressed":  # which may hold more than the memory does
        extra = np.zeros(2**20, np.uint8)
        np.savez_compressed(kept, **parts, extra=extra)
    elif damage == "no array":
        with zipfile.ZipFile(kept, "w") as file:
            file.writestr("tars", b"text")
            file.writestr("bounds", b"text")
    elif damage == "method":  # of packing, in the list of what is in the zip
        data = bytearray(kept.read_bytes())
        data[data.index(b"PK\1\2") + 10] ^= 1
        kept.write_bytes(data)
    else:
        kept.write_bytes(damage)
    before = kept.read_bytes()
    assert keys(index_tars(paths)) == ["0-0", "0-1", "0-2"]
    assert kept.read_bytes() != before
    assert keys(index_tars(paths)) == ["0-0", "0-1", "0-2"]


def test_a_half_tar_gives_its_whole_samples_and_its_damage_is_remembered(tmp_path):
    (path,) = write_tars(tmp_path, [5])
    path.write_bytes(path.read_bytes()[: 3 * 1024 + 512])
    for folder in (tmp_path, tmp_path / "moved"):
        if folder != tmp_path:  # the index goes with the data
            folder.mkdir()
            for one in (path, tmp_path / INDEX_NAME):
                shutil.copy2(one, folder)
        index = index_tars([folder / path.name])
        assert keys(index) == ["0-0", "0-1"]
        (damage,) = index.damages
        assert damage.reason == "cut-off shard"
        assert str(damage).startswith(f"{folder / path.name}: member '0-3.txt'")


def test_a_missing_tar_is_named(tmp_path):
    paths = write_tars(tmp_path, [1])
    with pytest.raises(ConfigError, match=r"gone\.tar: No such file or directory; correct"):
        index_tars([*paths, tmp_path / "gone.tar"])
    with pytest.raises(ConfigError, match=r"is no ordinary file|Is a directory"):
        index_tars([tmp_path])
