"""Captions say what the scene holds, in words that the tokenizer knows."""

import re
from dataclasses import replace

import numpy as np
import pytest

from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld.captions import (
    ACCESSORY_PHRASES,
    FULL,
    PLACE_PHRASES,
    SOME,
    STYLE_PREFIXES,
    Detail,
    arrange,
    describe,
    instruction,
    name,
    words,
)
from kosmosg.toyworld.foundation import TEXT_LENGTH, text_ids
from kosmosg.toyworld.scenes import (
    COLOURS,
    PATTERN_COLOURS,
    PATTERNS,
    SHAPES,
    Scene,
    Subject,
    sample_scene,
    side_of,
    size_of,
)

ALL = Detail()
SUBJECT = re.compile(
    rf"an? (?:(?P<size>small|medium|big) )?(?P<colour>{'|'.join(COLOURS)})"
    rf" (?P<shape>{'|'.join(SHAPES)})"
    rf"(?: with (?P<ink>{'|'.join(PATTERN_COLOURS)}) (?P<pattern>{'|'.join(PATTERNS[1:])}))?"
    r"(?: (?:wearing|with|in|and)(?: a)? (?P<accessory>hat|crown|sunglasses|scarf))?"
)


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_words(words())


def assert_says(found: re.Match[str], subject: Subject, *, pattern_said: bool) -> None:
    assert (found["colour"], found["shape"]) == (subject.colour, subject.shape)
    if pattern_said:
        assert (found["pattern"] or "plain") == subject.pattern
        assert subject.pattern == "plain" or found["ink"] == subject.pattern_colour
        assert (found["accessory"] or "none") == subject.accessory


def test_a_full_caption_can_be_read_back() -> None:
    for index in range(400):
        scene = sample_scene(rng(1, index), style_probability=0.4)
        caption = describe(scene, rng(2, index), ALL)
        found = list(SUBJECT.finditer(caption))
        assert len(found) == len(scene.subjects)
        for match, subject in zip(found, scene.subjects, strict=True):
            assert_says(match, subject, pattern_said=len(scene.subjects) <= 2)
        assert caption.endswith(PLACE_PHRASES[scene.place])
        assert any(caption.startswith(prefix) for prefix in STYLE_PREFIXES[scene.style])
        if len(scene.subjects) == 1:
            size, side = size_of(scene.subjects[0]), side_of(scene.subjects[0])
            assert (found[0]["size"] or "medium") == size
            assert (f" on the {side}" in caption) == (side != "middle")


def test_what_a_caption_leaves_out_is_chosen_by_the_detail() -> None:
    silent = Detail(**dict.fromkeys(Detail.__dataclass_fields__, 0.0))
    for index in range(100):
        scene = sample_scene(rng(3, index), count=1)
        said = set(describe(scene, rng(4, index), silent).split())
        assert said <= {"a", "creature", "thing", "toy"}


def test_two_subjects_are_named_from_left_to_right() -> None:
    for index in range(200):
        scene = sample_scene(rng(5, index), count=2)
        found = list(SUBJECT.finditer(describe(scene, rng(6, index), ALL)))
        assert [match["shape"] for match in found] == [s.shape for s in scene.subjects]
        assert scene.subjects[0].x < scene.subjects[1].x


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_an_arranged_caption_is_cut_at_its_names(count: int) -> None:
    for index in range(50):
        scene = sample_scene(rng(7, count, index), count=count)
        names = [name(s, rng(8, index), ALL, alone=count == 1) for s in scene.subjects]
        parts = arrange(names, scene, rng(9, index), ALL)
        assert parts[1::2] == names
        assert len(parts) == 2 * count + 1
        assert not any(SUBJECT.search(part) for part in parts[::2])
        assert "  " not in "".join(parts)


def test_every_caption_is_made_of_the_tokenizers_words(tokenizer: Tokenizer) -> None:
    for index in range(2500):
        scene = sample_scene(rng(10, index), style_probability=0.3)
        for detail in (FULL, SOME):
            caption = describe(scene, rng(11, index), detail)
            assert not tokenizer.unknown_words(caption), caption
            assert caption == " ".join(caption.split())


def test_every_instruction_is_made_of_the_tokenizers_words(tokenizer: Tokenizer) -> None:
    things = {
        "place": tuple(PLACE_PHRASES),
        "accessory": tuple(ACCESSORY_PHRASES),
        "remove": tuple(ACCESSORY_PHRASES),
        "colour": tuple(COLOURS),
        "pattern": ("white dots", "black rings"),
        "shape": SHAPES,
        "style": tuple(STYLE_PREFIXES),
    }
    for kind, options in things.items():
        for thing in options:
            for seed in range(20):
                text = instruction(kind, thing, rng(seed))
                assert not tokenizer.unknown_words(text), text


def test_words_are_each_said_once_and_sorted() -> None:
    known = words()
    letters = [word for word in known if word.isalpha()]
    assert letters == sorted(set(letters))
    assert known[len(letters) :] == [",", ".", ":", "?", "!"]


def test_no_caption_is_longer_than_the_text_tower_reads(tokenizer: Tokenizer) -> None:
    end = tokenizer.vocab_size
    longest = max(
        (describe(sample_scene(rng(12, index)), rng(13, index), FULL) for index in range(2000)),
        key=lambda caption: len(tokenizer.encode(caption)),
    )
    ids = text_ids([longest, ""], tokenizer)
    assert ids.shape == (2, TEXT_LENGTH)
    assert len(tokenizer.encode(longest)) + 2 <= TEXT_LENGTH
    assert ids[1].tolist() == [tokenizer.bos_id] + [end] * (TEXT_LENGTH - 1)
    assert int((ids[0] == end).nonzero()[0]) == 1 + len(tokenizer.encode(longest))


def test_article() -> None:
    subject = Subject(
        shape="oval", colour="orange", pattern="plain", pattern_colour="white", accessory="none"
    )
    scene = Scene(subjects=(subject,), place="snow")
    middle = Detail(size=0.0)
    assert describe(scene, rng(0), middle).removeprefix("a photo of ").startswith("an orange oval")
    assert name(replace(subject, colour="red"), rng(0), middle) == "a red oval"
