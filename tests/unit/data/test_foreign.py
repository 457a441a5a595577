"""Samples as img2dataset writes them: named by number, jpg beside txt and json."""

import json

import pytest

from kosmosg.data.foreign import is_img2dataset, record_of
from kosmosg.data.records import Caption
from kosmosg.data.samples import to_bytes
from kosmosg.errors import DataError
from toys.shards import one_of_each, picture

FIELDS = {
    "caption": "from the json",
    "url": "http://example.com/a.jpg",
    "key": "000000001",
    "status": "success",
    "error_message": None,
    "width": 9,
    "height": 6,
    "original_width": 900,
    "exif": "{}",
    "sha256": "ab12",
}
JPG = to_bytes(Caption(key="c", text="t", image=picture(1)), pictures="jpg")["jpg"]
JSON = json.dumps(FIELDS).encode()


@pytest.mark.parametrize(
    ("files", "text", "has_picture"),
    [
        ({"jpg": JPG, "txt": b"words\n", "json": JSON}, "words", True),
        ({"jpg": JPG, "json": JSON}, "from the json", True),
        ({"webp": JPG, "txt": "wörter".encode()}, "wörter", True),
        ({"txt": b"words"}, "words", False),
    ],
)
def test_they_read_as_captions(files, text, has_picture):
    assert is_img2dataset(files)
    record = record_of("000000001", files)
    assert isinstance(record, Caption)
    assert (record.key, record.text) == ("000000001", text)
    assert (record.image is not None) == has_picture
    said = (
        {"url": FIELDS["url"], "sha256": "ab12", "original_width": "900"} if "json" in files else {}
    )
    assert record.provenance == said


def test_ours_and_damaged_ones_are_not_taken_for_them():
    for record in one_of_each():
        assert not is_img2dataset(to_bytes(record) | {"txt": b"a stray text"})
    for data in (b"{", b"[]", b'{"format_version": 1}', b'{"kind": "caption"}', b'{"width": 3}'):
        assert not is_img2dataset({"jpg": JPG, "json": data})
    assert not is_img2dataset({"jpg": JPG})


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"jpg": JPG, "txt": b"a\xff"}, "bad text"),
        ({"jpg": JPG[:200], "txt": b"a"}, "unreadable picture"),
        ({"jpg": b"", "txt": b"a"}, "unreadable picture"),
        ({"jpg": JPG, "txt": b"x" * 100_001}, "text too long"),
        ({"jpg": JPG, "json": b'{"caption": null}'}, "no caption"),
        ({"txt": b"words", "json": JSON}, "missing picture"),
    ],
)
def test_damage_is_a_data_error(files, reason):
    with pytest.raises(DataError, match=r"(record|sample) 7[: ]") as refused:
        record_of("7", files)
    assert refused.value.reason == reason
    assert len(str(refused.value)) < 300
