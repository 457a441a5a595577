"""Zip files that are not what torch.save writes, and the ones that we write ourselves."""

import io
import struct
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kosmosg.convert import pickled
from kosmosg.convert.archive import read_archive, write_archive
from kosmosg.errors import CheckpointError
from toys.files import pickled as pickle_of
from toys.files import torch_file

NOTHING = pickle_of({"model": {}})


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    for data, what in (
        (b"", "not a checkpoint of torch"),
        (b"\x89PNG, a picture", "not a checkpoint of torch"),
        (b"PK\x03\x04 and no end", "cut short or damaged"),
    ):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=what) as caught:
            read_archive(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400
    with pytest.raises(CheckpointError, match="No such file"):
        read_archive(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_archive(tmp_path)


def test_torch_before_1_6_is_named_with_its_remedy(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"model": {}}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"load and save it again with torch >= 1\.6"):
        read_archive(path)


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    torch.save({"model": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        read_archive(path)


def test_a_zip_without_one_pickle_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "other.zip"
    for names in (["notes.txt"], ["a/data.pkl", "b/data.pkl"], ["a/b/data.pkl"]):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"")
        with pytest.raises(CheckpointError, match=r"not what torch\.save writes"):
            read_archive(path)
    script = torch_file(tmp_path / "script.pt", NOTHING, **{"constants.pkl": b""})
    with pytest.raises(CheckpointError, match=r"not what torch\.save writes"):
        read_archive(script)


def test_a_compressed_entry_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N" * 50_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match=r"'archive/data\.pkl' is compressed"):
        read_archive(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile warns; the point of this test
def test_an_entry_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", NOTHING)
        archive.writestr("archive/data.pkl", NOTHING)
    with pytest.raises(CheckpointError, match=r"has the entry 'archive/data\.pkl' twice"):
        read_archive(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.timeout(60)
def test_an_entry_twice_is_found_among_many(tmp_path: Path) -> None:
    path = tmp_path / "many.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*range(60_000), "last", "last"):
            archive.writestr(f"archive/{name}", b"")
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="has the entry 'archive/last' twice"):
        read_archive(path)
    assert time.monotonic() - start < 10  # comparing each with each took 30 s


@pytest.mark.parametrize("name", ["../data/0", "/data/0", "archive/../../etc/passwd", "a\\b"])
def test_names_of_other_places_are_refused(name: str, tmp_path: Path) -> None:
    path = torch_file(tmp_path / "away.pt", NOTHING)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(CheckpointError, match="has the name of another place"):
        read_archive(path)


def test_a_link_is_refused(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "link.pt", NOTHING)
    link = zipfile.ZipInfo("archive/data/0")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, b"/etc/passwd")
    with pytest.raises(CheckpointError, match="is a link"):
        read_archive(path)


def directory_of(data: bytearray) -> int:
    return struct.unpack("<I", data[-6:-2])[0]


def test_headers_that_lie_are_refused(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "lies.pt", NOTHING, {"0": b"1234"})
    honest = path.read_bytes()

    data = bytearray(honest)
    at = directory_of(data)
    data[at + 20 : at + 28] = struct.pack("<II", 10**6, 10**6)  # the sizes of the first entry
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="reaches beyond the end of the file"):
        read_archive(path)

    data = bytearray(honest)
    size = len(NOTHING) + 46
    data[at + 20 : at + 28] = struct.pack("<II", size, size)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="lies over another one"):
        read_archive(path)

    path.write_bytes(honest.replace(b"archive/data.pkl", b"archive/xxxx.pkl", 1))
    with pytest.raises(CheckpointError, match="two headers that differ"):
        read_archive(path)


def test_big_endian_is_refused(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "big.pt", NOTHING, byteorder=b"big")
    with pytest.raises(CheckpointError, match="big-endian"):
        read_archive(path)


@dataclass(frozen=True, eq=False)
class Made:
    value: torch.Tensor

    dtype = property(lambda self: self.value.dtype)
    shape = property(lambda self: tuple(self.value.shape))

    def read(self) -> torch.Tensor:
        return self.value


def test_what_is_written_is_what_torch_loads(tmp_path: Path) -> None:
    path = tmp_path / "written.pt"
    values = [torch.randn(3, 4), torch.randn(5).half(), torch.randn(2, 2, 2).bfloat16()]
    made = [Made(value) for value in values]
    data = {"model": {str(i): one for i, one in enumerate(made)} | {"tied": made[0]}, "args": None}
    write_archive(path, data)
    theirs = torch.load(path, weights_only=True)
    ours = pickled.load(path)
    assert theirs["args"] is None
    for index, value in enumerate(values):
        assert torch.equal(theirs["model"][str(index)], value)
        assert torch.equal(ours["model"][str(index)].read(), value)
    assert theirs["model"]["tied"].data_ptr() == theirs["model"]["0"].data_ptr()
    assert ours["model"]["tied"] == ours["model"]["0"]
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        assert archive.testzip() is None
        assert sum(name.startswith("archive/data/") for name in archive.namelist()) == 3


def test_weights_that_are_not_what_was_written_are_named(tmp_path: Path) -> None:
    """A bit that fell over on the way; torch.load says nothing."""
    path = tmp_path / "weights.pt"
    values = torch.arange(64.0)
    torch.save({"whole": values.reshape(8, 8), "view": torch.randn(6)[1:]}, path)
    assert torch.equal(pickled.load(path)["whole"].read(), values.reshape(8, 8))
    data = bytearray(path.read_bytes())
    data[data.index(values.numpy().tobytes()) + 100] ^= 1
    path.write_bytes(data)
    stored = pickled.load(path)
    with pytest.raises(CheckpointError, match=r"weights.pt is damaged: 256 bytes .* fetch"):
        stored["whole"].read()
    assert stored["view"].read().shape == (5,)


def test_a_pickle_that_is_not_what_was_written_is_named(tmp_path: Path) -> None:
    """One bit more and 3 heads would be 2, which no shape contradicts."""
    path = torch_file(tmp_path / "options.pt", pickle_of({"heads": 3}))
    assert pickled.load(path) == {"heads": 3}
    data = bytearray(path.read_bytes())
    data[data.rindex(b"K\x03") + 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"options\.pt is damaged: its pickle .* fetch") as e:
        pickled.load(path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("more", [b"x", bytes(700), bytes(100_000)])
def test_a_file_that_goes_on_after_its_end_is_named(more: bytes, tmp_path: Path) -> None:
    path = torch_file(tmp_path / "longer.pt", NOTHING)
    path.write_bytes(path.read_bytes() + more)
    with pytest.raises(CheckpointError, match="is cut short or damaged") as caught:
        read_archive(path)
    assert "\n" not in str(caught.value)
