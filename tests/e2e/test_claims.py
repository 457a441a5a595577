"""Every experiment of `kosmosg claims` once: a model of random weights, the least budget."""

import json
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
