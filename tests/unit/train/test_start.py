"""A stage goes on from any release directory on a user's own folder, and leaves one like it."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from kosmosg import checkpoint, config, recipes
from kosmosg.data.sources import DataConfig
from kosmosg.errors import CheckpointError, ConfigError, DataError
from kosmosg.model.kosmosg import KosmosG
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.recipes import Recipe
from kosmosg.tokenizer import Tokenizer
from kosmosg.train.optim import Average
from kosmosg.train.readiness import missing
from kosmosg.train.stage1_language import LanguageConfig
from kosmosg.train.stage2_align import AlignConfig
from kosmosg.train.stage3_instruct import InstructConfig
from kosmosg.train.start import ModelConfig, start
from toys.model import toy_picture
from toys.training import train_config

INSTRUCT = InstructConfig(trainable=("aligner.encoder.*", "mllm.layers.*"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's folder: targets, a control picture for each, texts."""
    home = tmp_path_factory.mktemp("mine") / "folder"
    for name in ("target", "control_1"):
        (home / name).mkdir(parents=True)
    for number in range(6):
        toy_picture(number, (48, 48)).save(home / "target" / f"{number}.png")
        toy_picture(10 + number, (40, 44)).save(home / "control_1" / f"{number}.png")
        (home / "target" / f"{number}.txt").write_text("a red hat on the cat")
    return home


def recipe(folder: Path, init: Path | None, stage=INSTRUCT, **changes) -> Recipe:
    train = train_config(steps=2, precision="float32")
    made = Recipe(stage=stage, train=train, init=None if init is None else str(init))
    return config.override(
        made, [f"data={folder}", "data.max_skipped=0.5", *changes.get("words", ())]
    )


def sums(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*.safetensors"))
    }


def test_stage_3_goes_on_from_a_release_on_a_users_folder(toy_dir, folder, tmp_path):
    out = recipes.train(recipe(folder, toy_dir), tmp_path / "run")
    before, after = sums(toy_dir), sums(out)
    assert before.keys() == after.keys()
    changed = {name.split("/")[0] for name in before if before[name] != after[name]}
    assert changed == {"mllm", "aligner"}
    old, new = (
        load_file(home / "mllm" / "diffusion_pytorch_model.safetensors") for home in (toy_dir, out)
    )
    assert {name.split(".")[0] for name in old if not old[name].equal(new[name])} == {"layers"}
    pipe = KosmosGPipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    (image,) = pipe(["a", toy_picture(3)], generator=torch.Generator().manual_seed(0)).images
    assert image.size == (32, 32)


def test_a_stopped_run_on_a_folder_goes_on_to_the_same_weights(toy_dir, folder, tmp_path):
    whole = recipes.train(recipe(folder, toy_dir), tmp_path / "whole")
    home = tmp_path / "stopped"
    shards = home / "shards" / "data-0"
    again = recipes.train(recipe(folder, toy_dir), home)
    written = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")}
    for path in sorted((home / "checkpoints").glob("step-*"))[1:]:
        raise AssertionError(f"one checkpoint was expected, and {path} is another")
    again = recipes.train(recipe(folder, toy_dir), home, resume=True)
    assert {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")} == written
    assert sums(again) == sums(whole)


def test_the_records_are_the_folders(toy_dir, folder, tmp_path):
    parts = start(
        INSTRUCT, init=toy_dir, data=recipe(folder, toy_dir).data, model=ModelConfig(), seed=0,
        run_dir=tmp_path,
    )  # fmt: skip
    records = [one for step in range(3) for one in parts.stream.batch(step, 2)]
    targets = {toy_picture(number, (48, 48)).tobytes() for number in range(6)}
    controls = {toy_picture(10 + number, (40, 44)).tobytes() for number in range(6)}
    assert {record.target.convert("RGB").tobytes() for record in records} == targets
    shown = [part for record in records for part in record.prompt if isinstance(part, Image.Image)]
    assert {image.convert("RGB").tobytes() for image in shown} == controls
    noted = json.loads((tmp_path / "shards" / "data-0" / "stats.json").read_text())
    assert (noted["records"], noted["skipped"]) == (6, {})


def test_what_learns_is_float32_and_what_is_frozen_as_asked(toy_dir, folder, tmp_path):
    parts = start(
        INSTRUCT, init=toy_dir, data=recipe(folder, toy_dir).data,
        model=ModelConfig(frozen="bfloat16"), seed=0, run_dir=tmp_path,
    )  # fmt: skip
    assert {one.dtype for one in parts.model.parameters()} == {torch.float32}
    assert parts.image_decoder is not None
    assert {one.dtype for one in parts.image_decoder.parameters()} == {torch.bfloat16}


def test_held_out_tars_give_a_figure_and_sheets(toy_dir, folder, tmp_path, capsys):
    first = start(
        INSTRUCT, init=toy_dir, data=recipe(folder, toy_dir).data, model=ModelConfig(), seed=0,
        run_dir=tmp_path / "other",
    )  # fmt: skip
    assert first.validation is None
    (said,) = (line for line in capsys.readouterr().err.splitlines() if "no validation" in line)
    assert "no sheets of samples" in said
    assert said.endswith("data.validation.NAME.paths=TARS")
    (tar,) = (tmp_path / "other" / "shards" / "data-0").glob("*.tar")
    words = [f"data.validation={{own: {{paths: {tar}}}}}", "train.samples_every=1"]
    recipes.train(recipe(folder, toy_dir, words=words), tmp_path / "run")
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert any("validation_loss" in json.loads(line) for line in lines)
    assert "no validation" not in capsys.readouterr().err
    with Image.open(tmp_path / "run" / "samples" / "step-00000002.png") as sheet:
        assert sheet.height > 6 * 128


def test_a_changed_folder_is_not_mixed_with_its_shards(toy_dir, folder, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    recipes.train(recipe(own, toy_dir), tmp_path / "run")
    (own / "target" / "0.txt").write_text("something else")
    with pytest.raises(ConfigError, match="has changed since it was converted"):
        recipes.train(recipe(own, toy_dir), tmp_path / "run", resume=True)


def test_stage_2_makes_n_where_the_release_has_none(toy_dir, tmp_path):
    texts = tmp_path / "texts"
    (texts / "captions").mkdir(parents=True)
    for number in range(4):
        toy_picture(number).save(texts / "captions" / f"{number}.png")
        (texts / "captions" / f"{number}.txt").write_text("a red cat")
    words = Tokenizer.from_pretrained(toy_dir / "tokenizer").vocab_size
    tower = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words + 1, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=6,
        )
    )  # fmt: skip
    init = shutil.copytree(toy_dir, tmp_path / "init")
    tower.save_pretrained(init / "text_encoder")
    model = ModelConfig(aligner={"dropout": 0.1})
    stage = AlignConfig(padding="masked", mllm="eval")
    data = config.override(recipe(texts, toy_dir), []).data
    first, second = (
        start(stage, init=init, data=data, model=model, seed=seed, run_dir=tmp_path / "run")
        for seed in (0, 1)
    )
    assert first.model.aligner.config["with_reconstruction"]
    assert first.model.aligner.config["dropout"] == 0.1
    assert first.text_tower is not None
    kept = first.model.aligner.encoder.state_dict()
    release = load_file(toy_dir / "aligner" / "diffusion_pytorch_model.safetensors")
    assert all(release[f"encoder.{name}"].equal(value) for name, value in kept.items())
    one, other = (parts.model.aligner.decoder.state_dict() for parts in (first, second))
    assert not one["project.weight"].equal(other["project.weight"])

    # Nothing of the language model learns: it may be held in half, and goes on as it was in `init`.
    asked = recipe(texts, init, stage, words=("model.frozen=bfloat16", "train.precision=bfloat16"))
    half = start(stage, init=init, data=data, model=asked.model, seed=0, run_dir=tmp_path / "run")
    held = {name: {p.dtype for p in part.parameters()} for name, part in
            (("mllm", half.model.mllm), ("aligner", half.model.aligner))}  # fmt: skip
    assert held == {"mllm": {torch.bfloat16}, "aligner": {torch.float32}}
    out = recipes.train(asked, tmp_path / "half")
    before, after = sums(init), sums(out)
    assert {name for name in before if before[name] != after[name]} == {
        "aligner/diffusion_pytorch_model.safetensors"
    }


@pytest.mark.parametrize(
    ("stage", "changes", "error", "message"),
    [
        (INSTRUCT, {"init": "nowhere"}, CheckpointError, "no model at nowhere"),
        (INSTRUCT, {"init": None}, CheckpointError, "needs a tokenizer; name the directory"),
        (INSTRUCT, {"data": None}, ConfigError, "nothing to train from; name a folder or tars"),
        (INSTRUCT, {"model": {"mllm": {"hidden_size": 8}}}, ConfigError, "an MLLM of its own"),
        (INSTRUCT, {"model": {"aligner": {"num_heads": 1}}}, ConfigError, "AlignerNet of its own"),
        (AlignConfig(padding="masked", mllm="eval"), {}, CheckpointError, "text_encoder"),
        (LanguageConfig(trainable=("*",)), {"model": {"new": ["mllm"]}}, ConfigError, r"\.clip="),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_its_remedy(
    toy_dir, folder, tmp_path, stage, changes, error, message
):
    given = {"init": toy_dir, "data": recipe(folder, toy_dir).data, "model": {}} | changes
    init = given["init"]
    with pytest.raises(error, match=message):
        start(
            stage,
            init=None if init is None else Path(init),
            data=given["data"],
            model=config.from_dict(ModelConfig, given["model"]),
            seed=0,
            run_dir=tmp_path,
        )


def test_a_folder_in_no_format_and_one_without_a_record_are_refused(toy_dir, tmp_path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "x.bin").write_bytes(b"1")
    asked = recipe(tmp_path / "odd", toy_dir)
    with pytest.raises(ConfigError, match="has neither tars, nor target/"):
        recipes.train(asked, tmp_path / "run")
    (line,) = missing(asked.stage, init=str(toy_dir), data=asked.data, model=asked.model)
    assert "has neither tars, nor target/" in line
    bad = tmp_path / "bad"
    (bad / "target").mkdir(parents=True)
    (bad / "control").mkdir()
    (bad / "target" / "0.png").write_bytes(b"no picture")
    (bad / "target" / "0.txt").write_text("a cat")
    with pytest.raises(DataError):
        recipes.train(recipe(bad, toy_dir), tmp_path / "run2")


def test_the_dry_run_knows_a_users_folder(toy_dir, folder):
    asked = recipe(folder, toy_dir)
    assert missing(asked.stage, init=str(toy_dir), data=asked.data, model=asked.model) == []


def test_a_path_is_short_for_one_source() -> None:
    short = config.from_dict(Recipe, {**config.to_dict(recipe(Path("x"), None)), "data": "a/b"})
    assert short.data is not None
    assert {name: one.paths for name, one in short.data.sources.items()} == {"data": "a/b"}
    again = config.from_dict(DataConfig, config.to_dict(short.data))
    assert again == short.data


def files(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.relative_to(directory).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in directory.rglob("*")
        if path.is_file()
    }


class Interrupted(Exception):
    """Ends a run as a kill does: nothing is saved on the way out."""


def test_an_unfinished_run_is_exported_as_its_end_would_be_and_goes_on(
    toy_dir, folder, tmp_path, monkeypatch
):
    words = ("train.steps=6", "train.keep_every=2")
    asked = recipe(folder, toy_dir, words=words)
    assert asked.train.ema is not None
    whole, home = tmp_path / "whole", tmp_path / "stopped"
    end = sums(recipes.train(asked, whole))
    update = Average.update

    def stop(self, step):
        if step == 6:
            raise Interrupted
        update(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Average, "update", stop)
        with pytest.raises(Interrupted):
            recipes.train(asked, home)
    before = files(home)
    mine = folder.rename(folder.with_name("elsewhere"))  # no data is needed
    try:
        out = recipes.export(asked, home, tmp_path / "made")
    finally:
        mine.rename(folder)
    assert files(home) == before

    state, _ = checkpoint.latest(home)
    assert state.step == 4
    assert any(not value.equal(state.weights[name]) for name, value in state.average.items())
    pipe = KosmosGPipeline.from_pretrained(out, dtype=torch.float32)
    ours = KosmosG(pipe.mllm, pipe.aligner).state_dict()
    assert all(value.equal(ours[name]) for name, value in state.average.items())
    untouched = {name for name in sums(toy_dir) if not name.startswith(("mllm", "aligner"))}
    assert {name: sums(out)[name] for name in untouched} == {
        name: sums(toy_dir)[name] for name in untouched
    }

    assert sums(recipes.train(asked, home, resume=True)) == end
    assert sums(recipes.export(asked, home, tmp_path / "again")) == end


def test_what_cannot_be_exported_is_said(toy_dir, folder, tmp_path, monkeypatch):
    asked, home, out = recipe(folder, toy_dir), tmp_path / "run", tmp_path / "out"
    with pytest.raises(CheckpointError, match=r"there is no run in .*run; name the directory"):
        recipes.export(asked, home, out)
    recipes.train(asked, home)
    other = recipe(folder, toy_dir, words=("train.optim.lr=0.5",))
    with pytest.raises(ConfigError, match=r"begun with train\.optim\.lr = 0\.01, now it is 0\.5"):
        recipes.export(other, home, out)
    with pytest.raises(ConfigError, match="export to another directory"):
        recipes.export(asked, home, toy_dir)
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match="2 processes would all write the same"):
            recipes.export(asked, home, out)
    shutil.rmtree(home / "checkpoints")
    with pytest.raises(CheckpointError, match="has saved no checkpoint yet; wait for its first"):
        recipes.export(asked, home, out)
    assert not out.exists()
