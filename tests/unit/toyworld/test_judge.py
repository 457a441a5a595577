"""The judge reads what is there, and of two creatures only the one it is asked about."""

import pytest
import torch

from kosmosg.toyworld.foundation import pictures
from kosmosg.toyworld.judge import ANSWERS, IGNORE, Judge, JudgeStage, read, truth, window
from kosmosg.toyworld.scenes import COLOURS, SHAPES
from kosmosg.toyworld.streams import SceneStream


@pytest.fixture(scope="module")
def judge() -> Judge:
    torch.manual_seed(0)
    return Judge(width=8).eval()


def test_a_window_shows_one_half_in_the_middle_and_nothing_of_the_other() -> None:
    images = torch.zeros(1, 3, 64, 64)
    images[..., :32], images[..., 32:] = -1.0, 1.0
    for side, value in (("left", -1.0), ("right", 1.0)):
        seen = window(images, side)
        assert (seen[..., 16:48] == value).all()
        assert (seen[..., :16] == 0).all()
        assert (seen[..., 48:] == 0).all()


def test_a_window_holds_the_whole_creature_of_its_side() -> None:
    from kosmosg.toyworld.render import render

    scenes = [s for s in SceneStream(seed=1).batch(0, 300) if len(s.subjects) == 2]
    _, masks = render(scenes)
    for slot, half in ((0, slice(0, 32)), (1, slice(32, 64))):
        inside = masks[:, slot, :, half].sum((1, 2)) / masks[:, slot].sum((1, 2))
        assert inside.min() > 0.97


def test_right_answers_are_indices_of_the_answers() -> None:
    scenes = SceneStream(seed=2, held_out=True).batch(0, 100)
    right = truth(scenes)
    for index, scene in enumerate(scenes):
        subject = scene.subjects[0]
        assert SHAPES[int(right["shape"][index])] == subject.shape
        assert tuple(COLOURS)[int(right["body_colour"][index])] == subject.colour
        assert ANSWERS["place"][int(right["place"][index])] == scene.place
        plain = subject.pattern == "plain"
        assert (int(right["pattern_colour"][index]) == IGNORE) == plain


def test_answers_do_not_depend_on_the_size_of_a_picture(judge: Judge) -> None:
    images = pictures(SceneStream(seed=3).batch(0, 6), 64)
    twice = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    small, large = read(judge, images), read(judge, twice)
    assert set(small) == set(ANSWERS)
    for question, answers in small.items():
        assert torch.equal(answers, large[question])
        assert int(answers.max()) < len(ANSWERS[question])


def test_the_stage_reads_each_of_two_and_skips_crowds() -> None:
    scenes = SceneStream(seed=4).batch(0, 40)
    stage = JudgeStage()
    images, labels = stage.collate(scenes)
    counts = [len(scene.subjects) for scene in scenes]
    assert len(images) == counts.count(1) + 2 * counts.count(2) == stage.weight((images, labels))
    torch.manual_seed(0)
    judge = Judge(width=8)
    losses = stage.loss(judge, (images, labels), torch.Generator())
    assert set(losses) == set(ANSWERS)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in judge.parameters())
