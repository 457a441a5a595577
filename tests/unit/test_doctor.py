"""`kosmosg doctor` finds what is wrong and says what to type."""

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

from kosmosg import cli, doctor


@pytest.fixture
def nano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shipped model with every part, as far as a doctor looks."""
    directory = tmp_path / "nano"
    monkeypatch.setattr(doctor, "NANO", directory)
    for part in ("mllm", "unet", "tokenizer"):
        (directory / part).mkdir(parents=True)
        (directory / part / "file").touch()
    index = {"_class_name": "P", "mllm": ["k", "M"], "unet": ["d", "U"], "tokenizer": [None, None]}
    (directory / "model_index.json").write_text(json.dumps(index))
    return directory


def wrong() -> list[doctor.Finding]:
    return [finding for finding in doctor.examine() if finding.remedy]


@pytest.mark.usefixtures("nano")
def test_this_installation_is_well(capsys: pytest.CaptureFixture[str]):
    assert wrong() == []
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "ok     torch computes on" in out
    assert "WRONG" not in out


def test_a_model_that_is_not_whole(nano: Path, capsys: pytest.CaptureFixture[str]):
    (nano / "unet" / "file").unlink()
    assert [finding.what for finding in wrong()] == ["the shipped model lacks unet"]
    (nano / "model_index.json").unlink()
    assert cli.main(["doctor"]) == 1
    assert "install kosmosg again" in capsys.readouterr().out


@pytest.mark.usefixtures("nano")
def test_a_torchvision_of_another_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "torchvision.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    (finding,) = wrong()
    assert "nms does not exist" in finding.what
    assert finding.remedy.startswith("pip uninstall torchvision")


@pytest.mark.usefixtures("nano")
def test_packages_that_are_missing_or_too_old(monkeypatch: pytest.MonkeyPatch):
    lines = ["einops>=99", "nowhere-to-be-found>=1", "absent>=1; extra == 'train'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _name: lines)
    old, missing = wrong()
    assert old.remedy == "pip install -c constraints.txt 'einops>=99'"
    assert missing.what == "nowhere-to-be-found is missing"
