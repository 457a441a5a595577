import sys

import pyarrow
import pytest
from pyarrow import parquet

from kosmosg.data.readers.parquet import read_captions_tsv, read_parquet
from kosmosg.data.records import Caption
from kosmosg.data.skips import Skips
from kosmosg.errors import ConfigError, DataError
from toys.foreign import img2dataset_tar, noted, picture, plain, png, write, write_tar


def write_parquet(path, rows, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


def read(path, reader=read_parquet):
    skips = Skips(limit=1.0)
    return list(reader(path, skips=skips)), skips


LAION = {"SAMPLE_ID": 7, "URL": "http://a.example/1.jpg", "TEXT": "a dog", "WIDTH": 70}
LAION |= {"similarity": 0.31, "punsafe": 0.01, "pwatermark": 0.9, "NSFW": "UNLIKELY"}


def test_rows_without_pictures_are_texts_for_stage_2(tmp_path):
    path = write_parquet(tmp_path / "part-00000.snappy.parquet", [LAION, LAION | {"TEXT": "a cat"}])
    records, _ = read(path)
    assert [record.text for record in records] == ["a dog", "a cat"]
    assert [record.key for record in records] == ["part-00000/0", "part-00000/1"]
    assert records[0].image is None
    assert records[0].provenance == {
        "sample_id": "7",
        "url": "http://a.example/1.jpg",
        "similarity": "0.31",
        "punsafe": "0.01",
        "pwatermark": "0.9",
        "nsfw": "UNLIKELY",
    }


@pytest.mark.parametrize(
    "row",
    [
        {"image": {"bytes": png(3), "path": "3.png"}, "text": "a dog"},
        {"jpg": png(3), "txt": "a dog", "key": "000000003", "status": "success"},
    ],
    ids=["datasets", "img2dataset"],
)
def test_pictures_in_columns(tmp_path, row):
    (record,), _ = read(write_parquet(tmp_path / "a.parquet", [row]))
    assert plain(record) == plain(Caption(key="a/0", text="a dog", image=picture(3)))


def test_tars_with_the_parquet_that_img2dataset_writes_beside_them(tmp_path):
    """Rows that were not downloaded are there too; the key finds the right one."""
    for shard, numbers in enumerate((range(3), range(3, 6))):
        tar = tmp_path / f"{shard:05d}.tar"
        write_tar(tar, {f"{n:09d}.{e}": d for n in numbers for e, d in (("jpg", png(n)),)})
        rows = [noted(number, license=f"licence {number}") for number in reversed(numbers)]
        rows.append(noted(99, status="failed_to_download", width=None))
        write_parquet(tar.with_suffix(".parquet"), rows, row_group_size=2)
    records, skips = read(tmp_path)
    assert [record.text for record in records] == [f"caption {n}" for n in range(6)]
    assert [record.provenance["license"] for record in records] == [
        f"licence {number}" for number in range(6)
    ]
    assert plain(records[4].image) == plain(picture(4))
    assert skips.num_skipped == 0


def test_tars_joined_with_laions_own_files_by_address(tmp_path):
    img2dataset_tar(tmp_path / "tars" / "00000.tar", range(4))
    rows = [
        LAION | {"URL": f"http://a.example/{n}.jpg", "TEXT": f"better {n}", "punsafe": n / 10}
        for n in (9, 3, 1, 0)
    ]
    write_parquet(tmp_path / "metadata" / "part-0.parquet", rows[:2], row_group_size=1)
    write_parquet(tmp_path / "metadata" / "part-1.parquet", rows[2:])
    records, _ = read(tmp_path)
    assert [record.text for record in records] == ["better 0", "better 1", "caption 2", "better 3"]
    assert [record.provenance.get("punsafe") for record in records] == ["0.0", "0.1", None, "0.3"]
    assert records[0].provenance["original_width"] == "70"  # of the tar


def test_bad_rows_are_skipped_and_reading_goes_on(tmp_path):
    rows = [
        {"text": "a", "image": {"bytes": png(1), "path": None}},
        {"text": None, "image": {"bytes": png(1), "path": None}},
        {"text": "b", "image": {"bytes": b"no picture", "path": None}},
        {"text": "c", "image": {"bytes": None, "path": "/etc/passwd"}},
        {"text": "d", "image": None},
    ]
    write_parquet(tmp_path / "0.parquet", rows)
    whole = write_parquet(tmp_path / "1.parquet", rows)
    whole.write_bytes(whole.read_bytes()[:-9])
    write(tmp_path / "2.parquet", b"PAR1")
    write_parquet(tmp_path / "3.parquet", [{"text": "e"}])
    records, skips = read(tmp_path)
    assert [record.text for record in records] == ["a", "d", "e"]
    assert skips.reasons == {
        "no caption": 1,
        "unreadable picture": 1,
        "missing picture": 1,
        "unreadable file": 2,
    }
    assert f"{tmp_path}/0.parquet row 2: " in skips.named["unreadable picture"][0]
    assert "embed the pictures" in skips.named["missing picture"][0]


def test_bytes_that_are_no_text_cost_their_row_only(tmp_path):
    data = pyarrow.array([b"one", b"\xff\xff", b"three"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 3, data.buffers())
    parquet.write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet")
    records, skips = read(tmp_path)
    assert [record.text for record in records] == ["one", "three"]
    assert skips.reasons == {"bad row": 1}


def test_without_pyarrow_it_says_what_to_type(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r'pip install "kosmosg\[data\]"'):
        read(tmp_path)


def test_conceptual_captions_files(tmp_path):
    """As CC3M and CC12M are distributed; lines end as on Windows in some copies."""
    lines = "a dog\thttp://a/1\r\na cat\thttp://a/2\nno address\n\thttp://a/3\nx\ty\tz\n"
    records, skips = read(write(tmp_path / "Train_GCC.tsv", lines), read_captions_tsv)
    assert [(record.key, record.text, record.provenance["url"]) for record in records] == [
        ("Train_GCC/1", "a dog", "http://a/1"),
        ("Train_GCC/2", "a cat", "http://a/2"),
    ]
    assert skips.reasons == {"wrong columns": 3}
    assert "line 3 has 1 columns" in skips.named["wrong columns"][0]


def test_no_parquet_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.parquet"):
        read(tmp_path)
