"""What may be a prompt, and the words in which others are refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kosmosg.errors import PromptError
from kosmosg.prompts import as_batch, check_length, check_prompt, is_empty
from kosmosg.tokenizer import Tokenizer

PICTURE = Image.new("RGB", (8, 8))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_words(["a", "red", "cat", "creature", ","])


@pytest.mark.parametrize(
    ("prompt", "batch"),
    [
        ("a cat", [["a cat"]]),
        (["a cat"], [["a cat"]]),
        (("a cat",), [["a cat"]]),
        ([PICTURE], [[PICTURE]]),
        (["a", PICTURE, "cat"], [["a", PICTURE, "cat"]]),
        ([["a", "cat"]], [["a", "cat"]]),
        ([["a"], ["cat", PICTURE]], [["a"], ["cat", PICTURE]]),
        ([("a",), [PICTURE]], [["a"], [PICTURE]]),
        ("", [[""]]),
        ([], [[]]),
    ],
)
def test_every_spelling_of_a_prompt_becomes_a_batch(prompt, batch):
    assert as_batch(prompt) == batch


def test_several_texts_in_a_flat_list_are_ambiguous_and_both_spellings_are_shown():
    with pytest.raises(PromptError) as error:
        as_batch(["a cat", "a dog"])
    assert '[["a cat", "a dog"]] for one' in str(error.value)
    assert '[["a cat"], ["a dog"]] for 2' in str(error.value)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (PICTURE, "not Image"),
        (["a cat", ["a dog", PICTURE]], "a batch as a list of lists"),
        ([Path("cat.png")], "open a file with kosmosg.images.open_image"),
        ([["a", np.zeros(3)]], "not ndarray"),
        ([["a", ["cat"]]], "not list"),
        (["a", None, PICTURE], "not NoneType"),
    ],
)
def test_other_things_are_refused_by_name(prompt, words):
    with pytest.raises(PromptError, match=words):
        as_batch(prompt)


@pytest.mark.parametrize("prompt", [[], [""], ["  ", "\n"]])
def test_an_empty_prompt_is_refused(prompt, tokenizer):
    assert is_empty(prompt)
    with pytest.raises(PromptError, match="empty; give it words, pictures or both"):
        check_prompt(prompt, tokenizer, max_pictures=8)


def test_pictures_alone_are_a_prompt(tokenizer):
    check_prompt([PICTURE] * 8, tokenizer, max_pictures=8)


def test_too_many_pictures_are_counted(tokenizer):
    with pytest.raises(PromptError, match=r"9 pictures.*at most 8: leave out 1"):
        check_prompt([PICTURE] * 9, tokenizer, max_pictures=8)


def test_unknown_words_are_named_with_known_ones_that_look_alike(tokenizer):
    with pytest.raises(PromptError, match=r"does not know 'creatur', 'zebra'.*mean creature, cat"):
        check_prompt(["a red creatur", "zebra, zebra"], tokenizer, max_pictures=8)


def test_without_anything_alike_the_remedy_is_another_word(tokenizer):
    with pytest.raises(PromptError, match="use other words"):
        check_prompt(["xylophone"], tokenizer, max_pictures=8)


def test_a_flood_of_unknown_words_is_a_short_line(tokenizer):
    with pytest.raises(PromptError, match=r"'w4' and 19995 more \(its") as error:
        check_prompt(
            [" ".join(f"w{number}" for number in range(20_000))], tokenizer, max_pictures=8
        )
    assert len(str(error.value)) < 200


def test_half_a_character_is_no_text(tokenizer):
    with pytest.raises(PromptError, match=r"character 1 of .* is half a character \(U\+DCFF\)"):
        check_prompt(["a \udcff"], tokenizer, max_pictures=8)


def test_the_length_and_its_limit_are_named():
    check_length(254, 254)
    with pytest.raises(PromptError, match=r"has 255 positions, this model reads at most 254; use"):
        check_length(255, 254)


def test_a_picture_alone_is_told_how_to_be_written():
    with pytest.raises(PromptError, match=r"write \[picture\] for one alone"):
        as_batch(Image.new("RGB", (8, 8)))
