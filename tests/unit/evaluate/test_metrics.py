import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kosmosg.errors import ConfigError
from kosmosg.evaluate.metrics import Moments, bootstrap, cosine, frechet_distance


def moments(features: np.ndarray, *, cut: int = 7) -> Moments:
    found = Moments.of_none(features.shape[1])
    for start in range(0, len(features), cut):
        found.add(torch.from_numpy(features[start : start + cut]))
    return found


def with_numpy(one: np.ndarray, other: np.ndarray) -> float:
    """FID as it is defined, by another road: a root of the product that is not symmetric."""
    cov, cov_other = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    values = np.linalg.eigvals(cov @ cov_other)
    root = np.sqrt(values.astype(np.complex128)).sum().real
    gap = one.mean(0) - other.mean(0)
    return float(gap @ gap + np.trace(cov) + np.trace(cov_other) - 2 * root)


@given(seed=st.integers(0, 100), shift=st.floats(0, 3), scale=st.floats(0.2, 3))
def test_fid_is_what_numpy_says(seed: int, shift: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    one = rng.standard_normal((60, 12)) @ rng.standard_normal((12, 12))
    other = shift + scale * rng.standard_normal((50, 12))
    expected = with_numpy(one, other)
    assert frechet_distance(moments(one), moments(other)) == pytest.approx(expected, abs=1e-8)
    assert frechet_distance(moments(other), moments(one)) == pytest.approx(expected, abs=1e-8)


def test_fid_of_a_set_with_itself_is_zero_also_where_features_are_more_than_pictures() -> None:
    few = np.random.default_rng(0).standard_normal((9, 40))
    assert frechet_distance(moments(few), moments(few)) == pytest.approx(0, abs=1e-6)


def test_fid_of_normal_distributions_is_the_known_distance() -> None:
    rng = np.random.default_rng(0)
    one = rng.standard_normal((200_000, 2))
    other = 3 + 2 * rng.standard_normal((200_000, 2))
    # |3, 3|^2 + 2 (2 - 1)^2
    assert frechet_distance(moments(one, cut=50_000), moments(other, cut=50_000)) == pytest.approx(
        20, abs=0.2
    )


def test_one_picture_has_no_fid() -> None:
    one = moments(np.ones((1, 3)))
    with pytest.raises(ConfigError, match="1 drawn pictures have no FID"):
        frechet_distance(moments(np.eye(3)), one)


def test_cosine_compares_each_with_each() -> None:
    one = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    other = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    half = 2**-0.5
    expected = torch.tensor([[1, 0, -1], [half, half, -half]], dtype=torch.float64)
    assert torch.allclose(cosine(one, other), expected, atol=1e-12)


def test_the_interval_comes_from_subjects_not_from_pictures() -> None:
    rng = np.random.default_rng(1)
    centres = rng.standard_normal(30)
    # A thousand pictures of each add nothing to what is known of subjects.
    values = {
        f"{i}": list(centre + 0.01 * rng.standard_normal(1000)) for i, centre in enumerate(centres)
    }
    score = bootstrap(values)
    assert score.mean == pytest.approx(centres.mean(), abs=1e-3)
    expected = 1.96 * centres.std() / 30**0.5
    assert (score.high - score.low) / 2 == pytest.approx(expected, rel=0.1)
    assert bootstrap(values) == score


def test_subjects_weigh_as_many_as_their_values() -> None:
    score = bootstrap({"a": [1.0, 1.0, 1.0], "b": [0.0]})
    assert score.mean == 0.75
    assert (score.low, score.high) == (0.0, 1.0)
    alone = bootstrap({"a": [0.25]})
    assert (alone.low, alone.mean, alone.high) == (0.25, 0.25, 0.25)
    with pytest.raises(ConfigError, match="nothing to average"):
        bootstrap({"a": []})
