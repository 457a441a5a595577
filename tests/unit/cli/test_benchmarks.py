import json
from pathlib import Path

import pytest

from kosmosg.evaluate import result
from toys.benchmarks import save_coco, save_dreambench
from toys.construct import save_clipseg
from toys.encoders import save_all
from toys.model import WORDS, toy_pipeline


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_all(tmp_path_factory.mktemp("encoders") / "weights")


def test_dreambench_is_drawn_scored_gone_on_with_and_compared(run, weights, tmp_path):
    toy_pipeline(words=f"{WORDS} jungle beach").save_pretrained(tmp_path / "model")
    dataset = save_dreambench(tmp_path / "dataset")
    words = ["evaluate", "dreambench", dataset, "--model", tmp_path / "model", "--weights", weights]
    words += ["--steps", "2", "--limit", "3", "--batch", "2", "--device", "cpu"]
    code, out, err = run(*words, "-o", tmp_path / "run")
    assert code == 0, err
    found = result.load(tmp_path / "run")
    assert found.num_pictures == 12
    assert set(found.scores) == {"dino", "clip_i", "clip_t", "near_copies"}
    assert "real pictures" in out
    assert "0.694" in (tmp_path / "run" / "report.html").read_text()
    pictures = sorted((tmp_path / "run" / "pictures").rglob("*.png"))
    assert len(pictures) == 12
    pictures[5].unlink()
    kept = pictures[11].stat().st_mtime_ns
    assert run(*words, "-o", tmp_path / "run")[0] == 0
    assert pictures[11].stat().st_mtime_ns == kept
    assert result.load(tmp_path / "run") == found
    code, _, err = run(*words, "-o", tmp_path / "run", "--steps", "3")
    assert code == 2
    assert "holds pictures drawn otherwise" in err
    assert run(*words, "-o", tmp_path / "other", "--as-released", "--batch", "5")[0] == 0
    code, out, _ = run("evaluate", "compare", tmp_path / "run", tmp_path / "run")
    assert (code, out.split()[3]) == (0, "+0.000")
    code, _, err = run("evaluate", "compare", tmp_path / "run", tmp_path / "other")
    assert code == 2
    assert "do not compare: drawing." in err


def test_coco_is_drawn_and_measured(run, toy_dir, weights, tmp_path):
    dataset = save_coco(tmp_path / "coco")
    words = ["evaluate", "coco", dataset, "--model", toy_dir, "--weights", weights, "--limit", "4"]
    for protocol in ("clean", "as-released"):
        out_dir = tmp_path / protocol
        code, out, err = run(
            *words, "--protocol", protocol, "--steps", "2", "--device", "cpu", "-o", out_dir
        )
        assert code == 0, err
        found = result.load(out_dir)
        assert found.scores["fid"].mean > 0
        assert found.protocol["num_real"] == {"clean": 4, "as-released": 12}[protocol]
        assert found.drawing["noise"] == {"clean": "seed", "as-released": "released"}[protocol]
        assert found.drawing["seeds"].startswith({"clean": "each", "as-released": "0"}[protocol])
        assert (out_dir / "report.html").read_text().count("<img") == 4
        assert "biased upwards" in err
        assert out.split()[-1].endswith("report.html")


def test_foregrounds_and_pairs_are_drawn_and_scored(run, weights, tmp_path):
    toy_pipeline(words=f"{WORDS} jungle and").save_pretrained(tmp_path / "model")
    words = ["evaluate", "dreambench", save_dreambench(tmp_path / "dataset"), "--device", "cpu"]
    words += ["--model", tmp_path / "model", "--weights", weights, "--steps", "2", "--limit", "1"]
    clipseg = ["--protocol", "foreground-masked", "--clipseg", save_clipseg(tmp_path / "clipseg")]
    code, _, err = run(*words, *clipseg, "-o", tmp_path / "masked")
    assert code == 0, err
    found = result.load(tmp_path / "masked")
    assert found.protocol["compared_with"].endswith("backgrounds of both made white")
    assert (found.num_pictures, set(found.oracle)) == (4, {"dino", "clip_i"})

    shown = [f"./dreambooth/dataset/{name}.jpg" for name in ("dog/02", "can/01")]
    pairs = [{"prompt": "a dog and a can in the jungle", "image_paths": shown}]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    given = ["--protocol", "uno-multi", "--pairs", tmp_path / "pairs.json"]
    code, _, err = run(*words, *given, "-o", tmp_path / "pairs")
    assert code == 0, err
    found = result.load(tmp_path / "pairs")
    assert (found.num_pictures, found.rows[5].subject) == (6, "dog + can")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dreambench", "x", "--protocol", "foreground-masked"], "needs --clipseg DIR"),
        (["dreambench", "x", "--as-released", "--batch", "4"], "batches have 5 prompts"),
        (["coco", "x", "--protocol", "as-released", "--batch", "4"], "have 16 captions"),
    ],
)
def test_options_that_cannot_work_are_refused(run, tmp_path, words, message):
    code, _, err = run("evaluate", *words, "-o", tmp_path / "run")
    assert code == 2
    assert message in err
