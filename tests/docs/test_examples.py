"""Every example runs from beginning to end, and writes its pictures."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from toys.nano import save_toy_nano

WRITES = {
    "batch": 6,
    "conditions": 3,
    "picture_in_prompt": 1,
    "stable_diffusion": 1,
    "tools": 4,
    "watch": 1,
}


def test_every_example_is_tried(repository: Path):
    names = {path.stem for path in (repository / "examples").glob("*.py")}
    assert names - {"demo", "controls"} == set(WRITES)  # which tests/e2e and the next test try


@pytest.mark.parametrize("name", WRITES)
def test_an_example_runs(
    name: str,
    repository: Path,
    toy_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """With the toy model: nano's pictures are another matter than whether the code runs."""
    script = repository / "examples" / f"{name}.py"
    arguments = [str(toy_dir), str(repository / "docs/images/creature.png")]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    assert len(list(tmp_path.glob("*.png"))) == WRITES[name]


def test_the_controls_are_drawn_and_measured(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    save_toy_nano(tmp_path / "nano")
    script = repository / "examples" / "controls.py"
    options = ["--model", str(tmp_path / "nano"), "--out", str(tmp_path), "--measure", "1"]
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    capsys.readouterr()
    controls = runpy.run_path(str(script), run_name="__main__")["CONTROLS"]
    strips = {path.name for path in tmp_path.glob("*.jpg")}
    assert strips == {f"controls-{control}.jpg" for control in controls}
    measured = [line for line in capsys.readouterr().out.splitlines() if line and "," not in line]
    rows = [line for line in measured if not line.startswith(" ")]
    assert len(rows) == sum(len(columns) for columns in controls.values())


def test_the_drawn_controls_stand_in_the_documentation(repository: Path):
    strips = {path.name for path in (repository / "docs/images").glob("controls-*.jpg")}
    page = (repository / "docs/controls.md").read_text()
    assert strips == set(re.findall(r"controls-[a-z-]+\.jpg", page))
    assert all((repository / "docs/images" / name).stat().st_size <= 150_000 for name in strips)
