"""What enters the model: ids, slots, training sequences and views of pictures, as released."""

import json

import pytest
from PIL import Image

from kosmosg.data.compose import compose
from kosmosg.data.mentions import mentions
from kosmosg.sequence import encode
from kosmosg.verify import Golden, check_file
from kosmosg.verify.loaders import PICTURE, coins, example

P = PICTURE
UNKNOWN = 3

# What the released Open Images loader makes of a caption and its tags, as prompts. With the nouns
# kept, and with the nouns dropped (None: the released loader loses the sample; ours is kept).
OPEN_IMAGES = {
    "A dog and a cat sitting on the red sofa.": (
        ["A dog ", P, " and a cat ", P, " sitting on the red sofa ", P, "."],
        ["A ", P, " and a ", P, " sitting on the red ", P, "."],
    ),
    "two dogs playing with a ball": (
        ["two dogs playing with a ball ", P],
        ["two dogs playing with a ", P],
    ),
    "Dog running": (["Dog ", P, " running"], None),
    "a man riding a horse, a man smiling": (
        ["a man riding a horse ", P, ", a man smiling ", P],
        ["a man riding a ", P, ", a ", P],
    ),
    "a white building with no match": (
        ["a white building with no match"],
        ["a white building with no match"],
    ),
    "A woman's hat (blue) near the woman": (
        ["A woman's ", P, " hat ", P, " (blue) near the woman"],
        ["A ", P, " ", P, " (blue) near the woman"],
    ),
    "the cat.": (["the cat ", P, "."], ["the ", P, "."]),
    "a bus-stop sign and a bus": (
        ["a bus-stop ", P, " sign ", P, " and a bus"],
        ["a ", P, " ", P, " and a bus"],
    ),
    "plain caption without anything": (
        ["plain caption without anything"],
        ["plain caption without anything"],
    ),
}


def test_all_64_prompts_and_the_vocabulary(shared: Golden) -> None:
    checks = list(check_file(shared, "tokenizer.json"))
    assert [check for check in checks if not check.ok] == []
    assert len(checks) == 4 * 64 + 7
    assert {check.tolerance for check in checks} == {0}


# As the released tokenizer cuts them: ASCII's control characters are blanks or dropped, but NUL is
# unknown, as is U+0085 beyond ASCII; marks are the characters that they are made of.
ODD_TEXTS = {
    "a\x07 cat\x1b[31m": ["▁a", "▁cat", "[", "31", "m"],
    "a\tcat\nred\r\x0b\x0c": ["▁a", "▁cat", "▁red"],
    "\x01\x02": [],
    "a\0cat": ["▁a", "\0", "cat"],
    "a cat\x7f\x85x": ["▁a", "▁cat", "\x85", "x"],
    "a<image>cat": ["▁a", "<", "image", ">", "cat"],
    "</image>": ["▁<", "/", "image", ">"],
    "<s>": ["▁<", "s", ">"],
    "</s>": ["▁<", "/", "s", ">"],
    "<i>": ["▁<", "i", ">"],
    "<pad>": ["▁<", "pad", ">"],
}


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_text_is_never_a_picture(shared: Golden, text: str) -> None:
    tokenizer = shared.tokenizer
    pieces, ids = tokenizer.pieces(text), tokenizer.encode(text)
    assert pieces == ODD_TEXTS[text]
    assert [piece for piece, index in zip(pieces, ids, strict=True) if index == UNKNOWN] == [
        piece for piece in pieces if piece in ("\0", "\x85")
    ]
    sequence = encode([text, P, text], tokenizer, num_latents=2, image_size=28)
    slots = [tokenizer.image_id] * 3 + [tokenizer.end_image_id]
    assert sequence.input_ids.tolist() == [0, *ids, *slots, *ids]
    assert not {0, 1, 2, *range(64001, 64007)} & set(ids)
    assert sequence.image_mask.nonzero().flatten().tolist() == [len(ids) + 2, len(ids) + 3]


def test_training_sequences_and_batches(shared: Golden) -> None:
    checks = list(check_file(shared, "loaders.json"))
    assert [check for check in checks if not check.ok] == []
    assert {check.tolerance for check in checks} == {0}
    whats = [check.what for check in checks]
    assert sum(what.startswith("openimage.drop0.0 ") for what in whats) == 3 * 9
    assert sum(what.startswith("openimage.drop1.0 ") for what in whats) == 3 * 8 + 1
    for drop in ("0.0", "1.0"):
        assert sum(what.startswith(f"instructpix2pix.drop{drop} ") for what in whats) == 2 * 2
        assert sum(what.startswith(f"instructpix2pix.drop{drop}.batch") for what in whats) == 6
    for align in ("True", "False"):
        assert sum(what.startswith(f"laion.align{align} ") for what in whats) == 6 + 3
        assert sum(what.startswith(f"laion.align{align}.batch") for what in whats) == 3
    assert sum(what.startswith("laion.filter.size ") for what in whats) == 10
    assert len(whats) == 27 + 25 + 2 * (4 + 6) + 2 * (9 + 3) + 10


@pytest.mark.parametrize("dropped", [False, True])
def test_open_images_rows_as_prompts(shared: Golden, dropped: bool) -> None:
    recorded = json.loads((shared.directory / "loaders.json").read_text(encoding="utf-8"))
    rows = recorded[f"openimage.drop{float(dropped)}"]
    assert [row["caption"] for row in rows] == list(OPEN_IMAGES)
    for row in rows:
        prompt = OPEN_IMAGES[row["caption"]][dropped]
        assert (prompt is None) == row["dropped_sample"]
        record = example(row["caption"], row["tags"].split(","))
        composed = compose(record, coins(dropped=dropped)).prompt
        if prompt is None:
            assert isinstance(composed[0], Image.Image)
        else:
            assert composed == prompt


def test_mentions_that_the_recording_has_not() -> None:
    caption = "a Cat, a cat and a big red cat-flap"
    assert mentions(caption, ["cat", "Red", "dog", "", "big"]) == [(2, 5, 0), (19, 22, 4)]
    assert mentions(caption, ["cat", "cat"]) == []  # each is found within two tags


def test_views_of_all_pictures(shared: Golden) -> None:
    checks = list(check_file(shared, "image_transform.safetensors"))
    assert [check for check in checks if not check.ok] == []
    assert len(checks) == 6 * 2 * 3
    assert {check.tolerance for check in checks} == {1e-5, 1e-2}
    assert all("sum" in check.what for check in checks if check.tolerance == 1e-2)
