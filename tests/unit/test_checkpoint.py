import hashlib
import json
import resource

import pytest
import safetensors.torch
import torch

from kosmosg import checkpoint
from kosmosg.errors import CheckpointError


def state(step: int) -> checkpoint.TrainingState:
    return checkpoint.TrainingState(
        step=step,
        weights={"a": torch.full((3,), float(step)), "count": torch.tensor(step)},
        average={"a": torch.zeros(3)},
        optimizer={"a/step": torch.tensor(float(step)), "a/exp_avg": torch.ones(3)},
        numbers={"frozen": "abc"},
    )


def save(run_dir, step, keep=2):
    return checkpoint.save_training_state(run_dir, state(step), config={"seed": 1}, keep=keep)


def test_a_training_state_comes_back_to_the_bit(tmp_path):
    path = save(tmp_path, 7)
    back = checkpoint.load_training_state(path)
    assert back.step == 7
    assert back.numbers == {"frozen": "abc"}
    for part in ("weights", "average", "optimizer"):
        ours, theirs = getattr(state(7), part), getattr(back, part)
        assert ours.keys() == theirs.keys()
        assert all(value.equal(theirs[name]) for name, value in ours.items())
    assert json.loads((path / "config.json").read_text()) == {"seed": 1}


def test_only_the_last_few_are_kept_and_nothing_half_written(tmp_path):
    (tmp_path / "checkpoints" / ".step-00000001.77.tmp").mkdir(parents=True)  # somebody was killed
    for step in range(1, 6):
        save(tmp_path, step, keep=3)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000003", "step-00000004", "step-00000005"]


def test_a_damaged_newer_one_does_not_count_among_those_kept(tmp_path):
    save(tmp_path, 9, keep=1)
    (tmp_path / "checkpoints" / "step-00000009" / "state.json").write_text("torn")
    path = save(tmp_path, 5, keep=1)
    assert list((tmp_path / "checkpoints").iterdir()) == [path]


def test_saving_the_same_step_again_replaces_it(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 1)
    assert checkpoint.load_training_state(path).step == 1


@pytest.mark.parametrize("harm", ["cut", "flip", "remove", "no manifest", "empty"])
def test_a_torn_newest_checkpoint_falls_back_to_the_one_before(tmp_path, harm):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    (victim,) = newest.glob("*.safetensors")
    data = victim.read_bytes()
    match harm:
        case "cut":
            victim.write_bytes(data[:-3])
        case "flip":
            victim.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "remove":
            victim.unlink()
        case "no manifest":
            (newest / "manifest.json").unlink()
        case "empty":
            for path in newest.iterdir():
                path.unlink()
    found, refused = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert len(refused) == 1
    assert str(newest) in refused[0]


def test_no_checkpoint_is_no_error(tmp_path):
    assert checkpoint.latest(tmp_path) == (None, [])


def test_another_format_version_is_named(tmp_path):
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format version 99, this program reads version 2"):
        checkpoint.load_training_state(path)


@pytest.fixture
def _little_room():
    """The system refuses files above 2 kB, as a full disk would: with an OSError while writing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_little_room")
def test_a_full_disk_is_one_clear_line_and_costs_nothing(tmp_path):
    before = save(tmp_path, 1)
    big = checkpoint.TrainingState(
        step=2, weights={"a": torch.zeros(4096)}, average={}, optimizer={}
    )
    with pytest.raises(CheckpointError, match=r"cannot write .*step-00000002: File too large"):
        checkpoint.save_training_state(tmp_path, big, config={}, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [before.name]
    assert checkpoint.load_training_state(before).step == 1
    assert list(tmp_path.rglob("*.tmp")) == []


def seal(path, name, data):
    """Write a file as if the checkpoint had been made with it."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"][name] = hashlib.sha256(data).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_checkpoint_whose_weights_are_no_weights_is_refused(tmp_path):
    path = save(tmp_path, 7)
    (weights,) = path.glob("*.safetensors")
    seal(path, weights.name, b"not weights")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        checkpoint.load_training_state(path)
    seal(path, "state.json", b"{}")
    with pytest.raises(CheckpointError, match="it is not a training checkpoint"):
        checkpoint.load_training_state(path)


def test_reading_is_strict_and_names_what_differs(tmp_path):
    path = save(tmp_path, 1)
    room = {name: torch.zeros_like(value) for name, value in state(0).tensors().items()}
    checkpoint.read_into(path, room)
    assert all(value.equal(room[name]) for name, value in state(1).tensors().items())
    other = {name: value for name, value in room.items() if name != "average/a"}
    with pytest.raises(CheckpointError, match=r"missing weights/b; unexpected average/a"):
        checkpoint.read_into(path, other | {"weights/b": torch.zeros(1)})
    with pytest.raises(
        CheckpointError, match=r"weights/a has shape \(3,\), the run expects \(4,\)"
    ):
        checkpoint.read_into(path, room | {"weights/a": torch.zeros(4)})


def test_some_are_kept_for_good(tmp_path):
    for step in range(1, 8):
        checkpoint.save_training_state(tmp_path, state(step), config={}, keep=2, keep_every=3)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000003", "step-00000006", "step-00000007"]


def test_no_file_holds_a_pickle_and_any_reader_of_safetensors_can_look(tmp_path):
    path = save(tmp_path, 1)
    assert {one.suffix for one in path.iterdir()} == {".json", ".safetensors"}
    (weights,) = path.glob("*.safetensors")
    assert safetensors.torch.load_file(weights)["weights/a"].equal(torch.ones(3))
