import base64
import json

import pytest

from kosmosg.data.mentions import mentions
from kosmosg.data.readers.tsv import (
    read_tsv_instructpix2pix,
    read_tsv_laion,
    read_tsv_openimages,
)
from kosmosg.data.records import Caption, Edit, Entity, Example
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError
from kosmosg.verify.loaders import example
from toys.foreign import base64_png, picture, plain, write


def read(reader, path, **options):
    skips = Skips(limit=1.0)
    return list(reader(path, skips=skips, **options)), skips


def rows(path, *lines, end="\n"):
    return write(path, "".join("\t".join(map(str, line)) + end for line in lines))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_laion_rows(tmp_path, end):
    lines = [
        ("0", "a dog", base64_png(1), 384, 384),
        ("1", "a cat", base64_png(2), 383, 1000),
        ("2", "a cow", base64_png(3), "nan", 10),
    ]
    path = rows(tmp_path / "l.tsv", *lines, end=end)
    records, skips = read(read_tsv_laion, path)
    assert [plain(record) for record in records] == [
        plain(Caption(key="l/1", text="a dog", image=picture(1)))
    ]
    assert skips.dropped == {"picture too small, or of unknown size": 2}
    assert skips.num_skipped == 0
    records, skips = read(read_tsv_laion, path, stage=2)
    assert [(record.text, record.image) for record in records] == [("a dog", None), ("a cat", None)]
    assert skips.dropped.total() == 1


def test_instructpix2pix_rows_give_a_record_for_each_pair(tmp_path):
    row = ("a horse", "make it a zebra", *(base64_png(seed) for seed in (1, 2, 3, 4)))
    records, skips = read(read_tsv_instructpix2pix, rows(tmp_path / "i.tsv", row))
    assert [plain(record) for record in records] == [
        plain(
            Edit(
                key=f"i/1/{pair}",
                caption="a horse",
                before=(picture(2 * pair + 1),),
                instruction="make it a zebra",
                after=picture(2 * pair + 2),
            )
        )
        for pair in (0, 1)
    ]
    assert skips.num_skipped == 0


def openimages(caption: str, tags: str, first: int = 10):
    """A row whose crop of tag i is the picture of seed first + 2i, and on white the next."""
    crops = [base64_png(first + i) for i in range(2 * len(tags.split(",")))]
    return (caption, tags, base64_png(0), *crops)


def test_open_images_rows(tmp_path):
    caption = "A red dog and a cat."
    path = rows(tmp_path / "o.tsv", openimages(caption, "cat,red,dog"), ("no tag", "", "AAAA"))
    (record,), skips = read(read_tsv_openimages, path)
    places = [("dog", 6, 9, 14), ("cat", 16, 19, 10)]
    assert plain(record) == plain(
        Example(
            key="o/1",
            caption=caption,
            entities=tuple(
                Entity(
                    mention=mention,
                    start=start,
                    end=end,
                    crop=picture(seed),
                    cutout=picture(seed + 1),
                )
                for mention, start, end, seed in places
            ),
            image=picture(0),
        )
    )
    assert skips.reasons == {"unreadable picture": 1}  # AAAA is base64, and no picture


def test_open_images_rows_of_the_recording(shared_dir, tmp_path):
    """The entities are those of which golden/loaders.json proves the prompts."""
    recorded = json.loads((shared_dir / "golden" / "loaders.json").read_text(encoding="utf-8"))
    given = recorded["openimage.drop0.0"]
    path = rows(tmp_path / "o.tsv", *(openimages(row["caption"], row["tags"]) for row in given))
    records, skips = read(read_tsv_openimages, path)
    assert (len(records), skips.num_skipped) == (len(given), 0)
    for record, row in zip(records, given, strict=True):
        proved = example(row["caption"], row["tags"].split(","))
        assert [(e.mention, e.start, e.end) for e in record.entities] == [
            (e.mention, e.start, e.end) for e in proved.entities
        ]
        assert len(record.entities) == row["n_images"] or row["dropped_sample"]
        tags = row["tags"].split(",")
        for entity in record.entities:
            tag = max((t for t in tags if entity.mention.lower().startswith(t)), key=len)
            shown = picture(10 + 2 * tags.index(tag))
            assert plain(entity.crop) == plain(shown)


@pytest.mark.parametrize(
    ("reader", "row", "reason"),
    [
        (read_tsv_laion, ("0", "a", base64_png(1), 400), "wrong columns"),
        (read_tsv_laion, ("",), "wrong columns"),
        (read_tsv_laion, ("0", " ", base64_png(1), 400, 400), "no caption"),
        (read_tsv_laion, ("0", "a", base64_png(1)[:-3], 400, 400), "bad base64"),
        (read_tsv_laion, ("0", "a", "A" + base64_png(1), 400, 400), "bad base64"),
        (read_tsv_laion, ("0", "a", "é" + base64_png(1), 400, 400), "bad base64"),
        (read_tsv_laion, ("0", "a", "", 400, 400), "unreadable picture"),
        (read_tsv_laion, ("0", "a", base64_png(1)[:80], 400, 400), "unreadable picture"),
        (read_tsv_instructpix2pix, ("a", "b"), "wrong columns"),
        (read_tsv_instructpix2pix, ("a", "b", base64_png(1)), "wrong columns"),
        (read_tsv_openimages, ("a", "b"), "wrong columns"),
        (read_tsv_openimages, ("a dog", "dog", base64_png(1), base64_png(1)), "wrong columns"),
        (read_tsv_openimages, ("a dog", "dog", base64_png(1)), "wrong columns"),
        (read_tsv_openimages, ("a dog", "dog", "?", base64_png(1), base64_png(1)), "bad base64"),
    ],
)
def test_bad_rows_are_skipped(tmp_path, reader, row, reason):
    _, skips = read(reader, rows(tmp_path / "t.tsv", row))
    assert skips.reasons == {reason: 1}
    assert f"{tmp_path}/t.tsv line 1" in skips.named[reason][0]


def test_bytes_that_are_no_text_cost_their_row_only(tmp_path):
    good = f"0\ta dog\t{base64_png(1)}\t400\t400\n".encode()
    write(tmp_path / "t.tsv", good.replace(b"dog", b"\xff") + good)
    records, skips = read(read_tsv_laion, tmp_path / "t.tsv")
    assert [record.key for record in records] == ["t/2"]
    assert skips.reasons == {"bad text": 1}


def test_a_field_of_30_megabytes_is_read(tmp_path):
    """Python's csv module stops at 128 kB."""
    picture(5, (3200, 2600)).save(tmp_path / "large.png", compress_level=0)
    data = base64.b64encode((tmp_path / "large.png").read_bytes()).decode()
    assert len(data) > 30 * 2**20
    (record,), _ = read(read_tsv_laion, rows(tmp_path / "t.tsv", (0, "a", data, 3200, 2600)))
    assert record.image.size == (3200, 2600)


def test_a_line_too_long_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr("kosmosg.data.readers.files.MAX_LINE_BYTES", 1000)
    long = ("0", "x" * 3000, base64_png(1), 400, 400)
    short = ("0", "a", base64_png(1), 400, 400)
    assert len("\t".join(map(str, short))) < 1000
    records, skips = read(read_tsv_laion, rows(tmp_path / "t.tsv", long, short))
    assert [record.key for record in records] == ["t/2"]
    assert skips.reasons == {"line too long": 1}


def test_the_list_of_the_released_loaders(tmp_path):
    for name in ("a/0.tsv", "a/1.tsv", "b.tsv"):
        rows(tmp_path / name, ("0", name, base64_png(1), 400, 400))
    entries = [
        {"source": ["a/1.tsv", "a/0.tsv"], "source_lang": "laion", "weight": 2.0, "name": "laion"},
        {"source": ["b.tsv", "../c.tsv", "/etc/passwd", "gone.tsv"], "weight": 1},
    ]
    write(tmp_path / "json" / "train.json", entries)
    for path in (tmp_path, tmp_path / "json" / "train.json"):
        records, skips = read(read_tsv_laion, path)
        assert [record.text for record in records] == ["a/1.tsv", "a/0.tsv", "b.tsv"]
        assert [record.key for record in records] == ["a/1/1", "a/0/1", "b/1"]
        assert records[0].provenance == {"name": "laion", "weight": "2.0"}
        assert skips.reasons == {"path outside": 2, "unreadable file": 1}
    write(tmp_path / "json" / "train.json", [{"sources": []}])
    with pytest.raises(DataError, match="expected an object with the list source"):
        read(read_tsv_laion, tmp_path)


def test_tags_that_are_no_patterns_are_taken_literally():
    assert mentions("a dog (big", ["dog", "(big"]) == [(2, 5, 0)]
    assert mentions("a c++ book", ["book", "c++"]) == [(6, 10, 0)]
    evil = "(a+)+$"
    assert mentions("a dog", ["dog", evil, "a" * 40 + "!"]) == [(2, 5, 0)]


def test_no_rows_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"neither json/train.json nor a \.tsv"):
        read(read_tsv_laion, tmp_path)
