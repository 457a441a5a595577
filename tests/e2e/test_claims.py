"""Every experiment of `kosmosg claims` once: a model of random weights, the least budget."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kosmosg.cli import main
from kosmosg.toyworld.claims import run
from toys.nano import save_toy_nano


def test_every_claim_is_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_toy_nano(tmp_path / "model")
    out = tmp_path / "claims"
    given = ["claims", "--quick", "--model", str(tmp_path / "model"), "--out", str(out)]
    given += ["--limit", "2", "--steps", "1"]
    assert main([*given, "--only", "alignment-full"]) == 0
    trained = (out / "rows" / "alignment-full.json").read_bytes()
    assert not list(out.rglob("checkpoints"))
    capsys.readouterr()
    assert main(given) == 0
    said = capsys.readouterr()
    assert f"{len(run.EXPERIMENTS) - 1} rows, about" in said.err
    assert (out / "rows" / "alignment-full.json").read_bytes() == trained  # kept, not again
    for one in run.EXPERIMENTS:
        row = json.loads((out / "rows" / f"{one.name}.json").read_text())
        assert f"{one.name}: {one.says}" in said.out
        assert row["scores"].keys() >= row["judge"].keys()
        assert row["config"]["num_inference_steps"] == 1
        assert (out / "pictures" / f"{one.name}.jpg").is_file()
    page = (out / "claims.md").read_text()
    assert "Not measured yet" not in page
    assert all(f"\n| {one.name}" in page for one in run.EXPERIMENTS)


def test_a_row_that_was_stopped_in_training_goes_on_and_is_the_same(
    tmp_path: Path, repository: Path
) -> None:
    save_toy_nano(tmp_path / "model")
    words = ["claims", "--quick", "--model", str(tmp_path / "model"), "--scale", "0.02"]
    words += ["--only", "alignment-full", "--out"]
    out = tmp_path / "stopped"
    environment = os.environ | {"PYTHONPATH": f"{repository}/src"}
    process = subprocess.Popen(
        [sys.executable, "-m", "kosmosg", *words, str(out)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = out / "work" / "alignment-full" / "seed-7" / "log.jsonl"
    end = time.monotonic() + 300
    while not (log.exists() and log.read_text()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "no step was ever made"
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert "kosmosg claims goes on with the same command" in said
    assert not (out / "rows").exists()

    assert main([*words, str(out)]) == 0
    assert main([*words, str(tmp_path / "whole")]) == 0
    ours, whole = (
        json.loads((folder / "rows" / "alignment-full.json").read_text())
        for folder in (out, tmp_path / "whole")
    )
    for name in ("scores", "judge", "config", "n", "seeds"):
        assert ours[name] == whole[name]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [10, 20, 30, 40]  # none made twice
    assert [line["event"] for line in lines if "event" in line] == ["resumed"]
