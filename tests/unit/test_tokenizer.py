from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmosg.errors import CheckpointError
from kosmosg.tokenizer import DICTIONARY_FILE, MODEL_FILE, Tokenizer

WORDS = ["a", "cat", "catalogue", "hat", "in", "snow", "wearing"]
MARKS = [",", "."]
TOKENIZER = Tokenizer.from_words([*WORDS, *MARKS])


def test_special_ids_stand_around_the_dictionary() -> None:
    assert TOKENIZER.vocab_size == 4 + len(WORDS) + len(MARKS) + 1 + 6
    specials = [TOKENIZER.symbol(index) for index in range(4)]
    assert specials == ["<s>", "<pad>", "</s>", "<unk>"]
    assert TOKENIZER.symbol(TOKENIZER.image_id) == "<image>"
    assert TOKENIZER.symbol(TOKENIZER.end_image_id) == "</image>"
    assert TOKENIZER.symbol(TOKENIZER.vocab_size - 1) == "</line>"


def test_words_are_cut_whole_and_marks_apart() -> None:
    assert TOKENIZER.pieces("a catalogue, in snow.") == [
        "▁a",
        "▁catalogue",
        ",",
        "▁in",
        "▁snow",
        ".",
    ]
    assert TOKENIZER.decode(TOKENIZER.encode("a catalogue, in snow.")) == "a catalogue, in snow."


def test_capitals_and_blanks_are_read_plainly() -> None:
    assert TOKENIZER.encode("A Cat\tWEARING\na hat") == TOKENIZER.encode("a cat wearing a hat")


@pytest.mark.parametrize("text", ["", " ", "   \t"])
def test_nothing_to_read_has_no_ids(text: str) -> None:
    assert TOKENIZER.encode(text) == []


@pytest.mark.parametrize("text", ["<image>", "</image>", "<s>", "</s>", "<pad>", "<mask>"])
def test_special_symbols_in_a_text_are_only_text(text: str) -> None:
    specials = {0, 1, 2, *range(TOKENIZER.vocab_size - 6, TOKENIZER.vocab_size)}
    assert not specials & set(TOKENIZER.encode(f"a {text} cat"))


def test_unknown_words_are_named_once_and_whole() -> None:
    assert TOKENIZER.unknown_words("a dragon in the snow, dragon") == ["dragon", "the"]
    assert TOKENIZER.unknown_words("a cat, in snow.") == []
    assert "⁇" in TOKENIZER.decode(TOKENIZER.encode("a dragon"))


def test_special_ids_leave_no_trace_in_the_text() -> None:
    ids = [0, *TOKENIZER.encode("a cat"), 2, 1, 1, TOKENIZER.image_id]
    assert TOKENIZER.decode(ids) == "a cat"


@pytest.mark.parametrize("index", [-1, TOKENIZER.vocab_size])
def test_an_id_outside_the_vocabulary_is_named(index: int) -> None:
    with pytest.raises(ValueError, match=f"id {index} is outside the vocabulary of 20"):
        TOKENIZER.decode([index])


@given(st.lists(st.sampled_from(WORDS), min_size=1))
def test_text_of_known_words_survives(words: list[str]) -> None:
    text = " ".join(words)
    ids = TOKENIZER.encode(text)
    assert len(ids) == len(words)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.unknown_words(text) == []


@given(st.text())
def test_any_text_has_ids_within_the_vocabulary(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert all(3 <= index < TOKENIZER.vocab_size - 6 for index in ids)
    TOKENIZER.decode(ids)


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    loaded = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    assert loaded.vocab_size == TOKENIZER.vocab_size
    text = "a cat wearing a hat, in snow. dragon"
    assert loaded.encode(text) == TOKENIZER.encode(text)
    loaded.save_pretrained(tmp_path / "again")
    for name in (MODEL_FILE, DICTIONARY_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (
            tmp_path / "tokenizer" / name
        ).read_bytes()


def test_separators_of_unicode_do_not_end_a_line_of_the_dictionary(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    (tmp_path / DICTIONARY_FILE).write_text("\u2028 5\n\x85 4\n▁a 3", encoding="utf-8")
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert [loaded.symbol(index) for index in (4, 5, 6)] == ["\u2028", "\x85", "▁a"]


@pytest.mark.parametrize("name", [MODEL_FILE, DICTIONARY_FILE])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing; name the directory"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    (tmp_path / MODEL_FILE).write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match="is not a SentencePiece model"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_repeated_symbol_is_refused(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    (tmp_path / DICTIONARY_FILE).write_text("a 1\na 1", encoding="utf-8")
    with pytest.raises(CheckpointError, match="1 repeated symbols"):
        Tokenizer.from_pretrained(tmp_path)


def test_the_sum_is_that_of_the_files_and_of_no_other_words(tmp_path):
    tokenizer = Tokenizer.from_words(["a", "red", "cat"])
    tokenizer.save_pretrained(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).sha256() == tokenizer.sha256()
    assert Tokenizer.from_words(["a", "cat", "red"]).sha256() != tokenizer.sha256()
