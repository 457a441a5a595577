import numpy as np
import pytest
from PIL import Image

from kosmosg.data.compose import LOST_BY_RELEASE, Composing, compose, compose_at
from kosmosg.data.records import Caption, Document, Edit, Entity, Example
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError

CROP, CUTOUT, TARGET, BEFORE = (
    Image.new("RGB", (2, 2), colour) for colour in ("red", "white", "blue", "green")
)


class Coins:
    """A generator whose coins fall as told: True is below one half."""

    def __init__(self, *coins):
        self.coins = list(coins)

    def random(self):
        return 0.1 if self.coins.pop(0) else 0.9


def example(caption: str, *mentions: str) -> Example:
    entities, position = [], 0
    for mention in mentions:
        start = caption.index(mention, position)
        position = start + len(mention)
        entities.append(
            Entity(mention=mention, start=start, end=position, crop=CROP, cutout=CUTOUT)
        )
    return Example(key="k", caption=caption, entities=tuple(entities), image=TARGET)


def told(record, *coins):
    composed = compose(record, rng=FromCoins(*coins))
    names = {id(CROP): "CROP", id(CUTOUT): "CUTOUT", id(BEFORE): "BEFORE"}
    return [part if isinstance(part, str) else names[id(part)] for part in composed.prompt]


class FromCoins(np.random.Generator):
    def __init__(self, *coins):
        super().__init__(np.random.PCG64(0))
        self.coins = Coins(*coins)

    def random(self):
        return self.coins.random()


DOG_AND_CAT = example("A dog and a cat sitting on the sofa.", "dog", "cat")


def test_entities_follow_their_words():
    """Coins: keep the words; the dog on its own ground, the cat on white."""
    assert told(DOG_AND_CAT, False, True, False) == [
        "A dog ", "CROP", " and a cat ", "CUTOUT", " sitting on the sofa.",
    ]  # fmt: skip


def test_one_coin_drops_the_words_of_all_entities():
    assert told(DOG_AND_CAT, True, False, False) == [
        "A ", "CUTOUT", " and a ", "CUTOUT", " sitting on the sofa.",
    ]  # fmt: skip


def test_a_mention_that_opens_the_caption_is_not_lost():
    """The release loses this sample (golden: dropped_sample)."""
    record = example("Dog running", "Dog")
    assert told(record, True, True) == ["CROP", " running"]
    assert told(record, False, True) == ["Dog ", "CROP", " running"]


def test_a_mention_may_be_the_whole_caption_and_none_may_be_there():
    assert told(example("dog", "dog"), True, True) == ["CROP"]
    assert told(example("a white building"), True) == ["a white building"]


def test_an_edit_shows_the_picture_before_and_loses_its_caption_by_coin():
    record = Edit(key="i", caption="a horse", before=(BEFORE,), instruction="a zebra", after=TARGET)
    assert told(record, False) == ["a horse", "BEFORE", "a zebra"]
    assert told(record, True) == ["BEFORE", "a zebra"]
    assert compose(record, np.random.default_rng(0)).target is TARGET
    assert compose(record, np.random.default_rng(0)).caption is None


def test_a_caption_is_its_own_prompt():
    composed = compose(Caption(key="c", text="a dog", image=TARGET), np.random.default_rng(0))
    assert (composed.prompt, composed.target, composed.caption) == (["a dog"], TARGET, "a dog")


def test_records_without_a_target_are_refused():
    with pytest.raises(DataError, match="caption c has no picture"):
        compose(Caption(key="c", text="a dog"), np.random.default_rng(0))
    with pytest.raises(DataError, match="document d belongs to stage 1"):
        compose(Document(key="d", parts=("a",)), np.random.default_rng(0))


class Same:
    def batch(self, step, size):  # noqa: ARG002
        return [DOG_AND_CAT] * size


def test_coins_are_fair_and_depend_on_the_position_only():
    composed = Composing(Same(), seed=3).batch(0, 2000)
    dropped = sum(record.prompt[0] == "A " for record in composed)
    grounds = [part is CROP for record in composed for part in (record.prompt[1], record.prompt[3])]
    apart = sum(first != second for first, second in zip(grounds[::2], grounds[1::2], strict=True))
    assert 900 < dropped < 1100
    assert 1900 < sum(grounds) < 2100
    assert 900 < apart < 1100  # one coin an entity
    later = Composing(Same(), seed=3).batch(7, 10)
    assert [record.prompt for record in later] == [record.prompt for record in composed[70:80]]
    other = Composing(Same(), seed=4).batch(7, 10)
    assert [record.prompt for record in later] != [record.prompt for record in other]


def test_a_coin_an_entity_drops_words_apart():
    def told_apart(*coins):
        composed = compose(DOG_AND_CAT, FromCoins(*coins), drop="entity")
        return [part if isinstance(part, str) else "picture" for part in composed.prompt]

    # Coins: drop the dog, its ground; drop the cat, its ground.
    assert told_apart(True, True, False, True)[:3:2] == ["A ", " and a cat "]
    assert told_apart(False, True, True, True)[:3:2] == ["A dog ", " and a "]


def test_what_the_release_loses_is_noted():
    skips = Skips(limit=1.0)
    opening = example("Dog running", "Dog")
    composed = [compose_at(n, opening, seed=1, skips=skips) for n in range(200)]
    opened = sum(not isinstance(record.prompt[0], str) for record in composed)
    assert skips.noted[LOST_BY_RELEASE] == opened > 50
    compose_at(0, DOG_AND_CAT, seed=1, skips=skips)
    assert skips.noted.total() == opened


def test_both_probabilities_can_be_turned_off():
    record = example("a cat and a dog", "a cat", "a dog")
    for seed in range(8):
        rng = np.random.default_rng(seed)
        composed = compose(record, rng, drop_probability=0.0, background_probability=0.0)
        words = [part for part in composed.prompt if isinstance(part, str)]
        assert "".join(words).split() == ["a", "cat", "and", "a", "dog"]
        shown = [part for part in composed.prompt if isinstance(part, Image.Image)]
        for picture, entity in zip(shown, record.entities, strict=True):
            assert np.array_equal(np.asarray(picture), np.asarray(entity.cutout))
            assert not np.array_equal(np.asarray(picture), np.asarray(entity.crop))
