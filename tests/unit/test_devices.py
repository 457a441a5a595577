"""Which device and precision are taken where nobody says, by what a machine has."""

import pytest
import torch

from kosmosg import devices
from kosmosg.devices import Devices
from kosmosg.errors import ConfigError

CPU = Devices()
APPLE = Devices(has_mps=True)
TWO_GPUS = Devices(num_cuda=2)


@pytest.mark.parametrize(
    ("there", "device", "dtype"),
    [
        (CPU, "cpu", "float32"),
        (APPLE, "mps", "float16"),
        (TWO_GPUS, "cuda", "float16"),
        (Devices(num_cuda=1, has_mps=True), "cuda", "float16"),
    ],
)
def test_auto_is_the_best_device_and_its_precision(there, device, dtype):
    assert devices.choose("auto", there) == device
    assert devices.choose_dtype("auto", device) == dtype


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_a_device_that_is_named_wins(device):
    assert devices.choose(device, TWO_GPUS) == device


@pytest.mark.parametrize(
    ("there", "device", "of_ranks"),
    [
        (TWO_GPUS, "cuda", ["cuda:0", "cuda:1", "cuda:0"]),
        (Devices(num_cuda=1), "cuda", ["cuda", "cuda", "cuda"]),  # as where each sees its own alone
        (TWO_GPUS, "cuda:1", ["cuda:1", "cuda:1", "cuda:1"]),
        (CPU, "cpu", ["cpu", "cpu", "cpu"]),
    ],
)
def test_processes_of_a_machine_take_a_gpu_each(there, device, of_ranks):
    assert [devices.of_rank(device, there, rank) for rank in (0, 1, 2)] == of_ranks


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("device", ["cpu", "cuda:1", "mps"])
def test_a_precision_that_is_named_wins(dtype, device):
    assert devices.choose_dtype(dtype, device) == dtype


@pytest.mark.parametrize(
    ("device", "there", "names"),
    [
        ("cuda", CPU, "cpu"),
        ("mps", TWO_GPUS, "cuda, cuda:0, cuda:1, cpu"),
        ("cuda:2", TWO_GPUS, "cuda, cuda:0, cuda:1, cpu"),
        ("gpu", APPLE, "mps, cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused_naming_those_that_are(device, there, names):
    with pytest.raises(ConfigError, match=f"no device '{device}'; it has {names}$"):
        devices.choose(device, there)


def test_what_is_found_can_be_computed_on():
    for name in devices.find().names:
        assert torch.ones(2, device=name).sum().item() == 2
