"""Every example runs from beginning to end, and writes its pictures."""

import runpy
import sys
from pathlib import Path

import pytest

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
    assert names - {"demo"} == set(WRITES)  # demo is tried by tests/e2e


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
