"""The demo writes one strip of all its pictures and says where it is."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from toys.nano import save_toy_nano


def test_the_demo_writes_a_strip(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    save_toy_nano(tmp_path / "model")
    out = tmp_path / "strip.png"
    arguments = ["--model", str(tmp_path / "model"), "--out", str(out), "--pictures", "2"]
    script = repository / "examples" / "demo.py"
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    demo = runpy.run_path(str(script), run_name="__main__")
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as strip:
        assert strip.width == demo["WORDS_WIDTH"] + 2 * (demo["SIDE"] + demo["MARGIN"])
        # A strip of one colour would have one; words alone give greys.
        assert len(strip.convert("RGB").getcolors(2**24)) > 1000
