import itertools

import pytest
import torch
from torch import nn

from kosmosg.errors import CheckpointError
from kosmosg.train.optim import (
    Average,
    EmaConfig,
    OptimConfig,
    learning_rate,
    make_optimizer,
    optimizer_tensors,
    room_for_optimizer,
    set_rate,
)


def optim(**changes) -> OptimConfig:
    fields = {"lr": 1.0, "clip_norm": 2.0, "schedule": "linear", "warmup_steps": 4}
    return OptimConfig(**(fields | changes))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_rate_warms_up_from_zero_and_decays_to_zero(schedule):
    config = optim(schedule=schedule)
    rates = [learning_rate(config, done, 20) for done in range(25)]
    assert rates[:5] == [0, 0.25, 0.5, 0.75, 1]
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[4:21]))
    assert rates[20:] == pytest.approx([0] * 5, abs=1e-12)
    assert rates[12] == pytest.approx(0.5)  # half way down


def test_without_warmup_the_first_update_uses_the_full_rate():
    assert learning_rate(optim(warmup_steps=0), 0, 20) == 1


def test_a_schedule_may_be_longer_than_the_run():
    assert learning_rate(optim(total_steps=12), 8, 8) == pytest.approx(0.5)


def test_raw_epsilon_is_the_authors_adam():
    """Against their rule written out: epsilon joins the root before the bias correction."""
    config = optim(lr=0.1, warmup_steps=0, eps=1e-2, weight_decay=0.1, eps_scale="raw")
    parameter = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    expected, mean, square = parameter.detach().clone(), torch.zeros(2), torch.zeros(2)
    optimizer = make_optimizer(config, [parameter])
    for step in range(5):
        gradient = torch.tensor([0.3, -0.01]) * (step + 1)
        parameter.grad = gradient.double()
        rate = set_rate(optimizer, config, updates_done=step, total_steps=10)
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.98 * square + 0.02 * gradient**2
        first, second = 1 - 0.9 ** (step + 1), 1 - 0.98 ** (step + 1)
        expected = expected - rate * 0.1 * expected
        expected = expected - rate * second**0.5 / first * mean / (square.sqrt() + 1e-2)
    assert torch.allclose(parameter.detach(), expected, atol=1e-6)


def test_optimiser_tensors_round_trip_and_refuse_strangers():
    torch.manual_seed(0)
    net = nn.Linear(2, 2)
    named = dict(net.named_parameters())
    optimizer = make_optimizer(optim(), named.values())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tensors = optimizer_tensors(optimizer, named)
    assert set(tensors) == {f"{n}/{s}" for n in named for s in ("step", "exp_avg", "exp_avg_sq")}
    other = make_optimizer(optim(), named.values())
    for name, room in room_for_optimizer(other, named, tensors).items():
        assert room.shape == tensors[name].shape
        room.copy_(tensors[name])
    again = optimizer_tensors(other, named)
    assert all(value.equal(again[name]) for name, value in tensors.items())
    with pytest.raises(CheckpointError, match="'weight', which this stage does not train"):
        room_for_optimizer(other, {"bias": named["bias"]}, tensors)


def test_the_average_follows_every_few_steps():
    parameter = nn.Parameter(torch.zeros(1))
    average = Average(EmaConfig(decay=0.5, every=2), {"p": parameter})
    for step in range(1, 5):
        parameter.data.fill_(float(step))
        average.update(step)
    # Two updates; both times the early bound (1 + n) / (10 + n), n = 2 and 4, is the shorter one.
    first = 2 * (1 - (3 / 12) ** 2)
    second = first + (4 - first) * (1 - (5 / 14) ** 2)
    assert average.tensors["p"].item() == pytest.approx(second)
    assert average.updates == 2


def test_swapping_twice_changes_nothing():
    parameter = nn.Parameter(torch.zeros(1))
    average = Average(EmaConfig(decay=0.5, every=1), {"p": parameter})
    parameter.data.fill_(3.0)
    average.swap()
    assert (parameter.item(), average.tensors["p"].item()) == (0, 3)
    average.swap()
    assert (parameter.item(), average.tensors["p"].item()) == (3, 0)
