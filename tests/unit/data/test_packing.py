# ruff: noqa: RUF001 - the marks of other languages are meant
import doctest
import itertools
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kosmosg.data import packing, rows
from kosmosg.data.packing import Lengths, pack, pieces, sentences
from kosmosg.data.records import Caption, Document, Edit
from kosmosg.errors import ConfigError, DataError
from kosmosg.tokenizer import Tokenizer
from toys.parts import TOKENIZER

PICTURE = Image.new("RGB", (4, 4))
# Pieces of a document: words have 0 or more positions, pictures 66 in rows that hold 100.
documents = st.lists(
    st.lists(st.one_of(st.integers(0, 40), st.integers(90, 350), st.just("picture")), max_size=12),
    max_size=12,
)


def lengths(several) -> Lengths:
    flat = [piece for document in several for piece in document]
    return Lengths(
        counts=np.array([len(document) for document in several], np.int32),
        sizes=np.array([66 if piece == "picture" else piece for piece in flat], np.int32),
        pictures=np.array([piece == "picture" for piece in flat], np.bool_),
    )


def held(several, bounds):
    """What each row holds: (record, piece, from, to), walked piece by piece."""
    rows = []
    for (record, piece, token), end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        row = []
        while [record, piece, token] < end:
            if piece == len(several[record]):
                record, piece, token = record + 1, 0, 0
                continue
            size = 66 if several[record][piece] == "picture" else several[record][piece]
            stop = end[2] if [record, piece] == end[:2] else size
            row.append((record, piece, token, stop))
            token = stop
            if stop == size:
                piece, token = piece + 1, 0
            else:
                break
        rows.append([part for part in row if part[2] < part[3]])
    return rows


def positions(row) -> int:
    return sum(stop - start for _, _, start, stop in row) + len({record for record, *_ in row})


@settings(max_examples=200)
@given(documents)
def test_every_position_is_in_one_row_in_order_and_no_row_is_too_long(several):
    packed = held(several, pack(lengths(several), seq_len=100))
    found = [
        (record, piece, position)
        for row in packed
        for record, piece, start, stop in row
        for position in range(start, stop)
    ]
    assert found == [
        (record, piece, position)
        for record, document in enumerate(several)
        for piece, size in enumerate(document)
        for position in range(66 if size == "picture" else size)
    ]
    assert all(0 < positions(row) <= 100 for row in packed)


@settings(max_examples=200)
@given(documents)
def test_only_what_is_longer_than_a_row_is_cut(several):
    packed = held(several, pack(lengths(several), seq_len=100))
    for row in packed:
        for record, piece, start, stop in row:
            size = 66 if several[record][piece] == "picture" else several[record][piece]
            assert (start, stop) == (0, size) or size > 99


@settings(max_examples=200)
@given(documents)
def test_a_row_ends_only_where_the_next_thing_does_not_fit(several):
    packed = held(several, pack(lengths(several), seq_len=100))
    for row, following in itertools.pairwise(packed):
        record, piece, start, stop = following[0]
        words = [size for size in several[record][piece + 1 :] if size != 0]
        needed = stop - start
        if several[record][piece] == "picture" and words and words[0] != "picture":
            needed += words[0] if 66 + words[0] <= 99 else 0  # a picture and its sentence
        opens = record != row[-1][0]
        cut = start or (several[record][piece] != "picture" and several[record][piece] > 99)
        assert positions(row) + opens + (1 if cut else needed) > 100


def test_a_picture_takes_the_sentence_after_it_along():
    bounds = pack(lengths([[20, "picture", 20, 5]]), seq_len=100)
    assert bounds.tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]
    # It would not fit with it in any row.
    bounds = pack(lengths([[20, "picture", 34]]), seq_len=100)
    assert bounds.tolist() == [[0, 0, 0], [0, 2, 0], [1, 0, 0]]


def test_a_sentence_longer_than_a_row_fills_rows_and_goes_on():
    bounds = pack(lengths([[30], [250, 10]]), seq_len=100)
    # 31 positions, `<s>` and 68 words; `<s>` and 99; `<s>`, 83 and 10.
    assert bounds.tolist() == [[0, 0, 0], [1, 0, 68], [1, 0, 167], [2, 0, 0]]


def test_records_without_words_take_no_room():
    assert pack(lengths([]), seq_len=100).tolist() == [[0, 0, 0]]
    assert pack(lengths([[], [0, 0]]), seq_len=100).tolist() == [[2, 0, 0]]
    bounds = pack(lengths([[], [0, 60, 0], [0], [39], [0, 1]]), seq_len=100)
    assert bounds.tolist() == [[0, 0, 0], [3, 0, 0], [5, 0, 0]]


def test_a_picture_longer_than_a_row_is_refused():
    with pytest.raises(ConfigError, match="seq_len is 66, and a picture with its <s> takes 67"):
        pack(lengths([["picture"]]), seq_len=66)
    assert len(pack(lengths([["picture"]]), seq_len=67)) == 2


def realistic(kind: str) -> Lengths:
    rng = np.random.default_rng(0)

    def words(count):
        return [int(size) for size in 1 + rng.lognormal(3, 0.6, count)]  # 24 ids in the mean

    made = []
    for _ in range(2000):
        if kind == "text":
            made.append(words(int(rng.lognormal(3.2, 1.0)) + 1))
        elif kind == "pairs":
            made.append(["picture", *words(1)])
        else:
            made.append(words(int(rng.lognormal(3, 0.5)) + 1))
            for place in rng.integers(0, len(made[-1]) + 1, int(rng.integers(1, 7))):
                made[-1].insert(int(place), "picture")
    return lengths(made)


@pytest.mark.parametrize("kind", ["text", "pairs", "interleaved"])
def test_rows_of_2048_are_filled_to_97_percent(kind):
    shard = realistic(kind)
    packed = rows._pack(shard, 2048)
    walked = held(
        np.split(np.where(shard.pictures, -1, shard.sizes), shard.counts.cumsum()[:-1]),
        packed.bounds,
    )
    assert packed.num_rows == len(walked)
    assert 0.97 <= packed.fill <= 1


def test_the_fill_is_what_the_rows_hold():
    several = [[30, 250, "picture", 20], [], [0], ["picture", 5], [60, 60, 60]]
    packed = rows._pack(lengths(several), 100)
    used = sum(positions(row) for row in held(several, packed.bounds))
    assert packed.fill == pytest.approx(used / (100 * packed.num_rows))
    assert packed.left_out == {1}


@settings(max_examples=300)
@given(st.text(alphabet="ab .!?\n\t\"'”)。！？…۔।", max_size=60))
def test_sentences_lose_no_character(text):
    found = sentences(text)
    assert "".join(found) == text
    assert not any(sentence.isspace() for sentence in found[:-1])
    assert "" not in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two!  Three?", ["One. ", "Two!  ", "Three?"]),
        ("Version 3.5 of kosmosg.data is out.", ["Version 3.5 of kosmosg.data is out."]),
        ('He said "no." Then he left.', ['He said "no." ', "Then he left."]),
        ("Well... yes", ["Well... ", "yes"]),
        ("A title\n\n  Its text", ["A title\n\n  ", "Its text"]),
        ("\n\nA title", ["\n\nA title"]),
        ("你好。今天？「是！」好", ["你好。", "今天？", "「是！」", "好"]),
        ("هل هذا؟ نعم", ["هل هذا؟ ", "نعم"]),
        ("यह है। वह था", ["यह है। ", "वह था"]),
        ("", []),
        ("  ", ["  "]),
    ],
)
def test_where_sentences_end(text, expected):
    assert sentences(text) == expected


@pytest.mark.parametrize(
    "text", ["." * 100_000 + "x", ".\"'" * 33_000, "\n " * 50_000, "。" * 99_999]
)
def test_text_made_to_be_slow_is_not(text):
    began = process_time()
    assert "".join(sentences(text)) == text
    assert process_time() - began < 2  # 10 ms; a search of the square of it would take minutes


@given(st.lists(st.sampled_from(["a cat", "the snow", "red", ". ", ".\n", "! ", "? ", " "])))
def test_cut_at_spaces_the_ids_are_those_of_the_text(words):
    text = "".join(words)
    cut = [index for sentence in sentences(text) for index in TOKENIZER.encode(sentence)]
    assert cut == TOKENIZER.encode(text)


def test_the_released_tokenizer_cuts_sentences_as_it_cuts_text(shared_dir, repository):
    tokenizer = Tokenizer.from_pretrained(shared_dir / "tokenizer")
    text = (repository / "docs/training.md").read_text()
    assert len(sentences(text)) > 100
    cut = [index for sentence in sentences(text) for index in tokenizer.encode(sentence)]
    assert cut == tokenizer.encode(text)


def test_pieces_of_records():
    document = Document(key="d", parts=("One. Two.", PICTURE, "Three."))
    assert pieces(document) == ["One. ", "Two.", PICTURE, "Three."]
    assert pieces(Caption(key="c", text="A cat. Red.", image=PICTURE)) == [
        PICTURE,
        "A cat. ",
        "Red.",
    ]
    assert pieces(Caption(key="c", text="A cat.")) == ["A cat."]
    edit = Edit(key="e", caption="", before=(PICTURE,), instruction="red", after=PICTURE)
    with pytest.raises(DataError, match="edit e belongs to stage 3"):
        pieces(edit)


@pytest.mark.parametrize("module", [packing, rows])
def test_the_examples_are_true(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
