import json
from pathlib import Path

import pytest

from toys.files import toy_architecture
from toys.model import toy_pipeline


@pytest.fixture
def folder(toy_dir: Path, tmp_path: Path, run) -> Path:
    """A toy checkpoint, its tokenizer and its architecture."""
    code, out, err = run("convert", "--to-original", toy_dir, "-o", tmp_path / "final.pt")
    assert (code, out, err) == (0, f"{tmp_path / 'final.pt'}\n", "")
    toy_pipeline().tokenizer.save_pretrained(tmp_path)
    from kosmosg import config

    config.save(toy_architecture(), tmp_path / "toy.json")
    return tmp_path


def test_a_checkpoint_becomes_a_model_that_generates(folder: Path, run) -> None:
    made = folder / "made"
    options = ["--architecture", folder / "toy.json", "--dtype", "bfloat16"]
    code, out, err = run("convert", folder / "final.pt", "-o", made, *options)
    assert (code, out) == (0, f"{made}\n"), err
    config = json.loads((made / "generation_config.json").read_text())
    assert config["num_inference_steps"] == 50
    picture = folder / "out.png"
    code, _, err = run("generate", "--model", made, "a red cat", "--steps", "2", "-o", picture)
    assert code == 0, err
    assert picture.is_file()
    code, _, err = run("convert", folder / "final.pt", "-o", made, *options)
    assert code == 2
    assert err.startswith(f"kosmosg: {made} exists;")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.pt"], "cannot read none.pt: No such file or directory"),
        (["final.pt"], "the vision tower is 16 wide"),
        (["final.pt", "--architecture", "toy.json", "--base", "nowhere"], "no Stable Diffusion at"),
        (["final.pt", "--architecture", "none.json"], "none.json: No such file"),
        (["final.pt", "--architecture", "toy.json", "--tokenizer", "x"], "dict.txt, are not in x"),
        (["final.pt", "--dtype", "float8"], "'float8'"),
        (["final.pt", "--to-original", "--dtype", "float16"], "--to-original writes the directory"),
        (["none", "--to-original"], "no model at none: it is not a directory"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, folder: Path, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    code, out, err = run("convert", *words, "-o", "made")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(folder.iterdir()) == before
