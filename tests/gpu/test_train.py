"""Stages 2 and 3 train on a GPU: in half precision, spread by FSDP2, and on from a checkpoint."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from kosmosg import checkpoint
from kosmosg.train import distributed
from kosmosg.train.distributed import Ranks
from kosmosg.train.log import read_log
from kosmosg.train.loop import fit
from toys.ranks import stage_parts

pytestmark = [
    pytest.mark.gpu,
    # N's last map returns a view; nothing changes it in place.
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning"),
]

STEPS = 4
WITHIN = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}


@pytest.fixture(scope="module")
def group(device: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """This process as a group of one, as `join` makes one of several."""
    store = tmp_path_factory.mktemp("group") / "store"
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=0, world_size=1)
    yield Ranks(
        torch.device(device, 0) if device == "cuda" else torch.device(device),
        mesh=init_device_mesh(device, (1, 1), mesh_dim_names=("replicate", "shard")),
        writers=cast("dist.ProcessGroup", dist.new_group(backend="gloo")),
    )
    dist.destroy_process_group()


@pytest.fixture(params=["whole", "spread"])
def layout(request, monkeypatch) -> str:
    """Whether the run is of a process without a group, or of one whose weights FSDP2 has."""
    if request.param == "spread":
        group = request.getfixturevalue("group")
        monkeypatch.setattr(distributed, "join", lambda *_, **__: group)
    return request.param


@pytest.fixture
def repeatable(monkeypatch) -> Iterator[None]:
    """No kernel that adds in any order, where there is another."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def train(number: int, run_dir: Path, *, resume: bool = False, **changes) -> nn.Module:
    model, stage, stream, config = stage_parts(number)
    config = replace(config, steps=STEPS, micro_batch=2, keep_every=2, **changes)
    fit(model, stage, stream, config, run_dir, resume=resume, validation=stream)
    return model


def curve(run_dir: Path, name: str = "loss") -> list[float]:
    return [entry[name] for entry in read_log(run_dir) if name in entry]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[float]]:
    """The losses of both stages on the CPU in float32."""
    curves = {}
    for number in (2, 3):
        run_dir = tmp_path_factory.mktemp("exact") / "run"
        train(number, run_dir, device="cpu")
        curves[number] = curve(run_dir)
    return curves


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("precision", WITHIN)
@pytest.mark.parametrize("number", [2, 3])
def test_losses_are_those_of_the_cpu(device, exact, tmp_path, number, precision):
    model = train(number, tmp_path / "run", device=device, precision=precision)
    losses = curve(tmp_path / "run")
    assert len(losses) == STEPS
    assert all(math.isfinite(loss) for loss in losses)
    assert losses == pytest.approx(exact[number], rel=WITHIN[precision])
    assert all(math.isfinite(loss) for loss in curve(tmp_path / "run", "validation_loss"))
    # The caller's own model has the result, in plain float32 tensors on the GPU.
    held = {(type(p), p.dtype, p.device.type) for p in model.parameters() if p.requires_grad}
    assert held == {(nn.Parameter, torch.float32, device)}
    assert not any(isinstance(p.data, DTensor) for p in model.parameters())
    state = checkpoint.latest(tmp_path / "run")[0]
    ours = model.state_dict()
    assert all(value.equal(ours[name].cpu()) for name, value in state.average.items())
    scale = [4.0, STEPS] if precision == "float16" else None
    assert state.numbers["loss_scale"] == scale


@pytest.mark.filterwarnings("ignore:.*determinis")
@pytest.mark.usefixtures("layout", "repeatable")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("number", [2, 3])
def test_a_resumed_run_ends_with_the_same_bits(device, tmp_path, number, precision):
    run_dir, asked = tmp_path / "run", {"device": device, "precision": precision}
    train(number, run_dir, **asked)
    whole, _ = checkpoint.latest(run_dir)
    shutil.rmtree(checkpoint.step_directory(run_dir, STEPS))
    middle, _ = checkpoint.latest(run_dir)
    assert middle.step == STEPS // 2
    train(number, run_dir, resume=True, **asked)
    again, _ = checkpoint.latest(run_dir)
    assert again.step == whole.step == STEPS
    expected, ours = whole.tensors(), again.tensors()
    assert ours.keys() == expected.keys()
    assert [name for name, value in ours.items() if not value.equal(expected[name])] == []
    moved = [not value.equal(middle.weights[name]) for name, value in again.weights.items()]
    assert any(moved)
