import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from kosmosg.data.records import Caption, Document, Edit, Entity, Example
from kosmosg.data.samples import check_fits, from_bytes, to_bytes
from kosmosg.errors import DataError


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (5, 7, 3), np.uint8))


def entity(caption: str, mention: str, **changes) -> Entity:
    start = caption.find(mention)
    fields = {"mention": mention, "start": start, "end": start + len(mention)}
    return Entity(**(fields | {"crop": picture(1), "cutout": picture(2)} | changes))


CAPTION = "a dog and a cat — “здесь” 🐱"
RECORDS = [
    Document(key="d", parts=("words", picture(0), "more", picture(3))),
    Caption(key="c", text=CAPTION),
    Caption(key="c", text="", image=picture(4)),
    Example(
        key="e",
        caption=CAPTION,
        entities=(entity(CAPTION, "dog"), entity(CAPTION, "cat")),
        image=picture(5),
    ),
    Example(
        key="e",
        caption=CAPTION,
        entities=(entity(CAPTION, "dog", mask=picture(8).convert("1")), entity(CAPTION, "cat")),
        image=picture(5),
        provenance={"source": "toy", "captioner": "sha256:12"},
    ),
    Caption(key="c", text="b", provenance={"url": "http://a/b.jpg"}),
    Edit(key="i", caption="a", before=(picture(6),), instruction="make it b", after=picture(7)),
    Edit(
        key="i",
        caption="",
        before=(picture(6), picture(1)),
        instruction="as in the second",
        after=picture(7),
    ),
    Edit(
        key="i",
        caption="a",
        before=(picture(6),),
        instruction="b",
        after=picture(7),
        after_caption="c",
    ),
]


def plain(value):
    """A value that can be compared: pictures as their bytes."""
    if isinstance(value, Image.Image):
        return (value.size, value.mode, value.tobytes())
    if isinstance(value, tuple):
        return tuple(plain(part) for part in value)
    if isinstance(value, Document | Caption | Example | Edit | Entity):
        return type(value).__name__, {name: plain(part) for name, part in vars(value).items()}
    return value


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_from_its_bytes(record):
    files = to_bytes(record)
    assert "json" in files
    assert all(isinstance(data, bytes) for data in files.values())
    assert plain(from_bytes(record.key, files)) == plain(record)


def test_photographs_are_kept_as_jpeg_and_masks_as_they_are():
    large = Image.fromarray(np.indices((64, 64)).sum(0).astype(np.uint8)[..., None].repeat(3, 2))
    mask = Image.fromarray(np.eye(64, dtype=bool))
    things = (Entity(mention="dog", start=2, end=5, crop=large, cutout=large, mask=mask),)
    record = Example(key="e", caption="a dog", entities=things, image=large)
    files = to_bytes(record, pictures="jpg")
    assert set(files) == {"json", "jpg", "0.crop.jpg", "0.cutout.jpg", "0.mask.png"}
    back = from_bytes("e", files)
    assert isinstance(back, Example)
    assert np.abs(np.asarray(back.image, int) - np.asarray(large)).max() <= 4
    assert back.entities[0].mask is not None
    assert np.array_equal(np.asarray(back.entities[0].mask), np.asarray(mask))


def test_an_entity_keeps_its_pictures_undecoded_until_one_is_shown():
    half = EXAMPLE["0.crop.png"][:-20]
    record = from_bytes("e", EXAMPLE | {"0.crop.png": half})
    assert isinstance(record, Example)
    assert record.entities[0].crop.size == (7, 5)  # its head is read, and checked


EXAMPLE = to_bytes(RECORDS[3])
FIELDS = json.loads(EXAMPLE["json"])


def changed(**changes) -> dict[str, bytes]:
    return EXAMPLE | {"json": json.dumps(FIELDS | changes).encode()}


def entities(**changes) -> list[dict]:
    return [FIELDS["entities"][0] | changes, FIELDS["entities"][1]]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "no json"),
        ({"png": b"x"}, "no json"),
        ({"json": b""}, "bad json"),
        ({"json": b"{"}, "bad json"),
        ({"json": b"\xff\xfe"}, "bad json"),
        ({"json": b"[" * 100_000}, "bad json"),
        ({"json": b"[]"}, "bad json"),
        ({"json": b" " * (1 << 20) + b"{}"}, "json too large"),
        ({"json": b"{}"}, "another format version"),
        (changed(format_version=2), "another format version"),
        (changed(format_version=True), "another format version"),
        (changed(kind="poem"), "unknown kind"),
        (changed(kind=3), "bad field kind"),
        (changed(caption=None), "bad field caption"),
        (changed(caption="x" * 100_001), "bad field caption"),
        (changed(caption="\ud800"), "bad field caption"),
        (changed(entities="dog"), "bad field entities"),
        (changed(entities=["dog"]), "bad field entities"),
        (changed(entities=[{}] * 1001), "bad field entities"),
        (changed(entities=entities(start="2")), "bad field start"),
        (changed(entities=entities(start=True)), "bad field start"),
        (changed(entities=entities(start=-5, end=-2)), "mentions overlap"),
        (changed(entities=entities(end=10**30)), "mentions overlap"),
        (changed(entities=entities(start=1)), "mention not in caption"),
        (changed(entities=entities(mention="")), "mention not in caption"),
        (changed(entities=FIELDS["entities"][::-1]), "mentions overlap"),
        (changed(entities=[FIELDS["entities"][0]] * 2), "mentions overlap"),
        (changed(entities=entities(crop="../../etc/passwd")), "missing picture"),
        (changed(image="json"), "unreadable picture"),
        (changed(provenance=["url"]), "bad field provenance"),
        (changed(provenance={"x" * 5000: 3}), "bad field provenance"),
        (EXAMPLE | {"png": b""}, "unreadable picture"),
        (EXAMPLE | {"png": EXAMPLE["png"][:40]}, "unreadable picture"),
        ({k: v for k, v in EXAMPLE.items() if k != "0.crop.png"}, "missing picture"),
        (
            {"json": json.dumps({"kind": "document", "parts": [], "format_version": 1}).encode()},
            "empty document",
        ),
    ],
)
def test_hostile_bytes_are_refused_with_a_reason(files, reason):
    with pytest.raises(DataError) as refused:
        from_bytes("evil-7", files)
    assert refused.value.reason == reason
    assert "evil-7" in str(refused.value)
    assert len(str(refused.value)) < 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(max_examples=50)
@given(st.sampled_from(sorted(FIELDS)), json_values)
@example("entities", [{"mention": "dog", "start": 2, "end": 5, "crop": "png", "cutout": "png"}])
def test_any_json_value_anywhere_is_a_record_or_a_data_error(name, value):
    try:
        from_bytes("k", EXAMPLE | {"json": json.dumps(FIELDS | {name: value}).encode()})
    except DataError as error:
        assert error.reason  # noqa: PT017 - either outcome is right


@given(st.binary(max_size=200))
def test_any_bytes_as_json_are_a_data_error(data):
    with pytest.raises(DataError):
        from_bytes("k", {"json": data})


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_good_record_fits(record):
    check_fits(record)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Caption(key="c", text="x" * 100_001), "text too long"),
        (Caption(key="c", text="\ud800"), "bad text"),
        (Caption(key="c", text="a", provenance={"url": "\ud800"}), "bad text"),
        (Document(key="d", parts=("x",) * 1001), "too many parts"),
        (Document(key="d", parts=("\n" * 99_000,) * 11), "json too large"),
    ],
)
def test_what_would_not_come_back_does_not_fit(record, reason):
    with pytest.raises(DataError) as raised:
        check_fits(record)
    assert raised.value.reason == reason
    with pytest.raises((DataError, UnicodeEncodeError)):
        from_bytes(record.key, to_bytes(record))
