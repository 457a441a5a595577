"""A model's directory is data: Python in it, or named by it, does not run."""

import json
import sys
from pathlib import Path

import pytest

from kosmosg.errors import CheckpointError
from kosmosg.pipeline import KosmosGPipeline
from toys.model import toy_pipeline

SNARE = "import pathlib\n(pathlib.Path(__file__).parent / 'ran').touch()\nclass Sly: pass\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    toy_pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ("unet", "unet/sly.py"),  # a component with code of its own
        ("_class_name", "sly.py"),  # a pipeline with code of its own
        ("scheduler", "../sly.py"),  # a module that Python would find
        ("feature_extractor", "../sly.py"),
        ("another", "../sly.py"),
    ],
)
def test_code_that_the_index_names_is_not_run(
    directory: Path, entry: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {entry: ["sly", "Sly"]}))
    snare = directory / place
    snare.write_text(SNARE)
    monkeypatch.syspath_prepend(snare.parent)
    monkeypatch.delitem(sys.modules, "sly", raising=False)
    if entry == "another":
        KosmosGPipeline.from_pretrained(directory)  # it is told to be unknown, and left out
    else:
        with pytest.raises(CheckpointError, match="cannot load"):
            KosmosGPipeline.from_pretrained(directory)
    assert not (snare.parent / "ran").exists()
    assert "sly" not in sys.modules
    __import__("sly")
    assert (snare.parent / "ran").exists(), "the snare must work"
    del sys.modules["sly"]
