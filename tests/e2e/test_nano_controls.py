"""The controls do with the shipped model what their pages say, as the toy world's judge sees it."""

import pytest
import torch

from kosmosg.release import find
from kosmosg.toyworld.cases import cases, draw
from kosmosg.toyworld.judge import read, truth
from kosmosg.toyworld.world import World, load

COUNT = 8
CREATURE = ("shape", "body_colour", "accessory")


@pytest.fixture(scope="module")
def nano() -> World:
    return load(find("nano"), {"stage3"})


def right(nano: World, **controls) -> tuple[int, int]:
    """How many of 24 traits of the creatures and of 8 places come out as asked."""
    asked = cases(COUNT, seed=5)
    pictures = draw([case.references[0] for case in asked], 64)
    images = nano.pipe(
        [case.prompt([picture]) for case, picture in zip(asked, pictures, strict=True)],
        num_inference_steps=10,
        generator=[torch.Generator().manual_seed(case.index) for case in asked],
        output_type="pt",
        **controls,
    ).images
    answers, expected = read(nano.judge, images * 2 - 1), truth([case.target for case in asked])
    hits = {name: int((answers[name] == expected[name]).sum()) for name in (*CREATURE, "place")}
    return sum(hits[name] for name in CREATURE), hits["place"]


def test_without_picture_guidance_the_creature_is_gone_and_the_place_stays(nano):
    with_it, place = right(nano)
    without, still = right(nano, text_guidance_scale=3.0, picture_guidance_scale=0.0)
    assert with_it >= 18
    assert without <= 9
    assert (place, still) == (8, 8)


def test_a_pictures_weight_brings_the_creature_in(nano):
    traits = [right(nano, picture_weights=[[w]] * COUNT)[0] for w in (0.0, 0.2, 1.0)]
    assert traits == sorted(traits)
    assert traits[2] - traits[0] >= 10


def test_a_window_at_the_end_shows_more_of_the_creature_than_one_at_the_start(nano):
    start = right(nano, picture_windows=[[(0.0, 0.2)]] * COUNT)[0]
    end = right(nano, picture_windows=[[(0.6, 1.0)]] * COUNT)[0]
    assert end - start >= 6
