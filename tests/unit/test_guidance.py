"""Guidance as the paper writes it, exact where it does nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kosmosg.guidance import guide

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
