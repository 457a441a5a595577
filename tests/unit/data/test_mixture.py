from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmosg.data.mixture import Mixture
from kosmosg.errors import ConfigError


@dataclass(frozen=True)
class Numbers:
    name: str

    def batch(self, step, size):
        return [(self.name, index) for index in range(step * size, (step + 1) * size)]


def mixture(seed=0, **weights):
    weights = weights or {"example": 2, "edit": 2, "caption": 1}
    return Mixture({name: Numbers(name) for name in weights}, weights, seed=seed)


def test_two_two_one_is_exact_in_every_block():
    records = mixture().batch(0, 1000)
    for start in range(0, 1000, 5):
        names = Counter(name for name, _ in records[start : start + 5])
        assert names == {"example": 2, "edit": 2, "caption": 1}
    orders = {tuple(name for name, _ in records[i : i + 5]) for i in range(0, 1000, 5)}
    assert len(orders) == 30  # 5! / (2! 2!): all of them


@settings(max_examples=25)
@given(st.integers(0, 12), st.integers(1, 9), st.integers(0, 2**40))
def test_each_source_gives_each_record_once_in_order(step, size, seed):
    records = mixture(seed).batch(0, (step + 1) * size)
    for name in ("example", "edit", "caption"):
        own = [index for source, index in records if source == name]
        assert own == list(range(len(own)))
    assert mixture(seed).batch(step, size) == records[step * size :]


def test_another_seed_is_another_order():
    assert mixture(0).batch(0, 50) != mixture(1).batch(0, 50)


def test_wrong_weights_are_named():
    with pytest.raises(ConfigError, match="weight of edit is 0"):
        mixture(edit=0)
    with pytest.raises(ConfigError, match=r"add up to more than 10000, .* give a ratio"):
        mixture(edit=1_200_000)  # the sizes of the sources
    with pytest.raises(ConfigError, match="name the same"):
        Mixture({"a": Numbers("a")}, {"b": 1}, seed=0)
    with pytest.raises(ConfigError, match="name the same"):
        Mixture({}, {}, seed=0)
