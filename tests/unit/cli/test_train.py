"""`kosmosg train`: names, changes, refusals, and one real part in a few steps."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from kosmosg import adapter
from kosmosg.adapter import AdapterConfig
from kosmosg.data.records import Caption
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.kosmosg import KosmosG
from kosmosg.model.mllm import MLLM
from kosmosg.recipes import RECIPES
from kosmosg.toyworld import nano
from toys.model import toy_picture
from toys.shards import write


@pytest.mark.parametrize("name", nano.RECIPES)
def test_every_recipe_prints_a_configuration_that_reads_back(run, here, name):
    code, out, _ = run("train", f"nano-{name}", "--print-config")
    assert code == 0
    assert yaml.safe_load(out)["part"] == name
    (here / "my.yaml").write_text(out)
    assert run("train", "my.yaml", "--print-config") == (0, out, "")


def test_the_foundation_is_its_parts_in_order(run):
    _, out, _ = run("train", "nano-foundation", "--print-config")
    parts = [document["part"] for document in yaml.safe_load_all(out)]
    assert parts == list(nano.FOUNDATION)


@pytest.mark.parametrize("name", RECIPES)
def test_every_full_size_recipe_prints_a_configuration_that_reads_back(run, here, name):
    code, out, _ = run("train", name, "--print-config")
    assert code == 0
    assert yaml.safe_load(out)["train"]["optim"]["warmup_steps"] == 375
    (here / "my.yaml").write_text(out)
    assert run("train", "my.yaml", "--print-config") == (0, out, "")


def test_the_help_names_every_recipe(run):
    _, out, _ = run("train", "--help")
    words = "".join(out.split())
    assert all(f"nano-{name}" in words for name in [*nano.RECIPES, "foundation"])
    assert all(name in words for name in RECIPES)


def test_a_full_size_recipe_changes_by_path_too(run):
    changes = ("init=DIR", "optim.lr=3e-4", "steps=9", "model.base=SD", "data.sources.mine.paths=F")
    code, out, _ = run("train", "stage3", *changes, "--print-config")
    config = yaml.safe_load(out)
    assert code == 0
    assert (config["init"], config["model"]["base"]) == ("DIR", "SD")
    assert (config["train"]["optim"]["lr"], config["train"]["steps"]) == (3e-4, 9)
    assert config["data"]["sources"]["mine"] == {"paths": "F", "weight": 1}


PARTS = ("vision tower", "resampler", "language model", "aligner M", "U-Net", "VAE")
PARTS_THAT_LEARN = ((MLLM, "mllm"), (AlignerNet, "aligner"))
SMALL = (
    "stage.trainable=[aligner.encoder.*, mllm.layers.*]",
    *("global_batch_size=8", "micro_batch=4", "steps=10", "precision=float32"),
)


UNWATCHED = (
    "note: there will be no validation loss and no sheets of samples, as no held-out records are"
    " named; name tars of them: data.validation.NAME.paths=TARS\n"
)


def test_a_dry_run_tells_what_a_run_needs_and_that_all_is_there(run, here, toy_dir):
    for name in ("constructed", "edits", "captions"):
        (here / "data" / name).mkdir(parents=True)
        write(here / "data" / name / "0.tar", [Caption(key="c", text="a cat")])
    words = ("train", "stage3", f"init={toy_dir}", *SMALL, "--dry-run", "--gpus", "2")
    code, out, err = run(*words, "--gpu-kind", "RTX4090", "--utilisation", "0.5")
    assert (code, err) == (0, UNWATCHED)
    rows = {}
    for line in out.splitlines():
        name, *values = re.split(r"  +", line)
        rows.setdefault(name, values)
    parts = [[int(value.replace(",", "")) for value in rows[name]] for name in PARTS]
    assert [sum(column) for column in zip(*parts, strict=True)] == [
        int(value.replace(",", "")) for value in rows["all"]
    ]
    assert parts[0][0] == parts[1][0] == 0  # neither the tower nor the resampler is named above
    assert rows["records, 8 a step"][-1] == "80"
    assert rows["tokens, taking 99 positions and 1.2 pictures a record"] == ["7,920"]
    assert "hours at 50% of 82.6 TFLOP/s" in out
    assert "GiB on each of 2 RTX4090" in out
    gathered, shared = (
        int(rows[name][0].replace(",", ""))
        for name in ("all-gather, of weights", "reduce-scatter, of gradients")
    )
    # Once a step in float32, like the gradients; of two each GPU sends half.
    assert gathered == shared >= 4 * sum(part[0] for part in parts)
    sent = int(rows["sent by each GPU, in rings"][0].replace(",", ""))
    assert sent == pytest.approx(gathered, rel=0.01)


def test_a_dry_run_names_what_is_missing_and_fails(run, here, toy_dir):
    assert here.is_dir()
    code, out, err = run("train", "stage3", f"init={toy_dir}", *SMALL, "--dry-run")
    assert code == 2
    assert "U-Net" in out
    note, *lines = err.splitlines(keepends=True)
    assert note == UNWATCHED
    assert len(lines) == 3
    for line, name in zip(lines, ("constructed", "edits", "captions"), strict=True):
        assert line.startswith(f"missing: data source '{name}': data/{name}: ")
        assert line.endswith(f"data.sources.{name}.paths=FOLDER\n")


def test_a_dry_run_with_held_out_records_has_nothing_to_note(run, here, toy_dir):
    tar = write(here / "0.tar", [Caption(key="c", text="a cat")])
    words = (f"data.sources={{own: {{paths: {tar}}}}}", f"data.validation.own.paths={tar}")
    code, _, err = run("train", "stage3", f"init={toy_dir}", *SMALL, *words, "--dry-run")
    assert (code, err) == (0, "")


def test_a_subjects_dry_run_trains_nothing_and_names_what_is_missing(run, here, toy_dir):
    picture = here / "1.png"
    toy_picture(1).save(picture)
    words = ("train", "subject", "--pictures", str(picture), f"init={toy_dir}", "adapter.rank=2")
    words += ("-o", "dog", "--dry-run", "--gpus", "1", "--gpu-kind", "RTX4090")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert "GiB on each of 1 RTX4090" in out
    with torch.device("meta"):
        model = KosmosG(*(cls(**sizes(toy_dir, name)) for cls, name in PARTS_THAT_LEARN))
    learns = adapter.num_parameters(model, AdapterConfig(rank=2))
    assert re.search(rf"^all +{learns:,} +[\d,]+$", out, re.M)
    code, _, err = run(*words, "no.png", "prior=no/where", f"init={here}")
    assert code == 2
    assert not (here / "dog").exists()
    named = ("no picture no.png", "mllm", "aligner", "unet", "vae", "no tokenizer", "prior.sources")
    assert len(err.splitlines()) == len(named)
    for line, name in zip(err.splitlines(), named, strict=True):
        assert line.startswith("missing: ")
        assert name in line


def sizes(toy_dir, part):
    told = json.loads((toy_dir / part / "config.json").read_text())
    return {name: value for name, value in told.items() if not name.startswith("_")}


def test_a_run_goes_where_it_is_told(run, monkeypatch):
    from kosmosg import recipes

    seen = []

    def train(recipe, run_dir, *, resume):
        seen.append((recipe.train.steps, run_dir, resume))
        return run_dir / "model"

    monkeypatch.setattr(recipes, "train", train)
    assert run("train", "stage2", "steps=5") == (0, "runs/stage2/model\n", "")
    assert run("train", "stage2", "--run-dir", "r", "--resume") == (0, "r/model\n", "")
    assert seen == [(5, Path("runs/stage2"), False), (300_000, Path("r"), True)]


def test_a_run_is_exported_where_it_is_told(run, monkeypatch):
    from kosmosg import recipes
    from kosmosg.train import subject

    seen = []

    def export(recipe, run_dir, out):
        seen.append((recipe.train.steps, run_dir, out))
        return out

    monkeypatch.setattr(recipes, "export", export)
    monkeypatch.setattr(subject, "export", export)
    words = ("steps=5", "--export", "m")
    assert run("train", "stage2", *words) == (0, "m\n", "")
    assert run("train", "stage2", *words, "--run-dir", "r", "--resume") == (0, "m\n", "")
    assert run("train", "subject", *words, "-o", "dog") == (0, "m\n", "")
    assert [run_dir for _, run_dir, _ in seen] == [Path("runs/stage2"), Path("r"), Path("dog")]
    assert {(steps, out) for steps, _, out in seen} == {(5, Path("m"))}


def test_fields_change_by_path_with_and_without_train(run):
    changes = ("optim.lr=3e-4", "train.seed=9", "steps=500", "stage.condition_drop=0.2")
    _, out, _ = run("train", "nano-stage3", *changes, "--device", "cpu", "--print-config")
    config = yaml.safe_load(out)
    assert config["train"]["optim"]["lr"] == 3e-4
    assert config["train"]["seed"] == 9
    assert config["train"]["steps"] == 500
    assert config["train"]["device"] == "cpu"
    assert config["stage"]["condition_drop"] == 0.2


def test_scale_shortens_the_run_and_its_warmup(run):
    _, out, _ = run("train", "nano-stage3", "--scale", "0.02", "--print-config")
    train = yaml.safe_load(out)["train"]
    assert train["steps"] == round(nano.stage3().train.steps * 0.02)
    assert train["optim"]["warmup_steps"] < train["steps"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nano-stge3"], "no recipe 'nano-stge3'; did you mean nano-stage3?"),
        (["dreambooth"], "no recipe 'dreambooth'; the recipes are stage1, stage2, stage3"),
        (["stage2-as-release"], "did you mean stage2-as-released?"),
        (["stage3", "--leg", "2"], "--leg is nano's; stage3 has no use for it"),
        (["stage3", "--scale", "0.1"], "--scale is nano's"),
        (["stage3", "--workspace", "w"], "--workspace is nano's"),
        (["nano-stage3", "--run-dir", "r"], "--run-dir is a full-size recipe's"),
        (["nano-stage3", "--export", "m"], "--export is a full-size recipe's"),
        (["stage3", "--export", "m", "--dry-run"], "--export writes a model, which --dry-run"),
        (["stage3", "--export", "m"], "model at runs/stage2/model"),
        (["subject", "--export", "m"], "name the directory of the run, which gets the adapter"),
        (["nano-stage3", "--dry-run"], "--dry-run is a full-size recipe's"),
        (["subject", "--run-dir", "r"], "--run-dir is of other recipes; subject has no use for it"),
        (["stage3", "--dry-run", "--gpu-kind", "B9"], "no GPU kind 'B9'; the kinds are V100-32GB"),
        (["stage3", "stage.loss_weighting=sds"], "loss_weighting = 'sds'"),
        (["stage3", "model.alinger.dropout=0"], "no field 'model.alinger.dropout'"),
        (["none.yaml"], "none.yaml: No such file or directory"),
        (["nano-stage3", "optm.lr=3"], "no field 'optm.lr'"),
        (["nano-stage3", "optim.lrr=3"], "did you mean optim.lr?"),
        (["nano-stage3", "optim.lr=much"], "optim.lr = 'much'"),
        (["nano-stage3", "stage.min_snr_gama=3"], "did you mean stage.min_snr_gamma?"),
        (["nano-stage3", "--device", "tpu"], "tpu"),
        (["nano-stage3", "--leg", "0"], "0"),
        (["nano-stage3"], "order is"),
    ],
)
def test_what_cannot_work_is_one_line(run, here, words, message):
    assert here.is_dir()
    code, out, err = run("train", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_part_trains_stops_nowhere_and_is_not_overwritten(run, here):
    """The judge is the smallest part."""
    words = ("train", "nano-judge", "steps=2", "global_batch_size=2", "micro_batch=2")
    small = ("validation_records=2", "precision=float32", "--workspace", "w", "--device", "cpu")
    code, out, err = run(*words, *small)
    assert (code, out) == (0, "w/model\n")
    assert "Writing" not in err
    assert "Loading" not in err
    assert (here / "w" / "model" / "judge" / "config.json").exists()
    code, _, err = run(*words, *small)
    assert code == 2
    assert "add --resume to continue" in err
    code, _, err = run(*words, *small, "seed=5", "--resume")
    assert code == 2
    assert "train.seed = 77, now it is 5" in err
    assert run(*words, *small, "--resume")[0] == 0
