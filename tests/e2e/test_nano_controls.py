"""The controls do with the shipped model what their pages say, as the toy world's judge sees it."""

import functools

import pytest
import torch

from kosmosg.release import find
from kosmosg.toyworld.cases import cases, draw
from kosmosg.toyworld.judge import read, truth
from kosmosg.toyworld.world import World, load
from toys.sampling import unet_rows

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


def test_without_text_guidance_the_place_is_gone_and_the_creature_stays(nano):
    creature, place = right(nano, text_guidance_scale=0.0, picture_guidance_scale=3.0)
    assert creature >= 18
    assert place <= 3


def test_guidance_in_an_interval_saves_rows_and_keeps_the_creature(nano):
    with unet_rows(nano.pipe) as rows:
        creature, place = right(nano, guidance_interval=(0.0, 0.5))
    assert rows == [2 * COUNT] * 5 + [COUNT] * 5
    assert creature >= 18
    assert place == COUNT


def test_rescaling_takes_back_what_strong_guidance_adds_to_a_prediction(nano, monkeypatch):
    def first_spread(**controls) -> float:
        """The standard deviation of the first step's prediction, where all still start alike."""
        seen, step = [], nano.pipe.scheduler.step

        @functools.wraps(step)
        def watched(noise, *arguments, **options):
            seen.append(noise.std(dim=(1, 2, 3)).mean().item())
            return step(noise, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(nano.pipe.scheduler, "step", watched)
            traits.append(right(nano, **controls)[0])
        return seen[0]

    traits: list[int] = []
    unguided = first_spread(guidance_scale=1.0)
    none, half, whole = (
        first_spread(guidance_scale=12.0, guidance_rescale=share) for share in (0.0, 0.5, 1.0)
    )
    assert none > half > whole
    assert none > 1.05 * unguided
    assert whole == pytest.approx(unguided, rel=1e-3)
    assert traits[-1] >= traits[1], "strong guidance drifts; rescaling brings traits back"
