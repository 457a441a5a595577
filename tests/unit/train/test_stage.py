import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kosmosg.data.mixture import seed_of
from kosmosg.errors import ConfigError
from kosmosg.train.stage import Draws, buffers, freeze_except, frozen_sum, micro_batch_generator


def model() -> nn.Module:
    return nn.ModuleDict(
        {"eye": nn.Linear(2, 2), "mind": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))}
    )


@given(
    st.lists(
        st.sampled_from(["eye.*", "mind.*", "mind.0.weight", "*.bias", "*", "mind.1.*"]),
        min_size=1,
        unique=True,
    )
)
def test_freezing_touches_only_what_is_not_named(patterns):
    net = model()
    names = freeze_except(net, patterns)
    learning = {name for name, value in net.named_parameters() if value.requires_grad}
    assert learning == set(names)
    expected = set()
    for name, _ in net.named_parameters():
        head, tail = name.split(".")[0], name.rsplit(".", 1)[1]
        wanted = {f"{head}.*", "*", name, f"{'.'.join(name.split('.')[:2])}.*"}
        if set(patterns) & wanted or (tail == "bias" and "*.bias" in patterns):
            expected.add(name)
    assert learning == expected


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ConfigError, match=r"'eyes\.\*' matches none of the 6 parameters"):
        freeze_except(model(), ("mind.*", "eyes.*"))


def test_the_frozen_sum_sees_frozen_weights_only():
    torch.manual_seed(0)
    net = model()
    freeze_except(net, ("mind.*",))
    before = frozen_sum(net)
    with torch.no_grad():
        net["mind"][0].weight.add_(1)
    assert frozen_sum(net) == before
    with torch.no_grad():
        net["eye"].weight.add_(1)
    assert frozen_sum(net) != before


def test_buffers_are_saved_beside_parameters():
    assert set(buffers(model())) == {
        "mind.1.running_mean",
        "mind.1.running_var",
        "mind.1.num_batches_tracked",
    }


@given(st.integers(1, 7), st.integers(0, 2**31), st.integers(0, 10**6))
def test_draws_do_not_depend_on_how_the_batch_is_cut(cut, seed, step):
    count = 8

    def draw(first, number):
        draws = Draws(micro_batch_generator(seed, step, first), count=number)
        parts = draws.normal(2, 3), draws.uniform(), draws.integers(1000), draws.coin(0.5)
        noises = torch.stack([torch.rand(3, generator=own) for own in draws.generators()])
        return (*parts, noises)

    whole = draw(0, count)
    for one, first, second in zip(whole, draw(0, cut), draw(cut, count - cut), strict=True):
        assert one.equal(torch.cat([first, second]))


def test_draws_are_what_they_say():
    draws = Draws(micro_batch_generator(0, 0, 0), count=2000)
    normal = draws.normal(5)
    assert abs(normal.mean()) < 0.03
    assert abs(normal.std() - 1) < 0.03
    assert 0.45 < draws.coin(0.5).float().mean() < 0.55
    integers = draws.integers(10)
    assert set(integers.tolist()) == set(range(10))
    assert integers.dtype == torch.int64
    assert not draws.normal(5).equal(normal)


def test_seeds_of_neighbours_differ_and_are_stable():
    seeds = {seed_of(seed, step) for seed in range(50) for step in range(50)}
    assert len(seeds) == 2500
    assert seed_of(1, 2, "dropout") != seed_of(1, 2)
    assert seed_of(0) == seed_of(0) < 2**63
    # Written down, so that a change, which would change every run, is noticed.
    assert [seed_of(0), seed_of(1, "a")] == [4563252880602214951, 1042910354669284249]


def test_the_last_of_numbered_layers_has_a_name() -> None:
    model = nn.Module()
    model.stack = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(11))
    model.last = nn.Linear(2, 2, bias=False)
    assert freeze_except(model, ("stack.last.*",)) == ["stack.10.weight"]
    assert freeze_except(model, ("last.*",)) == ["last.weight"]
    with pytest.raises(ConfigError, match=r"pattern 'heap\.last\.\*' matches none"):
        freeze_except(model, ("heap.last.*",))
