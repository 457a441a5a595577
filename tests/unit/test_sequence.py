import doctest
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kosmosg.errors import PromptError
from kosmosg.images import clip_view
from kosmosg.sequence import (
    IGNORED,
    Batch,
    Encoded,
    Prompt,
    Segment,
    collate,
    decode,
    encode,
    encode_document,
    encode_row,
    length,
    null,
    with_values,
)
from toys.parts import IMAGE_SIZE, NUM_LATENTS, TOKENIZER

PICTURE = Image.new("RGB", (20, 30), "red")
OTHER = Image.new("RGB", (16, 16), "blue")
BOS, PAD, EOS = TOKENIZER.bos_id, TOKENIZER.pad_id, TOKENIZER.eos_id
IMAGE, END = TOKENIZER.image_id, TOKENIZER.end_image_id

texts = st.lists(st.sampled_from(["a", "red", "cat", "in", "the", "snow"]), min_size=1).map(
    " ".join
)
parts = st.one_of(texts, st.sampled_from([PICTURE, OTHER]))
prompts = st.lists(parts, max_size=5)


def encoded(prompt: Prompt) -> Encoded:
    return encode(prompt, TOKENIZER, num_latents=NUM_LATENTS, image_size=IMAGE_SIZE)


def document(prompt: Prompt) -> Encoded:
    return encode_document(prompt, TOKENIZER, num_latents=NUM_LATENTS, image_size=IMAGE_SIZE)


def test_one_prompt_in_full() -> None:
    one = encoded(["a cat", PICTURE, "in the snow"])
    words, rest = TOKENIZER.encode("a cat"), TOKENIZER.encode("in the snow")
    assert one.input_ids.tolist() == [BOS, *words, *[IMAGE] * 4, END, *rest]
    assert one.image_mask.int().tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]
    assert one.labels is None
    assert one.pixel_values is not None
    assert torch.equal(one.pixel_values, clip_view(PICTURE, IMAGE_SIZE)[None])


def test_the_documentation_is_true(repository: Path) -> None:
    path = repository / "docs/sequence.md"
    result = doctest.testfile(str(path), module_relative=False, encoding="utf-8")
    assert result.attempted > 5
    assert result.failed == 0


def test_a_document_predicts_text_and_its_end() -> None:
    one = document(["a cat", PICTURE, "in the snow"])
    words, rest = TOKENIZER.encode("a cat"), TOKENIZER.encode("in the snow")
    assert one.labels is not None
    assert one.labels.tolist() == [*words, *[IGNORED] * 5, *rest, EOS]
    assert torch.equal(one.input_ids, encoded(["a cat", PICTURE, "in the snow"]).input_ids)


@settings(max_examples=40)
@given(prompts)
def test_labels_are_the_text_and_the_end_in_order(prompt: list[str | Image.Image]) -> None:
    one = document(prompt)
    assert one.labels is not None
    predicted = one.labels[one.labels != IGNORED].tolist()
    text = [index for part in prompt if isinstance(part, str) for index in TOKENIZER.encode(part)]
    assert predicted == [*text, EOS]
    # Each label is the id that follows, so that no position predicts what it has read.
    real = one.labels[:-1] != IGNORED
    assert torch.equal(one.labels[:-1][real], one.input_ids[1:][real])


@settings(max_examples=40)
@given(prompts)
def test_slots_are_latents_times_pictures(prompt: list[str | Image.Image]) -> None:
    one = encoded(prompt)
    pictures = [part for part in prompt if not isinstance(part, str)]
    assert int(one.image_mask.sum()) == NUM_LATENTS * len(pictures)
    assert (one.input_ids[one.image_mask] == IMAGE).all()
    if pictures:
        views = torch.stack([clip_view(picture, IMAGE_SIZE) for picture in pictures])
        assert one.pixel_values is not None
        assert torch.equal(one.pixel_values, views)
    else:
        assert one.pixel_values is None


@settings(max_examples=40)
@given(prompts)
def test_decode_gives_the_prompt_back(prompt: list[str | Image.Image]) -> None:
    joined: list[str | int] = []
    num_pictures = 0
    for part in prompt:
        if not isinstance(part, str):
            joined.append(num_pictures)
            num_pictures += 1
        elif joined and isinstance(joined[-1], str):
            joined[-1] = f"{joined[-1]} {part}"
        else:
            joined.append(part)
    assert decode(encoded(prompt), TOKENIZER) == joined


@settings(max_examples=40)
@given(st.lists(prompts, min_size=1, max_size=4))
def test_a_batch_holds_each_sequence_and_pads_after_it(
    several: list[list[str | Image.Image]],
) -> None:
    rows = [document(prompt) for prompt in several]
    batch = collate(rows, pad_id=PAD)
    assert batch.labels is not None
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        assert torch.equal(batch.input_ids[index, :length], row.input_ids)
        assert torch.equal(batch.image_mask[index, :length], row.image_mask)
        assert row.labels is not None
        assert torch.equal(batch.labels[index, :length], row.labels)
        assert batch.attention_mask[index].tolist() == [
            position < length for position in range(batch.input_ids.shape[1])
        ]
        assert (batch.input_ids[index, length:] == PAD).all()
        assert not batch.image_mask[index, length:].any()
        assert (batch.labels[index, length:] == IGNORED).all()
    pictures = [row.pixel_values for row in rows if row.pixel_values is not None]
    assert (batch.pixel_values is None) == (not pictures)
    if batch.pixel_values is not None:
        assert torch.equal(batch.pixel_values, torch.cat(pictures))


def test_texts_that_follow_one_another_stay_apart() -> None:
    assert not torch.equal(encoded(["a", ", red"]).input_ids, encoded(["a, red"]).input_ids)


@pytest.mark.parametrize("text", ["<image>", "</image>", "<s>", "</s>", "<i>", "<pad>"])
def test_words_cannot_imitate_a_picture_or_an_end(text: str) -> None:
    ids = encoded([f"a {text} cat"]).input_ids.tolist()
    assert ids.count(BOS) == 1
    assert not {PAD, EOS, IMAGE, END} & set(ids)


def test_the_null_prompt_is_the_empty_prompt() -> None:
    nothing = null(TOKENIZER)
    for prompt in ([], [""], ["  "]):
        assert torch.equal(encoded(prompt).input_ids, nothing.input_ids)
    assert nothing.input_ids.tolist() == [BOS]
    assert not nothing.image_mask.any()


@pytest.mark.parametrize("part", [None, 3, b"cat", ["cat"], Path("cat.png")])
def test_a_part_of_another_type_is_named(part: object) -> None:
    def unchecked(prompt: object) -> None:
        # As callers without shape checks get it.
        getattr(encode, "__wrapped__", encode)(
            prompt, TOKENIZER, num_latents=NUM_LATENTS, image_size=IMAGE_SIZE
        )

    with pytest.raises(PromptError, match=f"holds {type(part).__name__}; it may hold only str"):
        unchecked(["a", part])


def test_a_batch_of_nothing_or_of_two_stages_is_refused() -> None:
    with pytest.raises(ValueError, match="no sequences to collate"):
        collate([], pad_id=PAD)
    with pytest.raises(ValueError, match="1 of 2 sequences have labels"):
        collate([encoded(["a"]), document(["a"])], pad_id=PAD)


def test_moving_a_batch_casts_only_its_pictures() -> None:
    batch = collate([document(["a", PICTURE])], pad_id=PAD)
    moved = batch.to("cpu", torch.bfloat16)
    assert moved.pixel_values is not None
    assert moved.pixel_values.dtype == torch.bfloat16
    assert moved.input_ids.dtype == torch.long
    assert moved.labels is not None
    assert moved.labels.dtype == torch.long
    assert moved.attention_mask.dtype == torch.bool
    wordy = collate([encoded(["a"])], pad_id=PAD).to("cpu", torch.bfloat16)
    assert wordy.pixel_values is None
    assert wordy.labels is None


@given(prompts)
def test_the_length_is_known_without_encoding(prompt: list[str | Image.Image]) -> None:
    assert length(prompt, TOKENIZER, num_latents=NUM_LATENTS) == len(encoded(prompt).input_ids)


def weighed(prompt: Prompt, *weights: float) -> Encoded:
    return encode(
        prompt,
        TOKENIZER,
        num_latents=NUM_LATENTS,
        image_size=IMAGE_SIZE,
        image_weights=weights,
    )


def test_a_picture_of_weight_0_leaves_nothing_behind() -> None:
    weighted = weighed(["a", PICTURE, "cat", OTHER], 0.0, 0.5)
    without = encoded(["a", "cat", OTHER])
    assert weighted.input_ids.tolist() == without.input_ids.tolist()
    assert weighted.image_mask.tolist() == without.image_mask.tolist()
    assert torch.equal(weighted.pixel_values, without.pixel_values)
    assert weighted.image_weights.tolist() == [0.5]


def test_weights_of_1_are_no_weights_and_others_fill_up_with_1() -> None:
    assert weighed(["a", PICTURE], 1.0).image_weights is None
    rows = [encoded([PICTURE, OTHER]), encoded(["a"]), weighed([OTHER], 0.25)]
    batch = collate(rows, pad_id=PAD)
    assert batch.image_weights.tolist() == [1.0, 1.0, 0.25]
    assert batch.to("cpu", torch.bfloat16).image_weights.tolist() == [1.0, 1.0, 0.25]
    assert collate(rows[:2], pad_id=PAD).image_weights is None


def test_weights_must_be_as_many_as_pictures() -> None:
    with pytest.raises(ValueError, match="1 weights for 2 pictures"):
        weighed([PICTURE, OTHER], 1.0)


def row(*segments: Segment) -> Encoded:
    return encode_row(segments, TOKENIZER, num_latents=NUM_LATENTS, image_size=IMAGE_SIZE)


@settings(max_examples=40)
@given(st.lists(prompts, min_size=1, max_size=4))
def test_a_row_of_whole_documents_is_their_sequences_one_after_another(
    several: list[list[str | Image.Image]],
) -> None:
    joined = row(*(Segment(parts=prompt, ends=True) for prompt in several))
    alone = [document(prompt) for prompt in several]
    for name in ("input_ids", "image_mask", "labels"):
        assert torch.equal(getattr(joined, name), torch.cat([getattr(one, name) for one in alone]))
    assert joined.document_ids is not None
    assert joined.document_ids.tolist() == [
        index for index, one in enumerate(alone) for _ in one.input_ids
    ]


def test_a_document_that_goes_on_in_the_next_row() -> None:
    words = TOKENIZER.encode("a red cat")
    begun = row(Segment(parts=[PICTURE, "a red cat"], stop=2, ends=False))
    assert begun.input_ids.tolist() == [BOS, *[IMAGE] * 4, END, *words[:2]]
    assert begun.image_mask.int().tolist() == [0, 0, 1, 1, 1, 0, 0, 0]
    # The last word is read, and nothing is asked of it: the next row's `<s>` is asked.
    assert begun.labels.tolist() == [*[IGNORED] * 5, *words[:2], IGNORED]
    rest = row(Segment(parts=["a red cat", OTHER], start=2, ends=True))
    assert rest.input_ids.tolist() == [BOS, *words[2:], *[IMAGE] * 4, END]
    assert rest.image_mask.int().tolist() == [0] * (2 + len(words[2:])) + [1] * 3 + [0]
    assert rest.labels.tolist() == [*words[2:], *[IGNORED] * 5, EOS]
    middle = row(Segment(parts=["a red cat"], start=1, stop=2, ends=False))
    assert middle.input_ids.tolist() == [BOS, words[1]]
    assert middle.labels.tolist() == [words[1], IGNORED]


def test_a_batch_of_rows_knows_its_documents() -> None:
    two = row(Segment(parts=["a"], ends=True), Segment(parts=["cat"], ends=False))
    batch = collate([two, document(["a red cat hat hat"])], pad_id=PAD).to("cpu")
    assert batch.document_ids is not None
    first, second = (len(TOKENIZER.encode(word)) + 1 for word in ("a", "cat"))
    pads = batch.input_ids.shape[1] - first - second
    assert batch.document_ids[0].tolist() == [0] * first + [1] * second + [-1] * pads
    assert not batch.document_ids[1].any()
    assert collate([document(["a"])], pad_id=PAD).document_ids is None
    with pytest.raises(ValueError, match="no segments in a row"):
        row()


def test_pictures_travel_as_bytes_and_become_the_same_numbers() -> None:
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "teal")]
    sizes = {"num_latents": NUM_LATENTS, "image_size": IMAGE_SIZE}
    prompts = [["a", pictures[0]], [pictures[1], "b", pictures[0]], ["c"]]

    def batch(*, as_bytes: bool) -> Batch:
        encoded = [encode(one, TOKENIZER, **sizes, as_bytes=as_bytes) for one in prompts]
        return collate(encoded, pad_id=TOKENIZER.pad_id)

    values, travelling = batch(as_bytes=False).pixel_values, batch(as_bytes=True)
    assert values is not None
    assert travelling.pixel_values is not None
    assert travelling.pixel_values.numel() == values.numel()
    assert travelling.pixel_values.dtype == torch.uint8
    arrived = with_values(travelling).pixel_values
    assert arrived is not None
    assert torch.equal(arrived, values)
