"""Guidance as the paper writes it, exact where it does nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kosmosg.guidance import guide, guide_apart, rescale

NULL, FULL = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0))


@given(st.floats(min_value=1, max_value=30))
def test_guidance_is_equation_4(scale):
    guided = guide(NULL, FULL, guidance_scale=scale)
    torch.testing.assert_close(guided, scale * FULL - (scale - 1) * NULL, atol=1e-4, rtol=1e-4)


def test_scale_1_is_the_prompt_half_to_the_bit():
    assert torch.equal(guide(NULL, FULL, guidance_scale=1.0), FULL)


def test_below_1_there_is_nothing_to_guide_away_from():
    with pytest.raises(ValueError, match=r"0\.5"):
        guide(NULL, FULL, guidance_scale=0.5)


ALONE = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))


@given(st.floats(0, 30), st.floats(0, 30))
def test_two_scales_weigh_three_predictions(text, picture):
    scales = {"text_guidance_scale": text, "picture_guidance_scale": picture}
    guided = guide_apart(NULL, ALONE, FULL, **scales)
    weighed = (1 - picture) * NULL + (picture - text) * ALONE + text * FULL
    torch.testing.assert_close(guided, weighed, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("alone", "scale"), [(NULL, 2.0), (FULL, 5.0)])
def test_where_a_branch_says_nothing_new_one_scale_is_left_to_the_bit(alone, scale):
    scales = {"text_guidance_scale": 2.0, "picture_guidance_scale": 5.0}
    guided = guide_apart(NULL, alone, FULL, **scales)
    assert torch.equal(guided, guide(NULL, FULL, guidance_scale=scale))


def test_rescaling_by_1_gives_the_prompts_spread_and_by_0_nothing():
    guided = guide(NULL, FULL, guidance_scale=7.5)
    spread = FULL.std(dim=(1, 2, 3))
    assert torch.equal(rescale(guided, FULL, guidance_rescale=0.0), guided)
    rescaled = rescale(guided, FULL, guidance_rescale=1.0)
    torch.testing.assert_close(rescaled.std(dim=(1, 2, 3)), spread)
    half = rescale(guided, FULL, guidance_rescale=0.5)
    torch.testing.assert_close(half, (guided + rescaled) / 2)
