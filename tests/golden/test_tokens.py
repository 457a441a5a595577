"""Ids and slots of the released preprocessing and loaders, exactly."""

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from kosmosg.sequence import Encoded, collate, encode
from kosmosg.tokenizer import Tokenizer

PICTURE = Image.new("RGB", (32, 32), "red")
P = PICTURE

# What the released Open Images loader makes of a caption and its tags, as prompts. With the nouns
# kept, and with the nouns dropped (None: the released loader loses the sample).
OPEN_IMAGES = {
    "A dog and a cat sitting on the red sofa.": (
        ["A dog", P, " and a cat", P, " sitting on the red sofa", P, "."],
        ["A ", P, " and a ", P, " sitting on the red ", P, "."],
    ),
    "two dogs playing with a ball": (
        ["two dogs playing with a ball", P],
        ["two dogs playing with a ", P],
    ),
    "Dog running": (["Dog", P, " running"], None),
    "a man riding a horse, a man smiling": (
        ["a man riding a horse", P, ", a man smiling", P],
        ["a man riding a ", P, ", a ", P],
    ),
    "a white building with no match": (
        ["a white building with no match"],
        ["a white building with no match"],
    ),
    "A woman's hat (blue) near the woman": (
        ["A woman's", P, " hat", P, " (blue) near the woman"],
        ["A ", P, " ", P, " (blue) near the woman"],
    ),
    "the cat.": (["the cat", P, "."], ["the ", P, "."]),
    "a bus-stop sign and a bus": (
        ["a bus-stop", P, " sign", P, " and a bus"],
        ["a ", P, " ", P, " and a bus"],
    ),
    "plain caption without anything": (
        ["plain caption without anything"],
        ["plain caption without anything"],
    ),
}


def test_vocabulary(golden_json: Callable[[str], Any], tokenizer: Tokenizer) -> None:
    info = golden_json("tokenizer.json")["info"]
    assert tokenizer.vocab_size == info["vocab_size"]
    ids = (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id)
    assert ids == (info["bos"], info["pad"], info["eos"], info["unk"])
    for index, symbol in [*info["head"], *info["tail"]]:
        assert tokenizer.symbol(index) == symbol
    assert tokenizer.image_id == info["special"]["<image>"][0]
    assert tokenizer.end_image_id == info["special"]["</image>"][0]


def test_all_64_prompts(golden_json: Callable[[str], Any], tokenizer: Tokenizer) -> None:
    cases = golden_json("tokenizer.json")["cases"]
    assert len(cases) == 64
    for case in cases:
        encoded = _encode(_prompt(case["prompt"]), tokenizer)
        assert encoded.input_ids.tolist() == case["src_tokens"], case["prompt"]
        slots = encoded.image_mask.nonzero().flatten().tolist()
        assert slots == case["image_positions"], case["prompt"]
        negative = _encode([case["negative_prompt"]], tokenizer)
        assert negative.input_ids.tolist() == case["negative_tokens"]
        assert tokenizer.pieces(case["prompt"])[:60] == case["pieces"]  # the file keeps 60


@pytest.mark.parametrize("drop", [0, 1])
def test_open_images_sequences(
    golden_json: Callable[[str], Any], tokenizer: Tokenizer, drop: int
) -> None:
    rows = golden_json("loaders.json")[f"openimage.drop{drop}.0"]
    assert [row["caption"] for row in rows] == list(OPEN_IMAGES)
    for row in rows:
        prompt = OPEN_IMAGES[row["caption"]][drop]
        assert (prompt is None) == row["dropped_sample"]
        if prompt is not None:
            _equals(_encode(prompt, tokenizer), row)


@pytest.mark.parametrize("drop", [0, 1])
def test_instructpix2pix_sequences_and_batch(
    golden_json: Callable[[str], Any], tokenizer: Tokenizer, drop: int
) -> None:
    loaders = golden_json("loaders.json")
    rows = [row for row in loaders[f"instructpix2pix.drop{drop}.0"] if "tokens" in row]
    encoded = [
        _encode(["" if drop else row["input"], PICTURE, row["edit"]], tokenizer) for row in rows
    ]
    for one, row in zip(encoded, rows, strict=True):
        _equals(one, row)
    batch = collate(encoded, pad_id=tokenizer.pad_id)
    expected = loaders[f"instructpix2pix.drop{drop}.0.batch"]
    assert batch.input_ids.tolist() == expected["src_tokens"]
    assert [row.nonzero().flatten().tolist() for row in batch.image_mask] == expected[
        "img_mask_true"
    ]
    assert batch.pixel_values is not None
    assert list(batch.pixel_values.shape) == expected["gpt_img_shape"]


def test_caption_sequences_and_batch(
    golden_json: Callable[[str], Any], tokenizer: Tokenizer
) -> None:
    loaders = golden_json("loaders.json")
    rows = [row for row in loaders["laion.alignTrue"] if row["kept"]]
    encoded = [_encode([row["caption"]], tokenizer) for row in rows]
    for one, row in zip(encoded, rows, strict=True):
        assert one.input_ids.tolist() == row["tokens"][:-1]
    batch = collate(encoded, pad_id=tokenizer.pad_id)
    assert batch.input_ids.tolist() == loaders["laion.alignTrue.batch"]["src_tokens"]


def _prompt(marked: str) -> list[str | Image.Image]:
    """The released preprocessing marks each picture by `<i>`."""
    first, *others = marked.split("<i>")
    prompt: list[str | Image.Image] = [first]
    for text in others:
        prompt += [PICTURE, text]
    return prompt


def _encode(prompt: list[str | Image.Image], tokenizer: Tokenizer) -> Encoded:
    return encode(prompt, tokenizer, num_latents=64, image_size=224)


def _equals(encoded: Encoded, row: dict[str, Any]) -> None:
    """The released loaders end with `</s>` and cut it off before the model."""
    assert encoded.input_ids.tolist() == row["tokens"][:-1]
    assert encoded.image_mask.int().tolist() == row["input_mask"][:-1]
