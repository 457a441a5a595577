"""The page of samples: what it shows, and that nothing in a sample can do anything to it."""

import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from kosmosg.data.preview import MAX_PARTS, SIDE, choose, overlaid, page
from kosmosg.data.records import Caption, Document
from kosmosg.data.samples import to_bytes
from toys.shards import example, mask, one_of_each, picture, tar_of, write

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2J\u202e&lt;</style>"

OUR_TAGS = {"html", "head", "meta", "title", "style", "body", "header", "h1", "article", "h2"}
OUR_TAGS |= {"span", "small", "div", "h3", "p", "img", "figure", "figcaption", "b", "i", "footer"}
OUR_ATTRIBUTES = {"lang", "charset", "http-equiv", "content", "name", "class", "style"}
OUR_ATTRIBUTES |= {"src", "alt", "title"}


class Seen(HTMLParser):
    """The tags, attributes and texts of a page; every tag is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    def pictures(self):
        sources = [value for name, value in self.attributes if name == "src"]
        assert all(value.startswith("data:image/") for value in sources)
        data = [base64.b64decode(value.partition(",")[2]) for value in sources]
        return [Image.open(io.BytesIO(one)) for one in data]


def shown(*tars, limit=24, seed=0):
    return Seen("".join(page(choose(tars, limit=limit, seed=seed), seed=seed)))


def test_each_kind_is_shown_whole(tmp_path):
    seen = shown(write(tmp_path / "s.tar", one_of_each()))
    assert seen.tags.count("article") == 5
    said = "|".join(seen.texts)
    for words in ("document| d0 |s.tar", "caption| c0 ", "example| e0 ", "edit| i0 "):
        assert f"|{words}" in said
    for words in ("5 of 5 samples", "no picture", "a fish", "add a duck", "source| toys", "masks"):
        assert words in said
    # Document 1, caption 1; the example's prompts of 2 each, target, 5 of entities, overlay; the
    # edit's prompts of 2 each and target.
    assert len(seen.pictures()) == 1 + 1 + (2 + 2 + 1 + 5 + 1) + (2 + 2 + 1)


def test_a_prompt_is_shown_with_its_words_and_without(tmp_path):
    seen = shown(write(tmp_path / "s.tar", [example()]))
    start, dropped = seen.texts.index("prompt"), seen.texts.index("words dropped")
    assert seen.texts[start + 1 : dropped] == ["a dog ", " and a cat ", " on grass"]
    end = seen.texts.index("target")
    assert seen.texts[dropped + 1 : end] == ["a ", " and a ", " on grass"]
    assert seen.texts[end + 1] == "a dog and a cat on grass"


def test_words_that_cannot_be_dropped_are_shown_once(tmp_path):
    records = [Caption(key="c", text="a fish", image=picture(1)), example(entities=())]
    assert "words dropped" not in shown(write(tmp_path / "s.tar", records)).texts


def test_hostile_texts_are_inert(tmp_path):
    caption = f"{HOSTILE} dog and cat"
    record = example("evil", caption, provenance={HOSTILE: HOSTILE})
    files = to_bytes(record)
    things = json.loads(files["json"])
    broken = json.dumps(things | {"kind": HOSTILE}).encode()
    names = {f"evil.{name}": data for name, data in files.items()}
    tar = tar_of(
        tmp_path / "<script>s.tar",
        names
        | {f"k<script>{HOSTILE.replace('/', '')}.json": b"{"}
        | {
            "broken.json": broken,
            "document.json": to_bytes(Document(key="", parts=(HOSTILE,)))["json"],
        },
    )
    seen = shown(tar)
    assert seen.tags.count("article") == 4
    assert "script" not in seen.tags
    assert set(seen.tags) <= OUR_TAGS
    assert {name for name, _ in seen.attributes} <= OUR_ATTRIBUTES
    assert {value for name, value in seen.attributes if name == "style"} == {
        "border-color: rgb(230 60 60)",
        "border-color: rgb(40 120 240)",
    }
    assert len(seen.pictures()) == 11
    said = "".join(seen.texts)
    assert said.count("<script>alert(1)</script>") >= 6
    assert "\x1b" not in said
    assert "\u202e" not in said


def test_pictures_are_drawn_anew_and_small(tmp_path):
    image = picture(1, (900, 300))
    stray = io.BytesIO()
    image.save(stray, "JPEG", comment=b"<script>hidden</script>")
    files = {"k.jpg": stray.getvalue(), "k.txt": b"words"}
    seen = shown(tar_of(tmp_path / "s.tar", files))
    assert [one.size for one in seen.pictures()] == [(SIDE, 85)]
    assert ("title", "900 x 300") in seen.attributes
    assert all("comment" not in one.info for one in seen.pictures())


def test_the_overlay_tints_what_the_mask_says():
    record = example(image=Image.new("RGB", (9, 6), (40, 40, 40)))
    pixels = np.asarray(overlaid(record)).astype(int)
    inside = np.asarray(mask())
    assert (pixels[inside] == [116, 48, 48]).all()  # 0.6 of the picture, 0.4 of the first tint
    assert (np.ptp(pixels[~inside], axis=1) == 0).all()
    large = example(image=picture(1, (900, 600)), entities=())
    assert overlaid(large).size == (512, 341)


def test_damage_is_shown_where_it_is(tmp_path):
    whole = write(tmp_path / "a.tar", [Caption(key=f"c{i}", text="t") for i in range(3)])
    files = to_bytes(example("k"))
    files["1.crop.png"] = files["1.crop.png"][:50]
    torn = tar_of(tmp_path / "b.tar", {f"k.{name}": data for name, data in files.items()})
    half = write(tmp_path / "c.tar", [Caption(key="x", text="t")])
    half.write_bytes(half.read_bytes()[:600])
    seen = shown(whole, torn, half)
    said = " ".join(seen.texts)
    assert "is a damaged picture" in said
    assert "c.tar ends at byte 600" in said
    assert seen.texts[-2] == "3 caption, 1 left out"
    assert [value for name, value in seen.attributes if name == "class"].count("wrong") == 2


def test_samples_are_drawn_evenly_and_by_the_seed(tmp_path):
    tars = [
        write(tmp_path / f"{s}.tar", [Caption(key=f"{s}{i}", text="t") for i in range(20)])
        for s in "abc"
    ]

    def keys(limit, seed):
        return [sample.key for _, sample in choose(tars, limit=limit, seed=seed).samples]

    everything = [f"{s}{i}" for s in "abc" for i in range(20)]
    assert keys(60, 0) == keys(100, 3) == everything
    assert keys(7, 1) == keys(7, 1) != keys(7, 2)
    drawn = [key for seed in range(200) for key in keys(6, seed)]
    assert len(drawn) == 1200
    assert [drawn.count(key) for key in everything] == pytest.approx([20] * 60, abs=16)
    assert keys(9, 4) == sorted(keys(9, 4), key=everything.index)


def test_long_records_are_cut(tmp_path):
    parts = ("word " * 1000, *["more"] * 99)
    seen = shown(write(tmp_path / "s.tar", [Document(key="d", parts=parts)]))
    said = "".join(seen.texts)
    assert "… and 3000 more characters" in said
    assert f"and {100 - MAX_PARTS} more parts" in said
    assert said.count("more") == MAX_PARTS - 1 + 2
