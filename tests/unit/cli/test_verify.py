"""`kosmosg verify`: exit codes, and who is named when a number, a file or a size is off."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from toys.golden import CONFIG, write_golden

KEPT = Path(__file__).parents[2] / "golden" / "data"


@pytest.fixture(scope="module")
def toy_golden(tmp_path_factory):
    directory = tmp_path_factory.mktemp("golden") / "toy"
    write_golden(directory)
    return directory


@pytest.fixture
def folder(tmp_path, toy_golden):
    """A copy of the folder of another size, to be spoilt."""
    return Path(shutil.copytree(toy_golden, tmp_path / "golden"))


def failures(out):
    """Return file and words of each line that failed."""
    lines = [line for line in out.splitlines() if "  FAILED  " in line]
    return [(line.split()[0], line.partition("  FAILED  ")[2]) for line in lines]


def change(path, key, amount):
    tensors = load_file(path)
    tensors[key].view(-1)[0] += amount
    save_file(tensors, path)


def test_the_released_numbers_kept_here_are_reproduced(run):
    code, out, err = run("verify", KEPT)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 1 + 9 + 1
    assert lines[-1] == "9 files, 66 comparisons: all within tolerance"
    assert lines[0].split() == ["case", "max", "error", "tolerance", "what"]


def test_one_changed_number_fails_and_names_the_case(run, tmp_path):
    folder = shutil.copytree(KEPT, tmp_path / "golden")
    change(folder / "cases/one_image.safetensors", "out.tap.mllm.layer1", 1e-3)
    code, out, _ = run("verify", folder)
    assert code == 1
    assert failures(out) == [("cases/one_image.safetensors", "tap.mllm.layer1")]
    assert out.splitlines()[-1] == "9 files, 66 comparisons: 1 FAILED"


def test_sizes_come_from_the_folder(run, toy_golden):
    code, out, _ = run("verify", toy_golden)
    assert (code, failures(out)) == (0, [])
    assert out.splitlines()[-1].startswith("11 files, ")


@pytest.mark.parametrize(
    ("name", "key", "what"),
    [
        ("one_of_two", "out.tap.vit.block0", "tap.vit.block0"),
        ("one_of_two", "in.images", "tap."),
        ("encode_condition.neg", "out.condition", "condition"),
        ("align.fixed", "out.tap.aligner.decoder.out", "tap.aligner.decoder.out"),
        ("align.cliptext", "out.clip_embed", "clip_embed"),
        ("diff_loss", "out.diff_loss", "diff_loss"),
        ("vae", "out.latent_mean", "latent_mean"),
        ("sample.pndm", "out.latents", "latents"),
        ("sched.ddim.4", "in.timesteps", "in.timesteps"),
    ],
)
def test_a_change_in_any_kind_of_case_fails(run, folder, name, key, what):
    change(folder / f"cases/{name}.safetensors", key, 1 if key == "in.timesteps" else 0.01)
    code, out, _ = run("verify", folder)
    assert code == 1
    failed = failures(out)
    assert {file for file, _ in failed} == {f"cases/{name}.safetensors"}
    assert failed[0][1].startswith(what)


def test_changed_ids_and_pixels_fail(run, folder):
    recorded = json.loads((folder / "tokenizer.json").read_text())
    recorded["cases"][0]["src_tokens"][1] += 1
    (folder / "tokenizer.json").write_text(json.dumps(recorded))
    change(folder / "image_transform.safetensors", "noise.gpt_s3", 1e-3)
    code, out, _ = run("verify", folder)
    assert code == 1
    assert failures(out) == [
        ("image_transform.safetensors", "noise gpt: one pixel in 3"),
        ("tokenizer.json", "prompt 0 'a<i>red cat': ids: at 1: ours [4], theirs [5]"),
    ]


@pytest.mark.parametrize("half", [False, True])
def test_a_checkpoint_of_any_size(run, folder, half):
    path = folder / "checkpoint_toy.pt"
    data = torch.load(path, weights_only=True)
    if half:
        data["model"] = {name: value.half() for name, value in data["model"].items()}
        torch.save(data, path)
    code, out, _ = run("verify", folder)
    assert (code, failures(out)) == (0, [])

    name = "aligner.encoder.layer_norm.bias"
    data["model"][name][0] += 1e-2
    torch.save(data, path)
    code, out, _ = run("verify", folder)
    assert code == 1
    assert failures(out) == [("checkpoint_toy.pt", name), ("checkpoint_toy.pt", "condition")]

    del data["model"][name]
    torch.save(data, path)
    code, out, _ = run("verify", folder)
    assert code == 1
    first, second, last = [what for _, what in failures(out)]
    assert first.startswith("names of weights")
    assert second.startswith("shapes of weights")
    assert last.startswith(f"not checked: there is no '{name}'")


def test_a_checkpoint_that_would_run_something_is_refused(run, folder):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (folder / "touched",))

    torch.save({"model": Evil()}, folder / "checkpoint_toy.pt")
    code, out, _ = run("verify", folder)
    assert code == 1
    assert [file for file, _ in failures(out)] == ["checkpoint_toy.pt"]
    assert "is refused" in out
    assert not (folder / "touched").exists()


def test_nothing_is_skipped_in_silence(run, folder):
    (folder / "cases/new.safetensors").write_bytes(
        (folder / "cases/vae.safetensors").read_bytes()[:100]
    )
    save_file({"in.sound": torch.zeros(2)}, folder / "cases/other.safetensors")
    (folder / "speech.json").write_text("{}")
    (folder / "loaders.json").write_text('{"openimage.drop0.5": []}')
    (folder / "images/stray.png").write_bytes(b"")
    path = folder / "cases/vae.safetensors"
    save_file(load_file(path) | {"out.more": torch.zeros(1)}, path)
    (folder / "align_grad_norms.json").write_text('{"align.gone": {}}')
    code, out, _ = run("verify", folder)
    assert code == 1
    failed = dict(failures(out))
    assert failed["cases/new.safetensors"].startswith("not checked: ")
    assert "no kind of case has these tensors: in.sound" in failed["cases/other.safetensors"]
    assert failed["cases/vae.safetensors"] == "not checked: no part of kosmosg computes out.more"
    assert failed["speech.json"] == "not checked: no part of kosmosg knows such a file"
    assert "holds nothing of it" in failed["images/stray.png"]
    assert failed["align_grad_norms.json"].startswith("there is a case align.gone")
    assert failed["loaders.json"] == "not checked: no part of kosmosg makes openimage.drop0.5"
    assert len(failed) == 7


def test_a_file_that_holds_nothing_is_a_failure(run, folder):
    (folder / "loaders.json").write_text("{}")
    code, out, _ = run("verify", folder)
    assert code == 1
    assert failures(out) == [("loaders.json", "not checked: it holds nothing to compare")]


def test_a_recording_may_leave_out_layers_but_no_result(run, folder):
    path = folder / "cases/one_of_two.safetensors"
    tensors = load_file(path)
    del tensors["out.tap.mllm.layer0"]
    save_file(tensors, path)
    assert run("verify", folder)[0] == 0
    del tensors["out.logits"]
    save_file(tensors, path)
    code, out, _ = run("verify", folder)
    assert code == 1
    assert [what for _, what in failures(out)] == [
        "not checked: we compute out.logits, which the file lacks"
    ]


def test_a_case_of_another_size_than_config_json_is_a_failure_not_a_crash(run, folder):
    config = CONFIG | {"decoder_embed_dim": 54}
    (folder / "config.json").write_text(json.dumps(config))
    code, out, err = run("verify", folder)
    assert (code, err) == (1, "")
    files = {file for file, _ in failures(out)}
    assert "checkpoint_toy.pt" in files
    assert {"cases/one_of_two.safetensors", "cases/align.fixed.safetensors"} <= files
    assert "cases/vae.safetensors" not in files


def test_json_has_every_comparison(run, folder):
    change(folder / "cases/vae.safetensors", "out.latent_mean", float("nan"))
    code, out, _ = run("verify", folder, "--json")
    rows = json.loads(out)
    assert code == 1
    assert len(rows) > 60
    assert {"case", "what", "error", "tolerance", "ok", "note"} == rows[0].keys()
    failed = [row for row in rows if not row["ok"]]
    assert [row["what"] for row in failed] == ["latent_mean", "latent_mean (from a scaled sample)"]
    assert failed[0]["error"] is None


@pytest.mark.parametrize("tokenizer", ["none", "other"])
def test_ids_need_their_tokenizer(run, folder, tmp_path, tokenizer):
    shutil.move(folder / "tokenizer", tmp_path / "elsewhere")
    code, out, _ = run("verify", folder)
    assert code == 1
    assert [file for file, _ in failures(out)] == ["tokenizer.json"]
    assert "name its directory with --tokenizer" in out
    more = ["--tokenizer", tmp_path / "elsewhere"] if tokenizer == "other" else []
    assert run("verify", folder, *more)[0] == (0 if more else 1)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot read"),
        (lambda folder: (folder / "config.json").write_text("{}"), "FILL RULE (v1)"),
    ],
)
def test_a_folder_that_is_none_is_one_line(run, folder, spoil, words):
    spoil(folder)
    code, out, err = run("verify", folder)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_folder_without_cases_verifies_nothing(run, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    code, _, err = run("verify", tmp_path)
    assert code == 2
    assert "holds no case" in err
