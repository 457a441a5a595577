"""The paper's numbers, one by one; what learns at full size, name by name; hours as told."""

import dataclasses
import functools
import json
import re
from pathlib import Path

import pytest
import torch

from kosmosg import config, recipes
from kosmosg.convert import our_name
from kosmosg.data.packing import SEQ_LEN
from kosmosg.errors import CheckpointError
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.kosmosg import KosmosG
from kosmosg.model.mllm import MLLM
from kosmosg.recipes import RECIPES, Recipe
from kosmosg.toyworld import nano
from kosmosg.train import arithmetic, readiness, shapes, start
from kosmosg.train.optim import learning_rate
from kosmosg.train.run import Parts, RunConfig, run
from kosmosg.train.stage import freeze_except
from toys.stages import Captions, composed, toys
from toys.training import train_config


@pytest.mark.parametrize("name", RECIPES)
def test_what_all_stages_share(name: str) -> None:
    """Appendix A; NUMERICS section 8 for epsilon and clipping, of which the paper says nothing."""
    optim = RECIPES[name]().train.optim
    assert optim.betas == (0.9, 0.98)
    assert optim.weight_decay == 0.01
    assert optim.warmup_steps == 375
    assert optim.schedule == "linear"
    assert optim.total_steps is None
    assert optim.eps == 1e-6
    assert optim.clip_norm == 2.0
    assert optim.eps_scale == ("raw" if "released" in name else "corrected")
    precision = RECIPES[name]().train.precision
    assert precision == ("float16" if "released" in name else "bfloat16")


@pytest.mark.parametrize(
    ("name", "steps", "batch", "lr"),
    [
        ("stage1", 300_000, 588, 2e-4),
        ("stage2", 300_000, 3584, 1e-3),
        ("stage2-as-released", 300_000, 3584, 1e-3),
        ("stage3", 200_000, 1024, 1e-3),
        ("stage3-as-released", 200_000, 1024, 1e-3),
    ],
)
def test_steps_batches_and_rates_are_appendix_a(
    name: str, steps: int, batch: int, lr: float
) -> None:
    train = RECIPES[name]().train
    assert (train.steps, train.global_batch_size, train.optim.lr) == (steps, batch, lr)
    assert learning_rate(train.optim, 375, steps) == pytest.approx(lr)
    assert learning_rate(train.optim, steps, steps) == 0
    assert train.ema is None


def test_totals_are_those_that_the_paper_tells() -> None:
    one, two, three = (recipes.stage1(), recipes.stage2(), recipes.stage3())
    assert one.data.row == SEQ_LEN == 2048
    tokens = one.train.global_batch_size * SEQ_LEN
    assert tokens == pytest.approx(1.2e6, rel=0.01)
    assert tokens * one.train.steps == pytest.approx(360e9, rel=0.01)
    weights = {name: source.weight for name, source in one.data.sources.items()}
    each = {name: tokens * weight / sum(weights.values()) for name, weight in weights.items()}
    assert each == pytest.approx({"text": 0.5e6, "pairs": 0.5e6, "interleaved": 0.2e6}, rel=0.01)
    # Each batch holds these shares exactly: it is whole blocks of the blend.
    assert one.train.global_batch_size % sum(weights.values()) == 0
    assert two.train.global_batch_size * two.train.steps == pytest.approx(1e9, rel=0.1)
    assert three.train.global_batch_size * three.train.steps == pytest.approx(200e6, rel=0.03)


def test_stage_3_blends_two_two_one() -> None:
    for recipe, drop in ((recipes.stage3(), "entity"), (recipes.stage3_as_released(), "sample")):
        weights = {name: source.weight for name, source in recipe.data.sources.items()}
        assert weights == {"constructed": 2, "edits": 2, "captions": 1}
        assert recipe.data.drop == drop
        assert recipe.stage.condition_drop == 0.1
        assert recipe.stage.loss_weighting == "uniform"


def test_dropout_is_the_papers_and_the_releases() -> None:
    """.1 in all stages by the paper; none in the release's AlignerNet (NUMERICS section 13)."""
    with torch.device("meta"):
        made = MLLM(**recipes.stage1().model.mllm), AlignerNet(**recipes.stage2().model.aligner)
        released = AlignerNet(**recipes.stage2_as_released().model.aligner)
    for model, rate in zip((*made, released), (0.1, 0.1, 0.0), strict=True):
        rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        assert rates == {rate}


def test_stage_2_as_released_counts_pads_with_dropout_on() -> None:
    ours, theirs = recipes.stage2().stage, recipes.stage2_as_released().stage
    assert (ours.padding, ours.mllm) == ("masked", "eval")
    assert (theirs.padding, theirs.mllm) == ("released", "train")
    assert ours.reconstruction_weight == theirs.reconstruction_weight == 1.0
    # The loss depends on the micro-batch there, which was a GPU's: 64 of them.
    assert recipes.stage2_as_released().train.micro_batch * 64 == 3584
    assert recipes.stage3_as_released().train.micro_batch * 64 == 1024


# ------------------------------------------------------------------------------ what learns


@functools.cache
def learning(name: str) -> dict[str, int]:
    """What learns in a recipe at full size, and how many numbers each has."""
    recipe = RECIPES[name]()
    arguments = {**recipe.model.aligner, "with_reconstruction": recipe.stage.kind == "align"}
    with torch.device("meta"):
        mllm = MLLM(**recipe.model.mllm)
        model = mllm if recipe.stage.kind == "language" else KosmosG(mllm, AlignerNet(**arguments))
    names = freeze_except(model, recipe.stage.trainable)
    parameters = dict(model.named_parameters())
    return {name: parameters[name].numel() for name in names}


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("stage2", "trainable_full_align.json", 476_031_488),
        ("stage2-as-released", "trainable_full_align.json", 476_031_488),
        ("stage3", "trainable_full_final.json", 1_597_256_192),
        ("stage3-as-released", "trainable_full_final.json", 1_597_256_192),
    ],
)
def test_what_learns_is_what_the_release_trains(
    name: str, file: str, count: int, shared_dir: Path
) -> None:
    theirs = set()
    for released in json.loads((shared_dir / "golden" / file).read_text(encoding="utf-8")):
        try:
            theirs.add(our_name(released))
        except CheckpointError:  # of blocks that have no use in trained checkpoints
            assert ".attn." in released, released
    assert learning(name).keys() == theirs
    assert sum(learning(name).values()) == count


def test_stage_1_trains_the_mllm_but_for_clip_whose_last_layer_learns() -> None:
    jointly = learning("stage3")
    words = {n.removeprefix("mllm."): c for n, c in jointly.items() if n.startswith("mllm.")}
    assert learning("stage1") == words
    layers = {name.split(".")[4] for name in words if name.startswith("vision.clip.encoder.")}
    assert layers == {"23"}


# ------------------------------------------------------------------------------- ablations


def differences(one: Recipe, other: Recipe) -> set[str]:
    def leaves(tree: object, prefix: str = "") -> dict[str, object]:
        if not isinstance(tree, dict) or not tree:
            return {prefix: tree}
        inner = (leaves(value, f"{prefix}.{name}").items() for name, value in tree.items())
        return {path: value for items in inner for path, value in items}

    a, b = leaves(config.to_dict(one)), leaves(config.to_dict(other))
    return {path.lstrip(".") for path in a.keys() | b.keys() if a.get(path) != b.get(path)}


@pytest.mark.parametrize(
    ("name", "of", "changed"),
    [
        ("ablation-decoder-only", "stage2", {"model.aligner.stacks"}),
        ("ablation-12-layers", "stage2", {"model.aligner.num_layers"}),
        ("ablation-24-layers", "stage2", {"model.aligner.num_layers"}),
        (
            "ablation-e2e-without-aligner",
            "ablation-e2e",
            {"model.aligner.stacks", "model.aligner.dropout"},
        ),
    ],
)
def test_an_ablation_changes_one_thing(name: str, of: str, changed: set[str]) -> None:
    assert differences(RECIPES[name](), RECIPES[of]()) == changed


def test_end_to_end_is_stage_3_without_a_stage_2() -> None:
    end_to_end = recipes.ablation_e2e()
    assert end_to_end.stage == recipes.stage3().stage
    assert end_to_end.init == recipes.stage2().init
    assert end_to_end.data == recipes.stage2().data
    assert end_to_end.model.new == ("aligner",)
    assert end_to_end.train.steps == round(recipes.stage3().train.steps / 3)
    assert "aligner.encoder.project.weight" in learning("ablation-e2e-without-aligner")
    assert not any("layers" in n for n in learning("ablation-e2e-without-aligner") if "align" in n)


def test_the_layers_of_table_2_are_those_of_both_stacks() -> None:
    for name, layers in (("12-layers", 12), ("24-layers", 24), ("decoder-only", 12)):
        names = [n for n in learning(f"ablation-{name}") if n.startswith("aligner.encoder.")]
        found = {tuple(n.split(".")[2:4]) for n in names if "layers." in n}
        assert len(found) == layers
    assert learning("ablation-24-layers") == learning("stage2")


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("ablation")])
def test_an_ablation_learns_at_toy_size(name: str, tmp_path: Path) -> None:
    """Its own stage and AlignerNet's own form; every part of M, and of N, moves."""
    recipe, toy = RECIPES[name](), toys()
    arguments = {key: value for key, value in toy.model.aligner.config.items() if key[0] != "_"}
    form = {key: value for key, value in recipe.model.aligner.items() if key != "num_layers"}
    arguments |= {"num_layers": 2, **form, "with_reconstruction": recipe.stage.kind == "align"}
    torch.manual_seed(0)
    model = KosmosG(toy.model.mllm, AlignerNet(**arguments))
    before = {name: value.clone() for name, value in model.named_parameters()}
    parts = Parts(
        model=model,
        tokenizer=toy.tokenizer,
        stream=Captions() if recipe.stage.kind == "align" else composed(),
        text_tower=toy.text_tower,
        image_decoder=toy.image_decoder,
    )
    train = train_config(steps=2, ema=None, global_batch_size=4, micro_batch=2)
    run(RunConfig(stage=recipe.stage, train=train), parts, tmp_path / "run")
    still = {name for name, value in model.named_parameters() if value.equal(before[name])}
    moved = before.keys() - still
    # Of tables, only the rows that were read would learn; decay moves the others too.
    assert {name for name in before if name.startswith("aligner.")} <= moved
    assert any(name.startswith("mllm.layers") for name in moved) == ("e2e" in name)


# ---------------------------------------------------------------------------- as they are told


@functools.cache
def needed(name: str) -> arithmetic.Need:
    recipe = RECIPES[name]()
    return arithmetic.need(
        recipe.stage,
        recipe.train,
        readiness.sizes(init=None, model=dataclasses.replace(recipe.model, base=None)),
        record=shapes.mean_record(recipe.stage, recipe.data),
        gpus=64,
    )


def hours(name: str, *, checkpointing: bool = False) -> float:
    told = {"gpus": 64, "kind": "A100-80GB", "utilisation": 0.4, "checkpointing": checkpointing}
    return needed(name).hours(RECIPES[name]().train, **told)


ALIKE = {
    "stage2-as-released": "stage2",
    "ablation-24-layers": "stage2",
    "stage3-as-released": "stage3",
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_docstring_holds_command_hardware_hours_and_the_number_to_expect(name: str) -> None:
    said = " ".join(RECIPES[name].__doc__.split())
    assert f"kosmosg train {name} " in said
    assert "Expect" in said or "gives no number" in said
    found = re.search(r"64 A100-80GB: ([\d.]+) hours", said)
    assert found is not None
    assert float(found[1]) == pytest.approx(hours(ALIKE.get(name, name)), rel=0.03)


@pytest.mark.parametrize("name", ["stage1", "stage2", "stage3"])
def test_the_page_has_what_a_dry_run_says(name: str, repository: Path) -> None:
    page = (repository / "docs/training.md").read_text(encoding="utf-8")
    need, gib = needed(name), arithmetic.GIB
    kept, again = (need.total_bytes(checkpointing=value) / gib for value in (False, True))
    learns, frozen = (sum(getattr(part, f) for part in need.parts) for f in ("learns", "frozen"))
    row = (
        f"| `{name}` | {learns:,} | {frozen:,} | {need.flops / 1e15:.2f} | {hours(name):.3g} |"
        f" {kept:.1f} | {again:.1f} GiB, {hours(name, checkpointing=True):.3g} hours |"
    )
    assert row.replace("| 0.", "| .") in page


@pytest.mark.parametrize(
    ("topic", "value"),
    [
        ("Steps", lambda train: f"{train.steps:,}"),
        ("Records a step", lambda train: f"{train.global_batch_size:,}"),
        ("Peak rate", lambda train: f"{train.optim.lr:.1e}"),
    ],
)
def test_the_table_of_differences_has_our_numbers(topic, value, repository: Path) -> None:
    page = (repository / "docs/training.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {topic} |")]
    *_, ours, small, _ = (cell.strip().replace(" rows of 2,048", "") for cell in row.split("|"))
    stages = ("stage1", "stage2", "stage3")
    for cell, made in ((ours, RECIPES), (small, nano.RECIPES)):
        told = [f"{float(x):.1e}" if topic == "Peak rate" else x for x in cell.split(" · ")]
        assert told == [value(made[name]().train) for name in stages]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_reads_back_from_its_file(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]()
    config.save(recipe, tmp_path / "r.yaml")
    assert config.to_dict(config.load(Recipe, tmp_path / "r.yaml")) == config.to_dict(recipe)


# ------------------------------------------------------------------------------ running one


def test_a_recipe_runs_and_leaves_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At toy size; what the parts are begun with, and where they go, is handed over whole."""
    toy = toys()
    given, left = {}, {}

    def begin(stage, **told):
        given.update(told, stage=stage)
        return Parts(
            model=toy.model,
            tokenizer=toy.tokenizer,
            stream=Captions(),
            text_tower=toy.text_tower,
        )

    def export(parts, out, *, init):
        left.update(model=parts.model, tokenizer=parts.tokenizer, out=out, init=init)

    monkeypatch.setattr(start, "start", begin)
    monkeypatch.setattr(start, "export", export)
    recipe = config.override(
        recipes.stage2(),
        [
            *("train.steps=2", "train.global_batch_size=4", "train.micro_batch=2"),
            *("train.precision=float32", "init=begun"),
        ],
    )
    before = toy.model.aligner.encoder.queries.clone()
    assert recipes.train(recipe, tmp_path / "run") == tmp_path / "run" / "model"
    assert given["init"] == left["init"] == Path("begun")
    assert (given["stage"], given["data"], given["seed"]) == (recipe.stage, recipe.data, 2)
    assert left["model"] is toy.model
    assert not torch.equal(toy.model.aligner.encoder.queries, before)
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept == config.to_dict(recipe)
    recipes.train(recipe, tmp_path / "run", resume=True)
