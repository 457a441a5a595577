"""Streams depend on (seed, index) alone, and no record shows or names a held-out creature."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kosmosg.data.looking import texts_of
from kosmosg.data.records import Document, Edit, Example, Record
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld import streams
from kosmosg.toyworld.captions import words
from kosmosg.toyworld.chain import names, told
from kosmosg.toyworld.scenes import COLOURS, PATTERNS, SHAPES, Scene, is_held_out
from kosmosg.toyworld.streams import (
    RecordStream,
    SceneStream,
    captioner_stream,
    cut,
    stage1_stream,
    stage2_stream,
    stage3_stream,
)
from kosmosg.toyworld.workspace import GENERATION

STREAMS = {
    "stage1": stage1_stream,
    "captioner": captioner_stream,
    "stage2": stage2_stream,
    "stage3": stage3_stream,
}
# A caption that says all three; fewer words cannot give a combination away.
COMBINATION = re.compile(
    rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    rf"(?: with (?:white|black) ({'|'.join(PATTERNS[1:])}))?"
)


def drawn_scenes(monkeypatch: pytest.MonkeyPatch) -> list[Scene]:
    """The scenes that streams have drawn since, without the time it takes to draw them."""
    drawn: list[Scene] = []

    def note(scenes: list[Scene], size: int) -> tuple[np.ndarray, np.ndarray]:
        drawn.extend(scenes)
        count = len(scenes)
        return np.zeros((count, size, size, 3), np.uint8), np.zeros((count, 4, size, size), bool)

    monkeypatch.setattr(streams, "render", note)
    return drawn


def combinations(scenes: list[Scene]) -> Iterator[tuple[str, str, str]]:
    return ((s.shape, s.colour, s.pattern) for scene in scenes for s in scene.subjects)


def flat(record: Record) -> list[Any]:
    """A record as comparable parts."""

    def part(value: Any) -> Any:
        if isinstance(value, Image.Image):
            return value.tobytes()
        if isinstance(value, tuple):
            return [part(one) for one in value]
        if hasattr(value, "mention"):
            return [part(one) for one in vars(value).values()]
        return value

    return [type(record).__name__, *(part(value) for value in vars(record).values())]


@pytest.mark.parametrize("name", STREAMS)
def test_a_record_depends_on_seed_and_index_only(name: str) -> None:
    stream = STREAMS[name](seed=5, size=32)
    once = [flat(record) for record in stream.batch(0, 24)]
    assert [flat(record) for record in STREAMS[name](seed=5, size=32).batch(0, 24)] == once
    # Resuming is skipping, whatever the batch size was.
    assert [flat(record) for record in stream.batch(3, 6)] == once[18:]
    assert [flat(record) for record in stream.batch(1, 8)] == once[8:16]
    assert [flat(record) for record in STREAMS[name](seed=6, size=32).batch(0, 24)] != once


@pytest.mark.parametrize("name", STREAMS)
def test_no_stage_shows_or_names_a_held_out_creature(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = drawn_scenes(monkeypatch)
    tokenizer = Tokenizer.from_words(words())
    stream, named = STREAMS[name](seed=1), set()
    for step in range(15):
        for record in stream.batch(step, 100):
            for text in texts_of(record):
                assert not tokenizer.unknown_words(text), text
                named |= {match.groups() for match in COMBINATION.finditer(text)}
    assert not [found for found in combinations(drawn) if is_held_out(*found)]
    assert name == "stage2" or len(set(combinations(drawn))) > 250  # of the other 256
    whole = {(shape, colour, pattern) for colour, shape, pattern in named if pattern}
    assert not [found for found in whole if is_held_out(*found)]
    assert len(whole) > 100


def test_scenes_of_the_foundation_are_not_held_out_unless_asked() -> None:
    for held_out in (False, True):
        stream = SceneStream(seed=4, held_out=held_out)
        found = [*combinations(stream.batch(0, 2000))]
        assert {is_held_out(*one) for one in found} == {held_out}
        assert stream.batch(3, 100) == stream.batch(0, 400)[300:]


def test_the_kinds_of_each_stage() -> None:
    def kinds(stream: RecordStream, count: int) -> dict[str, float]:
        names = [type(record).__name__ for record in stream.batch(0, count)]
        return {name: names.count(name) / count for name in set(names)}

    assert kinds(stage1_stream(1, 32), 40) == {"Document": 1.0}
    assert kinds(stage2_stream(1, 32), 40) == {"Caption": 1.0}
    # Exactly, in every five: Mixture keeps the proportions of the paper.
    assert kinds(stage3_stream(1, 32), 50) == {"Example": 0.4, "Edit": 0.4, "Caption": 0.2}


def test_the_captioner_learns_whole_names_from_left_to_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = drawn_scenes(monkeypatch)
    counts = [0] * 5
    for record, scene in zip(captioner_stream(3).batch(0, 400), drawn, strict=True):
        assert isinstance(record, Document)
        picture, caption = record.parts
        assert isinstance(picture, Image.Image)
        assert isinstance(caption, str)
        counts[len(scene.subjects)] += 1
        assert sorted(scene.subjects, key=lambda subject: subject.x) == list(scene.subjects) or (
            len(scene.subjects) == 4  # in two rows
        )
        said_of = [told(name) for name in names(caption)]
        assert len(said_of) == len(scene.subjects), caption
        for said, subject in zip(said_of, scene.subjects, strict=True):
            for what in ("shape", "colour", "pattern", "accessory"):
                assert said[what] == getattr(subject, what), caption
    assert counts[2] > 200
    assert min(counts[1:]) > 0


def test_entities_are_where_the_caption_says() -> None:
    examples = [r for r in stage3_stream(7, 32).batch(0, 200) if isinstance(r, Example)]
    assert max(len(example.entities) for example in examples) == GENERATION.trained_pictures
    assert len(examples) > 40
    for record in examples:
        end = 0
        for entity in record.entities:
            assert record.caption[entity.start : entity.end] == entity.mention
            assert end <= entity.start
            end = entity.end
            assert entity.crop.size == entity.cutout.size == (32, 32)


def test_masks_say_where_the_things_of_an_example_are() -> None:
    kinds = {"example": (1, streams._example)}
    examples = RecordStream(seed=3, size=64, kinds=kinds).batch(0, 60)
    shown = 0
    for record in examples:
        assert isinstance(record, Example)
        masks = [np.asarray(entity.mask) for entity in record.entities]
        assert all(mask.shape == (64, 64) and mask.any() for mask in masks)
        assert np.sum(masks, axis=0).max() == 1  # a pixel shows one thing
        for entity, mask in zip(record.entities, masks, strict=True):
            # Cut from this very picture, or drawn elsewhere.
            shown += entity.cutout.tobytes() == cut(record.image, mask)[1].tobytes()
    assert 0.3 < shown / sum(len(record.entities) for record in examples) < 0.7


def test_a_thing_behind_others_has_no_mask() -> None:
    masks = np.zeros((4, 8, 8), bool)
    masks[0, :4], masks[1, :2], masks[2, :8] = True, True, False
    assert (
        np.asarray(streams.seen_mask(masks, 0))[:, 0].tolist()
        == [False] * 2 + [True] * 2 + [False] * 4
    )
    masks[2, :4] = True
    assert streams.seen_mask(masks, 0) is None


def test_stage_2_never_opens_a_picture() -> None:
    assert all(record.image is None for record in stage2_stream(1).batch(0, 50))


def test_edits_change_one_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = drawn_scenes(monkeypatch)
    kinds = {"edit": (1, streams._edit)}
    records = RecordStream(seed=8, size=64, kinds=kinds).batch(0, 400)
    for record, before, after in zip(records, drawn[::2], drawn[1::2], strict=True):
        assert isinstance(record, Edit)
        one, other = before.subjects[0], after.subjects[0]
        fields = ("shape", "colour", "pattern", "accessory")
        changed = [field for field in fields if getattr(one, field) != getattr(other, field)]
        changed += [
            field for field in ("place", "style") if getattr(before, field) != getattr(after, field)
        ]
        assert len(changed) == 1, (record.instruction, before, after)
        assert before.seed == after.seed


def test_a_cut_holds_the_subject_and_nothing_else() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[40:60, 50:64] = True
    picture[mask] = (200, 30, 30)
    crop, cutout = cut(Image.fromarray(picture), mask)
    assert crop.size == cutout.size == (64, 64)
    assert np.asarray(cutout)[0, 0].tolist() == [255, 255, 255]
    reds = (np.asarray(cutout)[..., 1] < 128).mean()
    assert reds == pytest.approx((np.asarray(crop)[..., 0] > 128).mean(), abs=0.02)
    assert reds > 0.3  # it fills the square


def test_a_hidden_subject_is_shown_by_the_whole_picture() -> None:
    picture = Image.new("RGB", (64, 64))
    assert cut(picture, np.zeros((64, 64), bool)) == (picture, picture)
