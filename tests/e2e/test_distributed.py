"""Two processes under torchrun do what one does, and come through what befalls them.

Starting processes costs more than their work, so each start does several jobs, one after another.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kosmosg import checkpoint
from kosmosg.data.tars import write_shard
from kosmosg.train.arithmetic import need
from kosmosg.train.log import read_log
from kosmosg.train.shapes import Record
from toys import ranks
from toys.shards import write
from toys.stages import Examples, toy_sizes, toys

TESTS = Path(__file__).parents[1]


def torchrun(jobs: list[dict[str, Any]], *, restarts: int = 0, processes: int = 2) -> str:
    """Do the jobs in so many processes; return what they wrote to stderr."""
    environment = os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent / 'src'}"}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [
        f"--nproc-per-node={processes}",
        f"--max-restarts={restarts}",
        "--monitor-interval=0.1",
    ]
    done = subprocess.run(
        [*command, "-m", "toys.ranks", json.dumps(jobs)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,  # starting takes a minute on a busy machine
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stderr


def curve(run_dir: Path, name: str = "loss") -> list[float]:
    entries = [entry for entry in read_log(run_dir) if name in entry]
    assert [entry["step"] for entry in entries] == sorted({entry["step"] for entry in entries})
    return [entry[name] for entry in entries]


def ends(run_dir: Path) -> list[str]:
    return [run_dir.with_name(f"{run_dir.name}.end-{rank}").read_text() for rank in (0, 1)]


def records(run_dir: Path) -> dict[int, set[tuple[int, ...]]]:
    """Return which records each micro-batch had, by its draws' seed, in whatever attempt."""
    read: dict[int, set[tuple[int, ...]]] = {}
    for rank in (0, 1):
        path = run_dir.with_name(f"{run_dir.name}.ids-{rank}")
        for line in path.read_text().splitlines():
            seed, ids = json.loads(line)
            read.setdefault(seed, set()).add(tuple(ids))
    return read


def same_to_the_bit(one: Path, other: Path) -> None:
    first, second = checkpoint.latest(one)[0], checkpoint.latest(other)[0]
    assert first is not None
    assert second is not None
    assert first.step == second.step
    ours, theirs = first.tensors(), second.tensors()
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not value.equal(theirs[name])] == []


STAGES: dict[str, dict[str, Any]] = {
    "stage1": {"stage": 1, "recompute": "blocks"},
    "stage2": {"stage": 2, "frozen_parts": "sharded"},
    "stage3": {"stage": 3},
    "stage3 sharded": {"stage": 3, "frozen_parts": "sharded"},
    "replicas": {"stage": 2, "shard_ranks": 1},
    "stage2 in groups": {"stage": 2, "micro_batch": 2, "length_groups": 2},
    "stage3 in groups": {"stage": 3, "micro_batch": 2, "length_groups": 2},
    "stage3 gathered once": {"stage": 3, "micro_batch": 1, "length_groups": 2, "gathered": "step"},
}


# Micro-batches of 1, one a rank, but for the last two.
COUNTED: dict[str, dict[str, Any]] = {
    "stage1": {"stage": 1},
    "stage2": {"stage": 2},
    "stage3": {"stage": 3},
    "replicas": {"stage": 2, "shard_ranks": 1},
    "frozen parts of stage2": {"stage": 2, "frozen_parts": "sharded"},
    "frozen parts of stage3": {"stage": 3, "frozen_parts": "sharded"},
    "three groups": {"stage": 3, "length_groups": 3, "micro_batch": 4, "global_batch_size": 8},
    "two micro-batches": {"stage": 1, "global_batch_size": 4},
    "gathered once": {"stage": 1, "global_batch_size": 4, "gathered": "step"},
}
ONE_BLOCK = {
    **{"stage": 2, "trainable": ["aligner.encoder.layers.*"]},
    **{"steps": 1, "global_batch_size": 2, "validation_records": 2},
}
COMPILER = shutil.which("g++")


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """The folder of all runs that one start of two processes did."""
    folder = tmp_path_factory.mktemp("together")
    nan = {"poison": ["pair-21", "pair-30"]}
    term = {"mark": str(folder / "term"), "number": signal.SIGTERM, "ranks": [1], "step": 7}
    jobs: dict[str, dict[str, Any]] = {
        **STAGES,
        "stopped": {"faults": [term]},
        "stop": nan,
        "skip": {**nan, "on_bad_loss": "skip"},
        "full": {"room": 2500, "log_every": 1000, "validate_every": 1000, "checkpoint_s": 0.0},
        "uneven": {"global_batch_size": 5},
        "half": {"precision": "float16"},
        # In these processes, since the shape checks of tests cannot be compiled.
        **({"compiled": {**ONE_BLOCK, "compiled": "blocks"}} if COMPILER else {}),
        # The last, since it ends one process while the other waits for it.
        "gone": {"faults": [{"mark": "", "number": 0, "ranks": [1], "step": 9}]},
    }
    torchrun([{"run_dir": str(folder / name), **job} for name, job in jobs.items()])
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("alone")


@pytest.mark.parametrize("name", STAGES)
def test_two_processes_lose_as_one_does(together, alone, name):
    """Blocks recomputed, frozen parts sharded, whole copies, groups by length: all the same."""
    ranks.train_stage(alone / name, STAGES[name]["stage"])
    for term in ("loss", "grad_norm", "validation_loss"):
        expected = curve(alone / name, term)
        assert len(expected) == (1 if term == "validation_loss" else ranks.STEPS)
        assert curve(together / name, term) == pytest.approx(expected, abs=1e-6)
    one, two = (checkpoint.latest(folder / name)[0].average for folder in (alone, together))
    assert one.keys() == two.keys()
    for key, value in one.items():
        if not key.endswith("k_proj.bias"):  # its gradient is rounding alone, which Adam enlarges
            torch.testing.assert_close(value, two[key], atol=1e-5, rtol=0, msg=key)


def test_two_copies_in_two_shards_each_lose_as_one_process_does(alone, tmp_path):
    """Four processes: shards within a pair, copies between the pairs."""
    torchrun([{"run_dir": str(tmp_path / "four"), "stage": 3, "shard_ranks": 2}], processes=4)
    ranks.train_stage(alone / "beside four", 3)
    for term in ("loss", "grad_norm", "validation_loss"):
        expected = curve(alone / "beside four", term)
        assert curve(tmp_path / "four", term) == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def counted(tmp_path_factory) -> Path:
    """The folder of what ranks told one another in some runs."""
    folder = tmp_path_factory.mktemp("counted")
    common = {"counted": True, "steps": 5, "global_batch_size": 2, "log_every": 1000}
    torchrun([{"run_dir": str(folder / name), **common, **job} for name, job in COUNTED.items()])
    return folder


@pytest.mark.parametrize("name", COUNTED)
def test_what_ranks_tell_one_another_is_what_the_shapes_say(counted, name):
    """Byte by byte, of the fourth step; what stands in no row is told to nobody."""
    job = {"global_batch_size": 2, **COUNTED[name]}
    stage, groups = job.pop("stage"), job.pop("length_groups", None)
    config = replace(ranks.stage_parts(stage, groups)[3], **job)
    record = Record(positions=12, pictures=float(stage != 2))
    said = need(ranks.stage_config(stage, groups), config, toy_sizes(toys()), record=record, gpus=2)
    pieces = config.global_batch_size // config.micro_batch // 2
    for rank in (0, 1):
        path = counted / f"{name}.messages-{rank}"
        counts = [Counter(one) for one in json.loads(path.read_text())]
        step = counts[4 * pieces] - counts[3 * pieces]
        shards = ("all_gather float32", "reduce_scatter float32")
        if job.get("shard_ranks") == 1:
            told = {"all_reduce float32": said.traffic.all_reduce}
        else:
            values = (said.traffic.all_gather, said.traffic.reduce_scatter, said.traffic.norms)
            told = dict(zip((*shards, "all_reduce float32"), values, strict=True))
        told["all_reduce float64"] = said.traffic.numbers
        assert {kind: size for kind, size in step.items() if "messages" not in kind} == told
        sent = [f"{kind} messages" for kind in told if "64" not in kind]
        assert sum(step[kind] for kind in sent) == said.traffic.messages + bool(said.traffic.norms)


@pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_lose_the_same(together, alone):
    ranks.train_stage(alone / "compiled", **ONE_BLOCK)
    for term in ("loss", "grad_norm", "validation_loss"):
        expected = curve(alone / "compiled", term)
        assert curve(together / "compiled", term) == pytest.approx(expected, abs=1e-6)


def test_one_process_told_to_stop_stops_all_at_one_step(together):
    """Then one process goes on with what two have written, and two with what it has."""
    assert ends(together / "stopped") == ["exit 0", "exit 0"]
    state, refused = checkpoint.latest(together / "stopped")
    assert refused == []
    assert 4 <= state.step <= 8
    assert len(list((together / "stopped" / "checkpoints").glob("step-*/shard-*"))) == 2


def test_two_go_on_as_one_and_one_as_two(together, alone):
    run_dir, whole = together / "stopped", alone / "net"
    ranks.train_net(whole)
    middle = checkpoint.latest(run_dir)[0].step
    stop = {"mark": str(together / "alone"), "number": signal.SIGTERM, "ranks": [0], "step": 14}
    with pytest.raises(SystemExit):
        ranks.train_net(run_dir, faults=[stop])
    assert middle < checkpoint.latest(run_dir)[0].step < ranks.STEPS
    torchrun([{"run_dir": str(run_dir)}])
    assert curve(run_dir) == pytest.approx(curve(whole), abs=1e-6)
    expected = checkpoint.latest(whole)[0].tensors()
    for name, value in checkpoint.latest(run_dir)[0].tensors().items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=0, msg=name)


def test_a_loss_that_is_not_finite_stops_all_or_is_left_out(together, alone):
    """Pairs 21 and 30 are of steps 2 and 3, both of rank 1; all records of the step are told."""
    stopped = ends(together / "stop")
    assert stopped[0] == stopped[1]
    assert "step 2: loss nan" in stopped[0]
    assert "pair-16, pair-17" in stopped[0]
    told = json.loads((together / "stop" / "bad-step-00000002.json").read_text())
    assert told["records"] == [f"pair-{index}" for index in range(16, 24)]
    assert ends(together / "skip") == ["trained", "trained"]
    assert len(list((together / "skip").glob("bad-step-*.json"))) == 2
    ranks.train_net(alone / "skip", poison=["pair-21", "pair-30"], on_bad_loss="skip")
    expected = curve(alone / "skip")
    assert len(expected) == ranks.STEPS - 2
    assert curve(together / "skip") == pytest.approx(expected, abs=1e-6)


def test_a_full_disk_is_one_clear_line_on_each_and_costs_nothing(together):
    for told in ends(together / "full"):
        assert re.search(r"cannot write .*step-\d+: .*File too large.*; make room", told)


def test_who_is_left_says_that_another_ended(together):
    left, gone = ends(together / "gone")
    assert gone == "this disk is gone"
    assert left.startswith("rank 0: another process of this run ended, and says why itself")


def test_what_only_one_rank_knows_is_logged_too(together):
    for rank in (0, 1):
        shares = curve(together / "half", f"metric_of_rank_{rank}")
        assert shares == [0.5] * ranks.STEPS


def test_ranks_that_could_not_cut_alike_are_refused(together):
    assert "global_batch_size = 5 in pieces of 2 gives 2 processes" in ends(together / "uneven")[0]


def test_float16_with_a_loss_scale_learns_too(together, alone):
    ranks.train_net(alone / "half", precision="float16")
    assert ends(together / "half") == ["trained", "trained"]
    assert curve(together / "half") == pytest.approx(curve(alone / "half"), abs=2e-3)
    assert curve(together / "half") == pytest.approx(curve(alone / "net"), abs=2e-2)
    assert checkpoint.latest(together / "half")[0].numbers["loss_scale"] == [4.0, ranks.STEPS]


# ----------------------------------------------------------------------------- killed, and anew


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> Path:
    """Three tars of 16 numbers each, one of them bad: an epoch is 6 steps of 8."""
    folder = tmp_path_factory.mktemp("tars")
    for tar in range(3):
        samples = []
        for index in range(16 * tar, 16 * tar + 16):
            text = "bad" if index % 16 == 5 and tar == 1 else str(index)
            samples.append((f"{index:02}", {"txt": text.encode()}))
        write_shard(folder / f"{tar}.tar", samples)
    return folder


def test_killed_in_any_way_it_ends_as_if_undisturbed(tars, tmp_path):
    """One of two, both, while a checkpoint is written, at the turn of the data's epoch."""
    job = {"dropout": 0.2, "tars": str(tars), "workers": 1, "checkpoint_s": 0.0}
    kill = {"number": signal.SIGKILL}
    faults = [
        {**kill, "mark": str(tmp_path / "one"), "ranks": [1], "step": 4},
        {**kill, "mark": str(tmp_path / "turn"), "ranks": [0], "step": 12},
        {**kill, "mark": str(tmp_path / "both"), "ranks": [0, 1], "step": 16},
        {**kill, "mark": str(tmp_path / "write"), "ranks": [1], "step": None},
    ]
    torchrun([{"run_dir": str(tmp_path / "calm"), **job}])
    torchrun([{"run_dir": str(tmp_path / "run"), **job, "faults": faults}], restarts=6)
    struck = {"one-1", "turn-0", "write-1", "both-0", "both-1"}
    assert struck < {path.name for path in tmp_path.iterdir()}
    attempts = {name: (tmp_path / name).read_text() for name in struck}
    assert attempts["both-0"] == attempts["both-1"]  # neither ended for want of the other
    assert len(set(attempts.values())) == len(faults)
    assert curve(tmp_path / "run") == curve(tmp_path / "calm")
    same_to_the_bit(tmp_path / "run", tmp_path / "calm")
    calm, run = records(tmp_path / "calm"), records(tmp_path / "run")
    assert run == calm
    assert all(len(ids) == 1 for ids in calm.values())
    told = json.loads((tmp_path / "calm" / "skips.json").read_text())
    assert told["skipped"]["bad word"] >= 3
    assert told["named"]["bad word"][0].startswith("record 21 is bad")


# ------------------------------------------------------------------------- the script, told to stop


@pytest.fixture
def script(repository, tmp_path) -> Path:
    """The script in a checkout that is set up, with this interpreter."""
    checkout = tmp_path / "checkout"
    for name in ("scripts", ".venv/bin"):
        (checkout / name).mkdir(parents=True)
    done = {"scripts/setup": "", ".venv/bin/python": f'exec "{sys.executable}" "$@"'}
    for name, line in done.items():
        (checkout / name).write_text(f"#!/bin/bash\n{line}\n")
        (checkout / name).chmod(0o755)
    return Path(shutil.copy(repository / "scripts/train-distributed", checkout / "scripts"))


def signalled(script: Path, words: list[str], run_dir: Path, number: int) -> tuple[int, str]:
    """Signal the script alone after a further step; return its exit code and what it wrote."""
    log = run_dir / "log.jsonl"
    begun = log.stat().st_size if log.exists() else 0
    told = run_dir.with_name(f"told-{number}")
    with told.open("w") as stderr:
        environment = os.environ | {"PYTHONPATH": str(TESTS.parent / "src")}
        process = subprocess.Popen([script, *words], env=environment, stderr=stderr)
    try:
        deadline = time.monotonic() + 200  # starting takes a minute on a busy machine
        while not log.exists() or log.stat().st_size == begun:
            assert process.poll() is None, told.read_text()[-6000:]
            assert time.monotonic() < deadline, told.read_text()[-6000:]
            time.sleep(0.1)
        process.send_signal(number)
        return process.wait(timeout=100), told.read_text()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=60)


def test_the_script_told_to_stop_has_all_saved_and_goes_on(script, toy_dir, tmp_path):
    """SIGTERM, as of a cluster that takes its machine back, and Ctrl-C: to the script alone."""
    tar, run_dir = write(tmp_path / "0.tar", Examples().batch(0, 6)), tmp_path / "run"
    words = ["stage3", f"init={toy_dir}", f"data={tar}", "stage.trainable=[aligner.encoder.*]"]
    words += ["global_batch_size=2", "micro_batch=1", "precision=float32", "log_every=1"]
    words += ["--device", "cpu", "--run-dir", str(run_dir)]
    saved = 0
    for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        ended, told = signalled(script, words, run_dir, number)
        assert ended == code, told[-6000:]
        state, refused = checkpoint.latest(run_dir)
        assert refused == []
        assert f"stopped after step {state.step} and saved" in told
        assert state.step > saved
        saved = state.step
        assert len(list(checkpoint.step_directory(run_dir, saved).glob("shard-*"))) == 2
