"""A run that is killed goes on as if nothing had happened."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kosmosg import checkpoint
from kosmosg.train.loop import fit
from toys.training import Pairs, Regression, net, train_config

STEPS = 100
TESTS = Path(__file__).parents[1]

# Runs as a program of its own, because only a process can be killed.
PROGRAM = """
import sys, time
from pathlib import Path
from toys.training import Pairs, Regression, net, train_config
from kosmosg.train.loop import fit

class Slow(Pairs):
    def batch(self, step, size):
        time.sleep(0.05)
        return super().batch(step, size)

config = train_config(steps=100, checkpoint_s=0.2, keep_checkpoints=3)
fit(net(), Regression(), Slow(0), config, Path(sys.argv[1]), resume="--resume" in sys.argv)
"""


def start(run_dir: Path, *arguments: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent / 'src'}"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(run_dir), *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_checkpoint(run_dir: Path, process: subprocess.Popen, *, beyond: int) -> None:
    deadline = time.monotonic() + 120
    while not [p for p in run_dir.glob("checkpoints/step-*") if int(p.name[5:]) > beyond]:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> checkpoint.TrainingState:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    path = fit(net(), Regression(), Pairs(0), train_config(steps=STEPS), run_dir)
    return checkpoint.load_training_state(path)


def assert_same_to_the_bit(one: checkpoint.TrainingState, other: checkpoint.TrainingState) -> None:
    assert one.step == other.step
    for part in ("weights", "average", "optimizer"):
        first, second = getattr(one, part), getattr(other, part)
        assert first.keys() == second.keys()
        assert all(first[name].equal(second[name]) for name in first), part


def test_a_run_killed_twice_ends_as_if_undisturbed(tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    process = start(run_dir)
    wait_for_checkpoint(run_dir, process, beyond=0)
    process.kill()
    process.communicate(timeout=120)
    first, _ = checkpoint.latest(run_dir)
    assert first is not None

    process = start(run_dir, "--resume")
    wait_for_checkpoint(run_dir, process, beyond=first.step)
    process.kill()
    process.communicate(timeout=120)
    second, _ = checkpoint.latest(run_dir)
    assert second is not None
    assert 0 < first.step < second.step < STEPS

    # The newest checkpoint is torn as well: the run goes on from the one before.
    newest = max(run_dir.glob("checkpoints/step-*"))
    (weights,) = newest.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-5])
    process = start(run_dir, "--resume")
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert "is damaged" in told
    after, refused = checkpoint.latest(run_dir)
    assert refused == []
    assert_same_to_the_bit(after, undisturbed)
