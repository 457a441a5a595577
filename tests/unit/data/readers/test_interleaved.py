import base64
import gzip
import hashlib
import json
import zipfile

import pyarrow
import pytest
from pyarrow import parquet

from kosmosg.data.readers.interleaved import read_mmc4, read_obelics
from kosmosg.data.records import Document
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError
from toys.foreign import img2dataset_tar, picture, plain, png, write, write_tar

A, B, C = picture(1), picture(2), picture(3)


def read(reader, path):
    skips = Skips(limit=1.0)
    return list(reader(path, skips=skips)), skips


def info(name: str, index: object, **changes) -> dict:
    return {
        "image_name": name,
        "raw_url": f"http://a.example/{name}",
        "matched_text_index": index,
        "matched_sim": 0.25,
        "face_detections": None,
    } | changes


def page(*infos: dict, **changes) -> dict:
    """A line as MMC4 has it: pictures are not in the order of their sentences."""
    return {
        "url": "http://page.example",
        "text_list": ["One.", "Two.", "Three.", "Four."],
        "image_info": list(infos),
        "similarity_matrix": [[0.25] * 4] * len(infos),
        "could_have_url_duplicate": 0,
    } | changes


def test_mmc4_pictures_stand_before_their_sentences(tmp_path):
    line = page(info("c.png", 3), info("a.png", 0), info("b.png", 3))
    write(tmp_path / "docs_shard_0_v2.jsonl", line)
    for seed, name in enumerate("abc", start=1):
        write(tmp_path / "images" / f"{name}.png", png(seed))
    (record,), skips = read(read_mmc4, tmp_path)
    expected = (A, "One. Two. Three.", C, B, "Four.")
    assert plain(record) == plain(
        Document(key="docs_shard_0_v2/1", parts=expected, provenance={"url": "http://page.example"})
    )
    assert (skips.num_skipped, skips.dropped) == (0, {})


def test_mmc4_pictures_in_tars_and_in_the_lines(tmp_path):
    write_tar(tmp_path / "named.tar", {"images/a.png": png(1)})
    img2dataset_tar(tmp_path / "00000.tar", range(2, 3), url="http://a.example/by-url.jpg")
    inline = info("none.png", 2, image_base64=base64.b64encode(png(3)).decode())
    lines = page(info("a.png", 0), info("by-url.jpg", 1), inline)
    with zipfile.ZipFile(tmp_path / "docs.jsonl.zip", "w") as archive:
        archive.writestr("docs.jsonl", json.dumps(lines))
    (record,), _ = read(read_mmc4, tmp_path)
    assert plain(record.parts) == plain((A, "One.", B, "Two.", C, "Three. Four."))


def test_a_picture_that_is_not_there_is_dropped_and_a_damaged_one_skipped(tmp_path):
    write(tmp_path / "d.jsonl", page(info("gone.png", 1), info("bad.png", 2), info("a.png", 3)))
    write(tmp_path / "bad.png", png(1)[:-30])
    write(tmp_path / "a.png", png(1))
    (record,), skips = read(read_mmc4, tmp_path)
    assert plain(record.parts) == plain(("One. Two. Three.", A, "Four."))
    assert skips.dropped == {"picture not downloaded": 1}
    assert skips.reasons == {"unreadable picture": 1}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "bad json"),
        ("[" * 100_000, "bad json"),
        ('{"a": "' + "x" * 2**25 + '"}', "json too large"),
        ('{"a": 1}', "bad field text_list"),
        (page(text_list="One."), "bad field text_list"),
        (page(text_list=[1]), "bad field text_list"),
        (page(image_info=None), "bad field image_info"),
        (page(info("a", 4)), "bad field image_info"),
        (page(info("a", -1)), "bad field image_info"),
        (page(info("a", "0")), "bad field image_info"),
        (page(image_info=["a.png"]), "bad field image_info"),
        (page(text_list=[]), "empty document"),
        (page(text_list=["\ud800"]), "bad text"),
        (page(info("a", 0, image_base64="!!")), "bad base64"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 30 else "line",
)
def test_bad_mmc4_lines_are_skipped(tmp_path, line, reason):
    line = line if isinstance(line, str) else json.dumps(line)
    write(tmp_path / "d.jsonl", f"\n{line}\n{json.dumps(page())}\n")
    records, skips = read(read_mmc4, tmp_path)
    assert records[-1].key == "d/3"
    assert skips.reasons == {reason: 1}


URL = "http://a.example/x?y=1"
OBELICS = {
    "images": ["http://a.example/a", None, URL, None],
    "texts": [None, "Some words.\n\nMore.", None, "The end."],
    "metadata": "[]",
    "general_metadata": json.dumps({"url": "http://page.example", "warc": {}}),
}


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz"])
def test_obelics_rows(tmp_path, kind):
    """Pictures by a hash of their address, and by what img2dataset noted."""
    write(tmp_path / (hashlib.md5(URL.encode()).hexdigest() + ".jpg"), png(2))
    img2dataset_tar(tmp_path / "00000.tar", range(1, 2), url="http://a.example/a")
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist([OBELICS]), tmp_path / "o.parquet")
    else:
        data = json.dumps(OBELICS).encode()
        write(tmp_path / f"o.{kind}", gzip.compress(data) if kind.endswith("gz") else data)
    (record,), skips = read(read_obelics, tmp_path)
    assert plain(record.parts) == plain((A, "Some words.\n\nMore.", B, "The end."))
    assert record.provenance == {"url": "http://page.example"}
    assert (skips.num_skipped, skips.dropped) == (0, {})


def test_obelics_rows_that_hold_their_pictures(tmp_path):
    row = {"texts": [None, "a", None], "images": [{"bytes": png(1)}, None, {"bytes": png(2)}]}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "o.parquet")
    (record,), _ = read(read_obelics, tmp_path)
    assert plain(record.parts) == plain((A, "a", B))


def test_texts_around_a_picture_that_is_not_there_are_joined(tmp_path):
    write(tmp_path / "o.jsonl", {"images": [None, URL, None], "texts": ["a", None, "b"]})
    (record,), skips = read(read_obelics, tmp_path)
    assert record.parts == ("a\n\nb",)
    assert skips.dropped == {"picture not downloaded": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"images": [None], "texts": ["a", "b"]}, "not parallel"),
        ({"images": [URL], "texts": ["a"]}, "not parallel"),
        ({"images": [None], "texts": [1]}, "not parallel"),
        ({"images": [None], "texts": [None]}, "empty document"),
        ({"texts": ["a"]}, "bad field images"),
        ({"images": [5], "texts": [None]}, "bad field images"),
    ],
)
def test_bad_obelics_rows_are_skipped(tmp_path, row, reason):
    write(tmp_path / "o.jsonl", json.dumps(row))
    _, skips = read(read_obelics, tmp_path)
    assert skips.reasons[reason] == 1


def test_no_documents_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.jsonl"):
        read(read_mmc4, tmp_path)


def test_a_damaged_archive_is_skipped(tmp_path):
    write(tmp_path / "a.jsonl.gz", gzip.compress(json.dumps(page()).encode())[:-12])
    write(tmp_path / "b.jsonl.zip", b"no zip")
    write(tmp_path / "c.jsonl", json.dumps(page()))
    records, skips = read(read_mmc4, tmp_path)
    assert [record.key for record in records] == ["c/1"]
    assert skips.reasons == {"unreadable file": 2}
