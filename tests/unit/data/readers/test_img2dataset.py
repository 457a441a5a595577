import json

import pytest
import webdataset

from kosmosg.data.readers.img2dataset import caption_from_img2dataset, read_img2dataset
from kosmosg.data.records import Caption
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError
from toys.foreign import img2dataset_tar, noted, picture, plain, png, write_tar

PROVENANCE = {
    "url": "http://a.example/3.jpg",
    "original_width": "70",
    "original_height": "50",
    "sha256": f"{3:064x}",
}


def read(path):
    skips = Skips(limit=1.0)
    return list(read_img2dataset(path, skips=skips)), skips


def test_tars_are_read_as_they_are(tmp_path):
    img2dataset_tar(tmp_path / "00000.tar", range(2))
    img2dataset_tar(tmp_path / "00001.tar", range(2, 4))
    records, skips = read(tmp_path)
    keys = ["00000/000000000", "00000/000000001", "00001/000000002", "00001/000000003"]
    assert [record.key for record in records] == keys
    assert plain(records[3]) == plain(
        Caption(key=keys[3], text="caption 3", image=picture(3), provenance=PROVENANCE)
    )
    assert (skips.num_kept, skips.num_skipped) == (4, 0)


def test_a_tar_of_the_writer_that_img2dataset_uses(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "00000.tar")) as writer:
        for number in range(2):
            note = noted(number)
            files = {"jpg": png(number), "txt": note["caption"], "json": json.dumps(note, indent=4)}
            writer.write({"__key__": note["key"], **files})
    records, _ = read(tmp_path)
    assert [(record.key, record.text) for record in records] == [
        ("00000/000000000", "caption 0"),
        ("00000/000000001", "caption 1"),
    ]
    assert plain(records[1].image) == plain(picture(1))


def test_a_sample_by_its_files():
    """As streams that read by position want it."""
    files = {"png": png(3), "json": json.dumps(noted(3, license="CC0")).encode()}
    record = caption_from_img2dataset("any key", files)
    assert plain(record) == plain(
        Caption(
            key="any key",
            text="caption 3",
            image=picture(3),
            provenance=PROVENANCE | {"license": "CC0"},
        )
    )
    assert caption_from_img2dataset("k", {"txt": b" words \n"}).text == "words"
    assert caption_from_img2dataset("k", {"txt": b"words"}).image is None


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"jpg": png(1)}, "no caption"),
        ({"jpg": png(1), "txt": b" "}, "no caption"),
        ({"jpg": png(1), "json": b'{"caption": null}'}, "no caption"),
        ({"jpg": png(1), "txt": b"\xff\xfe"}, "bad text"),
        ({"jpg": png(1)[:-30], "txt": b"a"}, "unreadable picture"),
        ({"jpg": b"", "txt": b"a"}, "unreadable picture"),
        ({"jpg": png(1), "json": b"{"}, "bad json"),
        ({"jpg": png(1), "json": b"[1]"}, "bad json"),
        ({"json": json.dumps(noted(1)).encode()}, "missing picture"),
        ({"json": json.dumps(noted(1, status="failed_to_download")).encode()}, "missing picture"),
    ],
)
def test_what_is_wrong_with_a_sample_is_named(files, reason):
    with pytest.raises(DataError, match="sample k") as raised:
        caption_from_img2dataset("k", files)
    assert raised.value.reason == reason


def test_bad_samples_are_skipped_and_reading_goes_on(tmp_path):
    members = {"a.jpg": png(1), "a.txt": b"first"}
    members |= {"b.jpg": b"nothing", "b.txt": b"second"}
    members |= {"c c.webp": png(2), "c c.txt": b"third", "d.txt": "half".encode("utf-16")}
    write_tar(tmp_path / "0.tar", members)
    cut = img2dataset_tar(tmp_path / "1.tar", range(3))
    cut.write_bytes(cut.read_bytes()[: 512 * 9])
    img2dataset_tar(tmp_path / "2.tar", range(1))
    records, skips = read(tmp_path)
    keys = [record.key for record in records]
    assert keys[0] == "0/a"
    assert keys[1].startswith("0/c_c-")
    assert keys[2:] == ["1/000000000", "2/000000000"]
    assert skips.reasons["unreadable picture"] == 1
    assert f"{tmp_path}/0.tar: sample 'b'" in skips.named["unreadable picture"][0]
    assert sum(skips.reasons.values()) == 3  # and the bad text, and the tar that is cut off


def test_a_key_that_comes_again_is_skipped(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.txt": b"one", "b.txt": b"two", "./a.txt": b"", "a.TXT": b"3"})
    records, skips = read(tmp_path / "0.tar")
    assert [record.text for record in records] == ["one", "two"]
    assert skips.reasons == {"key twice": 1, "no caption": 1}


def test_a_text_too_long_to_be_written_is_skipped(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.txt": b"x" * 100_001, "b.txt": b"two"})
    records, skips = read(tmp_path / "0.tar")
    assert [record.text for record in records] == ["two"]
    assert skips.reasons == {"text too long": 1}


def test_too_many_bad_ones_stop_it(tmp_path):
    write_tar(tmp_path / "0.tar", {f"{i}.jpg": b"" for i in range(200)})
    with pytest.raises(DataError, match="100 of 100 records were left out"):
        list(read_img2dataset(tmp_path, skips=Skips(limit=0.5)))


def test_no_tar_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.tar"):
        read(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "none")
