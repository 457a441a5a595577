"""What a run tells: lines that any JSON reader takes, rates that hold, and the way to go on."""

import json
import re
import sys
import time
from itertools import pairwise

import pytest

from kosmosg.errors import ConfigError, DataError
from kosmosg.train.log import LOG_NAME, RunLog, read_log
from kosmosg.train.loop import fit
from toys.training import Pairs, Regression, net, train_config


def log(run_dir, **changes):
    fields = {"first_step": 0, "steps": 50, "batch_size": 8} | changes
    run_dir.mkdir(exist_ok=True)
    return RunLog(run_dir, **fields)


def strictly(line):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_rates_are_records_and_terms_by_the_time_between_entries(tmp_path):
    told = log(tmp_path, counts="tokens")
    began = time.monotonic()
    time.sleep(0.05)
    told.write(10, {"loss": 1.0, "weight": 300.0})
    elapsed = time.monotonic() - began
    told.close()
    (entry,) = read_log(tmp_path)
    assert entry["samples_per_s"] == pytest.approx(10 * 8 / elapsed, rel=0.1)
    assert entry["tokens_per_s"] == pytest.approx(10 * 300 / elapsed, rel=0.1)
    assert "weight" not in entry
    assert abs(entry["time"] - time.time()) < 60


def test_waiting_for_data_is_told_as_a_share(tmp_path):
    told = log(tmp_path)

    def slow():
        for item in range(4):
            time.sleep(0.03)
            yield item

    assert [item for item in told.waiting(slow()) if time.sleep(0.01) is None] == [0, 1, 2, 3]
    told.write(4, {"loss": 1.0})
    list(told.waiting([]))
    time.sleep(0.02)
    told.write(5, {"loss": 1.0})
    told.close()
    first, second = read_log(tmp_path)
    assert 0.5 < first["data_wait"] < 0.95
    assert second["data_wait"] < 0.1  # it begins anew with each entry


def test_the_progress_line_says_it_all(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    told = log(tmp_path, counts="pictures")
    values = {"loss": 0.5, "diffusion": 0.5, "grad_norm": 1.25, "lr": 3e-4, "weight": 8.0}
    told.write(10, values | {"loss/edits": 0.25, "loss/captions": 0.75})
    told._bar.update(10)
    told._bar.refresh()
    told.close()
    said = capsys.readouterr().err
    assert "10/50" in said
    assert re.search(r"\d\d:\d\d left", said)
    assert "loss 0.5000 (edits 0.2500, captions 0.7500), grad 1.25, lr 3.00e-04" in said
    assert re.search(r"[0-9.e+]+ pictures/s, data wait 0%", said)


def test_a_value_that_is_no_number_is_null(tmp_path):
    told = log(tmp_path)
    told.write(1, {"loss": float("nan"), "grad_norm": float("inf"), "lr": 0.5})
    told.close()
    (line,) = (tmp_path / LOG_NAME).read_text().splitlines()
    entry = strictly(line)
    assert (entry["loss"], entry["grad_norm"], entry["lr"]) == (None, None, 0.5)


def test_without_tensorboard_one_note_is_said_and_the_lines_go_on(tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    fit(net(), Regression(), Pairs(0), train_config(), tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count("no TensorBoard curves") == 1
    assert "pip install 'kosmosg[train]'" in said
    assert len([entry for entry in read_log(tmp_path / "run") if "loss" in entry]) == 6
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_torn_lines_are_left_out_wherever_they_are(tmp_path):
    lines = ['{"step": 1, "loss": 2.0}', '{"step": 2, "lo', '{"step": 3, "loss": NaN}', "7", "{}"]
    text = "\n".join([*lines, '{"step": "x"}', '{"step": 4, "loss": 1.0}', '{"step": 5'])
    (tmp_path / LOG_NAME).write_bytes(text.encode() + b"\xff")
    assert [entry["step"] for entry in read_log(tmp_path)] == [1, 3, 4]
    assert read_log(tmp_path / "nowhere") == []


def test_going_on_is_noted_and_what_was_beyond_is_dropped(tmp_path, capsys):
    told = log(tmp_path)
    for step in (10, 20, 30):
        told.write(step, {"loss": float(step)})
    told.close()
    log(tmp_path, first_step=20).close()
    assert f"{tmp_path} goes on after step 20 of 50" in capsys.readouterr().err
    assert [(e["step"], e.get("event")) for e in read_log(tmp_path)] == [
        (10, None),
        (20, None),
        (20, "resumed"),
    ]
    steps = [strictly(line)["step"] for line in (tmp_path / LOG_NAME).read_text().splitlines()]
    assert all(one <= other for one, other in pairwise(steps))


# ------------------------------------------------------------------------ --resume, said in words


def start(run_dir, *, resume, **changes):
    fit(net(), Regression(), Pairs(0), train_config(**changes), run_dir, resume=resume)


def test_resume_says_where_it_is(tmp_path, capsys):
    start(tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert f"nothing to continue in {tmp_path / 'run'}: a new run begins there" in said
    assert "goes on" not in said
    start(tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert f"{tmp_path / 'run'} is finished: its 12 steps are done" in said
    assert "event" not in (tmp_path / "run" / LOG_NAME).read_text()


def test_resume_with_another_recipe_names_what_the_run_is_first(tmp_path):
    recipe = {"data": {"seed": 0}, "stage": {"kind": "align", "a": 1}}
    for stage in ("align", "instruct"):
        recipe["stage"]["kind"] = stage
        recipe["data"]["seed"] += 1
        if stage == "align":
            fit(net(), Regression(), Pairs(0), train_config(), tmp_path, recipe=recipe)
    with pytest.raises(
        ConfigError, match=r"begun with stage\.kind = 'align', now it is 'instruct'"
    ):
        fit(net(), Regression(), Pairs(0), train_config(), tmp_path, recipe=recipe, resume=True)


class Fails(Pairs):
    def batch(self, step, size):  # noqa: ARG002 -- the protocol's names
        raise DataError("no record can be read")


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_saved_nothing_blocks_no_other(tmp_path, resume):
    with pytest.raises(DataError):
        fit(net(), Regression(), Fails(0), train_config(), tmp_path)
    for name in ("skips.json", "bad-step-00000000.json"):
        (tmp_path / name).write_text("{}")
    start(tmp_path, resume=resume)
    assert [entry["step"] for entry in read_log(tmp_path)] == [2, 4, 6, 8, 10, 12]
    if not resume:
        assert not (tmp_path / "skips.json").exists()


def test_what_was_saved_or_is_not_ours_still_blocks(tmp_path):
    with pytest.raises(DataError):
        fit(net(), Regression(), Fails(0), train_config(), tmp_path / "mine")
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="already holds"):
        start(tmp_path / "mine", resume=False)
    start(tmp_path / "saved", resume=False)
    with pytest.raises(ConfigError, match="add --resume to continue"):
        start(tmp_path / "saved", resume=False)
