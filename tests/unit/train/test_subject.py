"""Tuning to one subject: prompts that show it, an adapter that is all that learns."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from kosmosg import adapter, checkpoint
from kosmosg.adapter import AdapterConfig
from kosmosg.data.sources import DataConfig, SourceConfig
from kosmosg.errors import ConfigError, PromptError
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.train.log import read_log
from kosmosg.train.subject import SubjectStream, export, read_pictures, subject, tune
from toys.model import toy_picture
from toys.shards import write
from toys.stages import Examples


@pytest.fixture
def pictures(tmp_path) -> tuple[str, ...]:
    paths = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        toy_picture(number, (40, 40)).save(path)
        paths.append(str(path))
    Path(paths[0]).with_suffix(".txt").write_text("a photo of the cat in snow")
    return tuple(paths)


def config(pictures, toy_dir, **changes):
    made = subject()
    train = replace(made.train, steps=3, global_batch_size=2, micro_batch=2, precision="float32")
    return replace(
        made, init=str(toy_dir), pictures=pictures, train=train,
        adapter=AdapterConfig(rank=2, alpha=4.0), **changes,
    )  # fmt: skip


def test_an_adapter_is_all_that_learns_and_generation_takes_it(pictures, toy_dir, tmp_path):
    before = {path: path.read_bytes() for path in toy_dir.rglob("*") if path.is_file()}
    path = tune(config(pictures, toy_dir, name="the cat"), tmp_path / "run")
    assert {path: path.read_bytes() for path in before} == before
    header, tensors = adapter.read(path)
    assert header.provenance["name"] == "the cat"
    assert set(header.provenance["pictures"]) == {"0.png", "1.png", "2.png"}
    assert any(tensors[name].any() for name in tensors if name.endswith("lora_B"))
    pipe = KosmosGPipeline.from_pretrained(toy_dir)
    pipe.set_progress_bar_config(disable=True)

    def drawn():
        generator = torch.Generator().manual_seed(0)
        return pipe(["a", toy_picture(1)], generator=generator, output_type="pt").images

    plain = drawn()
    pipe.load_adapter(path)
    assert not torch.equal(drawn(), plain)
    pipe.unload_adapter()
    assert torch.equal(drawn(), plain)


def test_a_stopped_tuning_goes_on_to_the_same_adapter(pictures, toy_dir, tmp_path):
    whole = tune(config(pictures, toy_dir), tmp_path / "whole")
    (tmp_path / "run").mkdir()
    first = tune(config(pictures, toy_dir), tmp_path / "run")
    first.unlink()
    again = tune(config(pictures, toy_dir), tmp_path / "run", resume=True)
    one, other = adapter.read(whole)[1], adapter.read(again)[1]
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


def test_records_of_other_things_are_kept_beside_it_and_resuming_is_exact(
    pictures, toy_dir, tmp_path
):
    prior = write(tmp_path / "prior.tar", Examples().batch(0, 6))
    made = config(
        pictures, toy_dir, prior=DataConfig(sources={"prior": SourceConfig(paths=str(prior))}),
        prior_weight=2, keep_weight=5.0,
    )  # fmt: skip
    made = replace(made, train=replace(made.train, log_every=1, keep_every=1, keep_checkpoints=9))
    whole = tune(made, tmp_path / "run")
    entries = [entry for entry in read_log(tmp_path / "run") if "loss" in entry]
    for entry in entries:
        total = entry["loss/diffusion"] + entry["loss/keep"]
        assert entry["loss"] == pytest.approx(total, rel=1e-5)
    assert entries[0]["loss/keep"] == 0 < entries[2]["loss/keep"]
    first = adapter.read(whole)[1]
    for step in (2, 3):
        shutil.rmtree(checkpoint.step_directory(tmp_path / "run", step))
    again = adapter.read(tune(made, tmp_path / "run", resume=True))[1]
    assert all(first[name].equal(again[name]) for name in first)


def test_an_unfinished_tuning_is_exported_and_goes_on(pictures, toy_dir, tmp_path):
    made = config(pictures, toy_dir)
    made = replace(made, train=replace(made.train, keep_every=1, keep_checkpoints=9))
    run_dir = tmp_path / "run"
    end = adapter.read(tune(made, run_dir))[1]
    shutil.rmtree(checkpoint.step_directory(run_dir, 3))
    before = sorted((path, path.stat().st_mtime_ns) for path in run_dir.rglob("*"))
    path = export(made, run_dir, tmp_path / "out")
    assert sorted((path, path.stat().st_mtime_ns) for path in run_dir.rglob("*")) == before
    assert path.parent == tmp_path / "out"
    header, tensors = adapter.read(path)
    assert header.provenance["steps"] == 2
    state, _ = checkpoint.latest(run_dir)
    assert (state.step, len(state.weights)) == (2, len(tensors))
    kept = {value.numpy().tobytes() for value in state.weights.values()}
    assert {value.numpy().tobytes() for value in tensors.values()} == kept
    again = adapter.read(tune(made, run_dir, resume=True))[1]
    assert all(end[name].equal(again[name]) for name in end)
    assert any(not end[name].equal(tensors[name]) for name in end)


def test_prompts_show_another_picture_than_they_ask_for(pictures):
    shown = read_pictures([Path(one) for one in pictures], name="the cat")
    stream = SubjectStream(shown, name="the cat", templates=("a photo of {}",), seed=0)
    records = stream.batch(0, 60)
    again = [(one.key, one.caption, one.target.tobytes()) for one in stream.batch(1, 30)]
    assert again == [(one.key, one.caption, one.target.tobytes()) for one in records[30:]]
    images = {toy_picture(number, (40, 40)).tobytes(): number for number in range(3)}
    asked = []
    for record in records:
        (context,) = [part for part in record.prompt if isinstance(part, Image.Image)]
        words = " ".join(part for part in record.prompt if isinstance(part, str))
        target = images.get(record.target.tobytes())
        if target is not None and context.tobytes() in images:
            assert images[context.tobytes()] != target
        asked.append("the cat" in words)
        assert "photo of" in words
    assert 15 < sum(asked) < 45  # half of the prompts name it


def test_its_own_words_go_with_a_picture(pictures):
    (first, second, _) = read_pictures([Path(one) for one in pictures], name="the cat")
    assert first.words == ("a photo of ", " in snow")
    assert second.words is None


def test_one_picture_is_enough(pictures, toy_dir, tmp_path):
    assert tune(config(pictures[:1], toy_dir), tmp_path / "run").is_file()


def test_no_picture_is_refused(toy_dir, tmp_path):
    with pytest.raises(ConfigError, match="there are 0 pictures"):
        tune(config((), toy_dir), tmp_path / "run")
    with pytest.raises(PromptError, match=r"nowhere\.png"):
        tune(config((str(tmp_path / "nowhere.png"),), toy_dir), tmp_path / "run")
