"""`kosmosg train`: names, changes, refusals, and one real part in a few steps."""

import pytest
import yaml

from kosmosg.toyworld import nano


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


def test_the_help_names_every_recipe(run):
    _, out, _ = run("train", "--help")
    words = "".join(out.split())
    assert all(f"nano-{name}" in words for name in [*nano.RECIPES, "foundation"])


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
        (["dreambooth"], "no recipe 'dreambooth'; the recipes are nano-foundation, nano-vae"),
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
    code, out, _ = run(*words, *small)
    assert (code, out) == (0, "w/model\n")
    assert (here / "w" / "model" / "judge" / "config.json").exists()
    code, _, err = run(*words, *small)
    assert code == 2
    assert "add --resume to continue" in err
    code, _, err = run(*words, *small, "seed=5", "--resume")
    assert code == 2
    assert "train.seed = 77, now it is 5" in err
    assert run(*words, *small, "--resume")[0] == 0
