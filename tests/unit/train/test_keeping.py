"""Checkpoints are copied at once and written aside."""

import threading

import pytest
import torch

from kosmosg import checkpoint
from kosmosg.errors import CheckpointError
from kosmosg.train.distributed import Ranks
from kosmosg.train.keeping import Keeper


def state(value: torch.Tensor, step: int = 1) -> checkpoint.TrainingState:
    return checkpoint.TrainingState(step=step, weights={"a": value}, average={}, optimizer={})


def keeper(run_dir) -> Keeper:
    return Keeper(run_dir, Ranks(torch.device("cpu")), {}, keep=2, keep_every=None)


def test_training_goes_on_while_it_is_written_and_changes_nothing_of_it(tmp_path, monkeypatch):
    """The write is held up until the weights have changed."""
    changed = threading.Event()
    save = checkpoint.save_training_state

    def later(*args, **options):
        assert changed.wait(60)
        return save(*args, **options)

    monkeypatch.setattr(checkpoint, "save_training_state", later)
    weights = torch.ones(3)
    keeping = keeper(tmp_path)
    keeping.save(state(weights))
    weights.fill_(2.0)
    assert checkpoint.latest(tmp_path) == (None, [])
    changed.set()
    keeping.wait()
    assert checkpoint.latest(tmp_path)[0].weights["a"].equal(torch.ones(3))
    keeping.close()


def test_what_cannot_be_written_is_told_before_the_next_and_at_the_end(tmp_path, capsys):
    (tmp_path / "checkpoints").write_text("in the way")
    keeping = keeper(tmp_path)
    keeping.save(state(torch.ones(1)))
    with pytest.raises(CheckpointError, match=r"cannot write .*step-00000001: (Not a|File exists)"):
        keeping.save(state(torch.ones(1), 2))
    keeping.save(state(torch.ones(1), 2))
    keeping.close()
    assert "cannot write" in capsys.readouterr().err
