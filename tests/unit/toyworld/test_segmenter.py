"""Words to pixels in the toy world: what a prompt means, and that training reaches every part."""

import numpy as np
import pytest
import torch

from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld.captions import words
from kosmosg.toyworld.chain import told
from kosmosg.toyworld.render import render
from kosmosg.toyworld.scenes import SHAPES, Scene, Subject, is_held_out, stand
from kosmosg.toyworld.segmenter import (
    PROMPTS,
    SIZE,
    GroundedSegmenter,
    SegmenterStage,
    _meant,
    asked,
    build_segmenter,
)
from kosmosg.toyworld.streams import SceneStream
from kosmosg.train.stage import freeze_except


@pytest.fixture(scope="module")
def stage() -> SegmenterStage:
    return SegmenterStage(tokenizer=Tokenizer.from_words(words()))


@pytest.fixture(scope="module")
def model(stage: SegmenterStage) -> GroundedSegmenter:
    torch.manual_seed(0)
    return GroundedSegmenter(build_segmenter(stage.tokenizer.vocab_size)).eval()


def creature(text: str) -> Subject:
    """Return a creature such as `red star dots white hat`."""
    colour, shape, pattern, ink, accessory = text.split()
    return Subject(
        shape=shape, colour=colour, pattern=pattern, pattern_colour=ink, accessory=accessory
    )


PAIR = (creature("red star dots white hat"), creature("blue oval rings black none"))


@pytest.mark.parametrize(
    ("named", "said", "slots"),
    [
        ("red star dots white hat", "shape colour pattern accessory", (0,)),
        ("blue oval rings black none", "shape colour", (1,)),
        ("red star rings black scarf", "shape colour pattern accessory", (0,)),  # misheard
        ("red oval plain white none", "shape colour", (0, 1)),  # half of each
        ("blue star rings black none", "shape colour pattern", (1,)),  # and the rings decide
        ("green heart dots white hat", "shape colour pattern accessory", ()),
        ("green heart dots white hat", "pattern accessory", (0,)),
        ("green heart checks black scarf", "pattern accessory", (1,)),  # the ink is black
        ("green heart checks white scarf", "accessory", ()),
        ("green heart plain white none", "pattern accessory", (0, 1)),  # "a creature"
    ],
)
def test_words_mean_the_creature_that_they_fit_best(
    named: str, said: str, slots: tuple[int, ...]
) -> None:
    assert _meant(creature(named), set(said.split()), PAIR) == slots


def test_prompts_follow_from_the_scene_and_name_nothing_held_out() -> None:
    scenes = SceneStream(seed=5).batch(0, 300)
    prompts = [prompt for scene in scenes for prompt in asked(scene)]
    assert prompts == [prompt for scene in scenes for prompt in asked(scene)]
    assert len(prompts) == PROMPTS * len(scenes)
    for prompt in prompts:
        name = told(prompt.words)
        if name["shape"] in SHAPES and name["colour"] and name["pattern"] != "plain":
            assert not is_held_out(name["shape"], name["colour"], str(name["pattern"]))
    absent = np.mean([not prompt.slots for prompt in prompts])
    assert 0.08 < absent < 0.18


def test_a_batch_has_the_renderers_masks(stage: SegmenterStage) -> None:
    scenes = SceneStream(seed=6).batch(0, 8)
    pixels, ids, targets, shown, said = stage.collate(scenes)
    _, masks = render(scenes, SIZE)
    number = 0
    for index, scene in enumerate(scenes):
        for prompt in asked(scene):
            expected = masks[index, list(prompt.slots)].any(0)
            assert (targets[number].numpy() > 0.5).tolist() == expected.tolist()
            read = ids[number][ids[number] < stage.tokenizer.vocab_size]
            assert stage.tokenizer.decode(read.tolist()) == prompt.words
            number += 1
    assert number == stage.weight((pixels, ids, targets, shown, said)) == len(said)


def test_logits_are_those_of_the_class_and_every_part_learns(
    stage: SegmenterStage, model: GroundedSegmenter
) -> None:
    batch = stage.collate(SceneStream(seed=7).batch(0, 4))
    logits, _, _ = model(batch[0], batch[1])
    own = model.segmenter(input_ids=batch[1], pixel_values=batch[0].repeat_interleave(PROMPTS, 0))
    torch.testing.assert_close(logits, own.logits, rtol=0, atol=1e-5)
    freeze_except(model, stage.trainable)
    losses = stage.loss(model, batch, torch.Generator())
    sum(value for name, value in losses.items() if not name.startswith("metric_")).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    model.zero_grad(set_to_none=True)


def test_scenes_of_plain_creatures_have_a_finite_loss(
    stage: SegmenterStage, model: GroundedSegmenter
) -> None:
    plain = stand((creature("red star plain white none"),), np.random.default_rng(0))
    batch = stage.collate([Scene(subjects=plain, place="snow", seed=1)])
    losses = stage.loss(model, batch, torch.Generator())
    assert all(torch.isfinite(value) for value in losses.values())


def test_the_decoder_begins_small_enough_to_learn(model: GroundedSegmenter) -> None:
    weights = [
        model.segmenter.decoder.film_mul.weight,
        *[reduce.weight for reduce in model.segmenter.decoder.reduces],
    ]
    assert max(float(weight.detach().std()) for weight in weights) < 0.1
