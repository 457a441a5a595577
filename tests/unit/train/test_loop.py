import json
import os
import resource
import signal

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kosmosg import checkpoint
from kosmosg.errors import CheckpointError, ConfigError, DataError, KosmosGError
from kosmosg.train.log import read_log
from kosmosg.train.loop import fit
from toys.training import Net, Pairs, Regression, net, train_config


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return all(value.equal(theirs[name]) for name, value in ours.items())


class Stops(Pairs):
    """Raises a signal while step `at` is being read, which the loop notices after a step."""

    def __init__(self, seed, at, number):
        super().__init__(seed)
        self.at, self.number = at, number

    def batch(self, step, size):
        if step == self.at:
            os.kill(os.getpid(), self.number)
        return super().batch(step, size)


def test_a_run_learns_and_leaves_its_story(tmp_path):
    model = net()
    path = fit(
        model,
        Regression(),
        Pairs(0),
        train_config(steps=80, validate_every=20),
        tmp_path / "run",
        validation=Pairs(9),
        samples=lambda _, step: Image.new("RGB", (step, 4)),
    )
    entries = read_log(tmp_path / "run")
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    validation = [entry["validation_loss"] for entry in entries if "validation_loss" in entry]
    assert losses[-1] < losses[0] / 2
    assert validation[-1] < validation[0] / 2
    assert len(losses) == 40
    assert len(validation) == 4
    assert {"grad_norm", "lr", "squares", "metric_worst", "samples_per_s"} <= entries[0].keys()
    assert path == tmp_path / "run" / "checkpoints" / "step-00000080"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 80
    pictures = sorted(p.name for p in (tmp_path / "run" / "samples").iterdir())
    assert pictures[0] == "step-00000006.png"
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("validation_loss")] == [20, 40, 60, 80]
    assert [event.value for event in board.Scalars("loss")] == pytest.approx(losses)
    state = checkpoint.load_training_state(path)
    assert not model.training
    assert all(p.equal(state.average[n]) for n, p in model.named_parameters())


def test_cutting_the_batch_changes_nothing(tmp_path):
    """Uneven pieces too: 8 = 3 + 3 + 2. Dropout off, for it draws by the piece."""
    models = []
    for micro_batch in (8, 3, 1):
        model = net(dropout=0.0)
        config = train_config(micro_batch=micro_batch, ema=None)
        fit(model, Regression(), Pairs(0), config, tmp_path / str(micro_batch))
        models.append(model)
    for other in models[1:]:
        for name, value in models[0].state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[name], atol=1e-6, rtol=0)


def test_validation_sampling_and_logging_do_not_touch_training(tmp_path):
    plain, watched = net(), net()
    fit(plain, Regression(), Pairs(0), train_config(), tmp_path / "plain")
    fit(
        watched,
        Regression(),
        Pairs(0),
        train_config(validate_every=1, samples_every=1, log_every=1),
        tmp_path / "watched",
        validation=Pairs(9),
        samples=lambda model, _: (model(torch.randn(2, 6)), Image.new("RGB", (4, 4)))[1],
    )
    assert same(plain, watched)


def test_the_callers_random_state_is_left_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    fit(Net(), Regression(), Pairs(0), train_config(steps=2), tmp_path / "run")
    torch.manual_seed(5)
    assert torch.random.get_rng_state().equal(before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_saves_says_how_to_go_on_and_resumes_to_the_bit(tmp_path, capfd, number, code):
    whole = net()
    whole_path = fit(whole, Regression(), Pairs(0), train_config(), tmp_path / "whole")
    run_dir = tmp_path / "run"
    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        fit(net(), Regression(), Stops(0, 5, number), train_config(), run_dir)
    assert stopped.value.code == code
    assert signal.getsignal(number) is handler
    last = capfd.readouterr().err.splitlines()[-1]
    assert "saved" in last
    assert "--resume" in last
    begun, _ = checkpoint.latest(run_dir)
    assert begun is not None
    assert 0 < begun.step < 12
    model = net()
    path = fit(model, Regression(), Pairs(0), train_config(), run_dir, resume=True)
    assert same(model, whole)
    one, other = (checkpoint.load_training_state(p) for p in (path, whole_path))
    assert all(one.optimizer[name].equal(value) for name, value in other.optimizer.items())
    steps = [entry["step"] for entry in read_log(run_dir)]
    assert steps == sorted(steps)


def test_resuming_a_finished_run_returns_its_result(tmp_path):
    model = net()
    fit(model, Regression(), Pairs(0), train_config(), tmp_path / "run")
    again = net()
    fit(again, Regression(), Pairs(0), train_config(), tmp_path / "run", resume=True)
    assert same(model, again)


def test_resuming_where_nothing_is_starts_anew(tmp_path):
    one, other = net(), net()
    fit(one, Regression(), Pairs(0), train_config(), tmp_path / "one")
    fit(other, Regression(), Pairs(0), train_config(), tmp_path / "other", resume=True)
    assert same(one, other)


def test_a_used_directory_needs_resume(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"already holds 'notes.txt'; add --resume"):
        fit(net(), Regression(), Pairs(0), train_config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["notes.txt"]


def test_a_run_that_ended_before_its_first_step_binds_nobody(tmp_path):
    (tmp_path / "config.json").write_text('{"ema": null}')
    with pytest.raises(ConfigError, match=r"was begun with ema\.decay = 'nothing'"):
        fit(net(), Regression(), Pairs(0), train_config(), tmp_path, resume=True)
    fit(net(), Regression(), Pairs(0), train_config(), tmp_path)
    assert (tmp_path / "checkpoints").is_dir()


def test_another_configuration_is_refused_by_field(tmp_path):
    fit(net(), Regression(), Pairs(0), train_config(), tmp_path)
    changed = train_config(optim=train_config().optim.__class__(
        lr=5e-3, clip_norm=1.0, schedule="cosine", warmup_steps=3
    ))  # fmt: skip
    with pytest.raises(ConfigError, match=r"optim\.lr = 0\.01, now it is 0\.005"):
        fit(net(), Regression(), Pairs(0), changed, tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"ema\.decay = 0.9, now it is 'nothing'"):
        fit(net(), Regression(), Pairs(0), train_config(ema=None), tmp_path, resume=True)
    free = train_config(checkpoint_s=1.0, log_every=3, keep_checkpoints=1)
    fit(net(), Regression(), Pairs(0), free, tmp_path, resume=True)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew(tmp_path):
    path = fit(net(), Regression(), Pairs(0), train_config(), tmp_path)
    next(path.glob("*.safetensors")).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used; .* is damaged"):
        fit(net(), Regression(), Pairs(0), train_config(), tmp_path, resume=True)


def test_other_frozen_weights_are_refused(tmp_path):
    stage = Regression(trainable=("head.*",))
    fit(net(), stage, Pairs(0), train_config(), tmp_path)
    other = net()
    torch.nn.init.ones_(other.body.weight)
    with pytest.raises(CheckpointError, match="the frozen weights are not those"):
        fit(other, stage, Pairs(0), train_config(), tmp_path, resume=True)


def test_only_what_the_stage_names_learns(tmp_path):
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = fit(model, Regression(trainable=("head.*",)), Pairs(0), train_config(), tmp_path / "r")
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert set(checkpoint.load_training_state(path).weights) == changed


def test_a_loss_that_is_not_finite_names_step_and_records(tmp_path):
    class Poisoned(Pairs):
        def _record(self, index):
            record = super()._record(index)
            if index == 19:
                record.given[:] = float("nan")
            return record

    with pytest.raises(
        KosmosGError, match=r"step 2: loss nan.*records pair-16, .*pair-19.*lower optim\.lr"
    ):
        fit(net(), Regression(), Poisoned(0), train_config(checkpoint_s=0.0), tmp_path / "run")
    state, refused = checkpoint.latest(tmp_path / "run")
    assert state is not None
    assert (state.step, refused) == (2, [])
    assert all(value.isfinite().all() for value in state.weights.values())


def test_losses_that_are_not_finite_may_be_left_out_but_not_for_ever(tmp_path):
    class Poisoned(Pairs):
        def __init__(self, count):
            super().__init__(0)
            self.count = count

        def batch(self, step, size):
            records = super().batch(step, size)
            if step < self.count:
                records[1].given[:] = float("nan")
            return records

    config = train_config(on_bad_loss="skip", log_every=1)
    model = net()
    fit(model, Regression(), Poisoned(3), config, tmp_path / "some")
    entries = [entry for entry in read_log(tmp_path / "some") if "loss" in entry]
    assert [entry["step"] for entry in entries] == list(range(4, 13))
    assert all(value.isfinite().all() for value in model.state_dict().values())
    told = json.loads((tmp_path / "some" / "bad-step-00000002.json").read_text())
    assert told["loss"] == "nan"
    assert told["records"] == [f"pair-{index}" for index in range(16, 24)]
    with pytest.raises(KosmosGError, match=r"step 10: .*not finite, 11 times in a row"):
        fit(net(), Regression(), Poisoned(99), config, tmp_path / "all")


def test_some_checkpoints_stay_for_good(tmp_path):
    config = train_config(keep_every=5, keep_checkpoints=1)
    fit(net(), Regression(), Pairs(0), config, tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000005", "step-00000010", "step-00000012"]


def test_an_error_while_reading_ahead_reaches_the_caller(tmp_path):
    class Broken(Pairs):
        def batch(self, step, size):
            if step == 3:
                raise DataError("record 24 is damaged")
            return super().batch(step, size)

    with pytest.raises(DataError, match="record 24 is damaged"):
        fit(net(), Regression(), Broken(0), train_config(), tmp_path / "run")


@pytest.mark.parametrize(("log_every", "room"), [(1, 400), (1000, 1500)], ids=["log", "weights"])
def test_a_full_disk_ends_in_one_line_and_loses_nothing(tmp_path, log_every, room):
    """The system refuses to let files grow, as a full disk would: an OSError while writing."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fills(Pairs):
        def batch(self, step, size):
            if step == 9:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
            return super().batch(step, size)

    config = train_config(checkpoint_s=0.0, log_every=log_every)
    whole = net()
    fit(whole, Regression(), Pairs(0), config, tmp_path / "whole")
    try:
        with pytest.raises(KosmosGError, match=r"cannot write .*: File too large; make room"):
            fit(net(), Regression(), Fills(0), config, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    state, refused = checkpoint.latest(tmp_path / "run")
    assert state is not None
    assert (0 < state.step < 12, refused) == (True, [])
    model = net()
    fit(model, Regression(), Pairs(0), config, tmp_path / "run", resume=True)
    assert same(model, whole)


def test_two_runs_cannot_share_a_directory(tmp_path):
    class Nested(Pairs):
        def batch(self, step, size):
            if step == 0:
                fit(net(), Regression(), Pairs(0), train_config(), tmp_path, resume=True)
            return super().batch(step, size)

    with pytest.raises(ConfigError, match="another process is training in"):
        fit(net(), Regression(), Nested(0), train_config(), tmp_path)


def test_half_precision_computes_but_keeps_float32(tmp_path):
    model = net()
    kinds = set()
    model.head.register_forward_hook(lambda _m, _i, out: kinds.add(out.dtype))
    fit(model, Regression(), Pairs(0), train_config(precision="bfloat16"), tmp_path / "run")
    assert kinds == {torch.bfloat16}
    assert model.head.weight.dtype == torch.float32
    with pytest.raises(ConfigError, match=r"body\.weight is torch\.bfloat16; what learns must be"):
        fit(net().bfloat16(), Regression(), Pairs(0), train_config(), tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps = 0; it must be at least 1"),
        ({"micro_batch": 0}, "micro_batch = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"device": "cuda"}, "torch sees no GPU"),
    ],
)
def test_values_that_cannot_work_are_named(tmp_path, changes, message):
    if "device" in changes and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=message):
        fit(net(), Regression(), Pairs(0), train_config(**changes), tmp_path / "run")


def test_the_stage_shown_in_the_docs_trains(repository, tmp_path, monkeypatch):
    text = (repository / "docs" / "training.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/training.md", "exec"), {})
    losses = [entry["loss"] for entry in read_log(tmp_path / "runs" / "circles")]
    assert len(losses) == 2
    assert losses[1] < losses[0]
