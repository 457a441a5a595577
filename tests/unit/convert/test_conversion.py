"""Toy checkpoints in the authors' layout: to a directory, and what is refused."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import termios
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kosmosg import KosmosGPipeline
from kosmosg.convert import convert, original, to_original, writing
from kosmosg.errors import CheckpointError

EMBEDDING = "gpt_model.decoder.embed_tokens.weight"
TIED = "gpt_model.decoder.output_projection.weight"


def files(directory: Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


@pytest.fixture
def made(final, architecture, tmp_path) -> Path:
    convert(final, tmp_path / "made", architecture=architecture)
    return tmp_path / "made"


def test_the_directory_is_the_model_again(made: Path, toy_dir: Path) -> None:
    ours, again = (KosmosGPipeline.from_pretrained(one) for one in (toy_dir, made))
    for name in ("mllm", "aligner", "unet", "vae"):
        expected = getattr(ours, name).state_dict()
        found = getattr(again, name).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items()), name
    assert {k: v for k, v in again.mllm.config.items() if k[0] != "_"} == {
        k: v for k, v in ours.mllm.config.items() if k[0] != "_"
    }
    for pipe in (ours, again):
        pipe.set_progress_bar_config(disable=True)
    images = [
        pipe(
            "a red cat",
            generator=torch.Generator().manual_seed(0),
            num_inference_steps=2,
            guidance_scale=3.0,
            output_type="pt",
        ).images
        for pipe in (ours, again)
    ]
    assert torch.equal(*images)


def test_generation_defaults_are_the_released_demos(made: Path, toy_dir: Path) -> None:
    defaults = KosmosGPipeline.from_pretrained(made).generation_config
    assert (defaults.scheduler, defaults.num_inference_steps) == ("dpms", 50)
    assert defaults.guidance_scale == 6.0
    side = KosmosGPipeline.from_pretrained(toy_dir).unet.config["sample_size"] * 2
    assert (defaults.height, defaults.width) == (side, side)
    scheduler = KosmosGPipeline.from_pretrained(made).scheduler
    assert scheduler.config["final_sigmas_type"] == "sigma_min"


def test_others_may_read_the_weights(made: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in made.rglob("*.safetensors")} == {0o644}


def test_sums_are_those_of_the_files(made: Path) -> None:
    lines = [line.split("  ") for line in (made / "SHA256SUMS").read_text().splitlines()]
    assert sorted(name for _, name in lines) == [
        one for one in files(made) if one.endswith(".safetensors")
    ]
    for digest, name in lines:
        assert hashlib.sha256((made / name).read_bytes()).hexdigest() == digest


def test_every_weight_of_the_checkpoint_is_accounted_for(made: Path, final: Path) -> None:
    report = json.loads((made / "parity.json").read_text())
    theirs = torch.load(final, weights_only=True)["model"]
    assert report["used"].keys() | report["ignored"].keys() == theirs.keys()
    assert not report["used"].keys() & report["ignored"].keys()
    assert report["missing"] == []
    assert report["ignored"].keys() == {
        TIED,
        "gpt_model.decoder.self_attn_sope.scale",
        "gpt_model.decoder.embed_positions._float_tensor",
    }
    for name, ours in report["used"].items():
        part, key = ours.split(".", 1)
        [path] = (made / part).glob("*.safetensors")
        assert torch.equal(load_file(path)[key], theirs[name])


def test_no_path_of_this_machine_is_written(made: Path) -> None:
    for name in files(made):
        if not name.endswith(".model"):
            assert str(made.parent).encode() not in (made / name).read_bytes(), name


def test_the_card_names_the_licences(made: Path) -> None:
    card = (made / "README.md").read_text()
    for word in ("CreativeML OpenRAIL-M", "microsoft/unilm", "MIT", "stage 3", "`final.pt`"):
        assert word in card


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_weights_take_the_dtype_asked_for(dtype, final, architecture, tmp_path) -> None:
    convert(final, tmp_path / "made", architecture=architecture, dtype=dtype)
    theirs = torch.load(final, weights_only=True)["model"]
    for path in (tmp_path / "made").rglob("*.safetensors"):
        assert {one.dtype for one in load_file(path).values()} == {getattr(torch, dtype)}
    [path] = (tmp_path / "made" / "mllm").glob("*.safetensors")
    embedding = load_file(path)["embed_tokens.weight"]
    assert torch.equal(embedding, theirs[EMBEDDING].to(getattr(torch, dtype)))


def test_a_value_too_large_for_float16_is_refused(changed, architecture, tmp_path) -> None:
    path = changed(lambda data: data["model"]["aligner.encoder_query"].fill_(1e5))
    with pytest.raises(CheckpointError, match=r"encoder\.queries reaches 1e\+05, too large"):
        convert(path, tmp_path / "made", architecture=architecture, dtype="float16")
    assert not list(tmp_path.glob("*made*"))


def test_shards_are_read_as_one(final, architecture, tmp_path, monkeypatch, toy_dir) -> None:
    monkeypatch.setattr(writing, "MAX_SHARD_BYTES", 40_000)
    convert(final, tmp_path / "made", architecture=architecture)
    shards = sorted((tmp_path / "made" / "unet").glob("*.safetensors"))
    assert len(shards) > 3
    assert all(path.stat().st_size < 60_000 or len(load_file(path)) == 1 for path in shards)
    index = json.loads(
        (tmp_path / "made/unet/diffusion_pytorch_model.safetensors.index.json").read_text()
    )
    stored = {key: path.name for path in shards for key in load_file(path)}
    assert index["weight_map"] == stored
    size = sum(one.nbytes for path in shards for one in load_file(path).values())
    assert index["metadata"]["total_size"] == size
    ours, again = (KosmosGPipeline.from_pretrained(d) for d in (toy_dir, tmp_path / "made"))
    for key, value in ours.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[key], value)


def test_the_whole_way_back_is_the_same_file(made, final, tmp_path) -> None:
    to_original(made, tmp_path / "back.pt")
    theirs, back = (torch.load(path, weights_only=True) for path in (final, tmp_path / "back.pt"))
    assert back["cfg"] == theirs["cfg"]
    assert back["model"].keys() == theirs["model"].keys()
    for name, value in theirs["model"].items():
        assert torch.equal(back["model"][name], value)
    assert back["model"][TIED].data_ptr() == back["model"][EMBEDDING].data_ptr()


# ------------------------------------------------------------------------------------- stage 2


def test_stage_2_needs_a_decoder_from_elsewhere(stage2, architecture, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"give a Stable Diffusion 1\.5 with --base: stable-"):
        convert(stage2, tmp_path / "made", architecture=architecture)
    assert list(tmp_path.iterdir()) == []


def test_stage_2_without_what_only_training_uses(stage2, toy_dir, architecture, tmp_path) -> None:
    convert(stage2, tmp_path / "made", architecture=architecture, base=str(toy_dir))
    pipe = KosmosGPipeline.from_pretrained(tmp_path / "made")
    assert pipe.aligner.decoder is None
    assert not (tmp_path / "made" / "text_encoder").exists()
    report = json.loads((tmp_path / "made" / "parity.json").read_text())
    why = set(report["ignored"].values())
    assert {w.split(",")[0] for w in why} >= {"N", "CLIP's text tower"}
    assert report["replaced"] is None


def test_stage_2_with_it(stage2, toy_dir, architecture, tmp_path) -> None:
    out = tmp_path / "made"
    counts = convert(
        stage2, out, architecture=architecture, base=str(toy_dir), keep_training_parts=True
    )
    pipe = KosmosGPipeline.from_pretrained(out)
    assert pipe.aligner.decoder is not None
    assert counts["aligner"] == sum(one.numel() for one in pipe.aligner.parameters())
    to_original(out, tmp_path / "back.pt")
    theirs, back = (
        torch.load(path, weights_only=True)["model"] for path in (stage2, tmp_path / "back.pt")
    )
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], value) for name, value in theirs.items())
    assert any(name.startswith("aligner.clip_encoder.text_model.") for name in theirs)
    assert not any(name.startswith("diffusion_unet.") for name in theirs)


def test_stage_3_has_nothing_of_training_to_keep(final, architecture, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="leave out --keep-training-parts"):
        convert(final, tmp_path / "made", architecture=architecture, keep_training_parts=True)


# ------------------------------------------------------------------------------------- refusals


def test_a_base_replaces_the_decoder_and_the_difference_is_said(
    final, toy_dir, architecture, tmp_path, changed
) -> None:
    convert(final, tmp_path / "same", architecture=architecture, base=str(toy_dir))
    report = json.loads((tmp_path / "same" / "parity.json").read_text())
    assert report["replaced"]["unet"]["equal"] is True
    assert report["replaced"]["vae"]["max_difference"] == 0
    assert "model" in report["decoder"]

    def shift(data):
        data["model"]["vae.vae.decoder.conv_out.bias"][0] += 0.5

    path = changed(shift)
    convert(path, tmp_path / "other", architecture=architecture, base=str(toy_dir))
    report = json.loads((tmp_path / "other" / "parity.json").read_text())
    assert report["replaced"]["unet"]["equal"] is True
    assert report["replaced"]["vae"]["equal"] is False
    assert report["replaced"]["vae"]["max_difference"] == pytest.approx(0.5)
    assert "vae.vae.decoder.conv_out.bias" in report["ignored"]


def drop(name):
    return lambda data: data["model"].pop(name)


def put(name, value):
    return lambda data: data["model"].__setitem__(name, value)


def option(name, value):
    return lambda data: data["cfg"]["model"].__setitem__(name, value)


LAYER = "gpt_model.decoder.layers.1."
TOWER = "img_model.visual.transformer."
UNET = "diffusion_unet.unet."
REFUSALS = {
    "a missing weight": (
        drop(LAYER + "ffn.fc2.bias"),
        r"missing mllm\.layers\.1\.ffn\.fc2\.bias \(1 in all\)",
    ),
    "a missing size": (
        drop("gpt_model.decoder.embed_tokens.weight"),
        r"mllm\.embed_tokens\.weight \(our name\) is missing",
    ),
    "a shape": (
        put(LAYER + "ffn.fc2.bias", torch.zeros(7)),
        r"misshapen mllm\.layers\.1\.ffn\.fc2\.bias \(7,\) instead of \(32,\)",
    ),
    "whole numbers": (
        put(LAYER + "ffn.fc2.bias", torch.zeros(32, dtype=torch.long)),
        r"mllm\.layers\.1\.ffn\.fc2\.bias of torch\.int64",
    ),
    "an unknown weight": (put("extra.weight", torch.zeros(1)), r"does not know: extra\.weight"),
    "an unknown weight of a known part": (
        put(UNET + "extra.weight", torch.zeros(1)),
        r"unknown unet\.extra\.weight",
    ),
    "a layer far away": (
        put(TOWER + "resblocks.999999999.ln_1.bias", torch.zeros(16)),
        r"unknown mllm\.vision\.clip\.encoder\.layers\.999999999",
    ),
    "a whole layer": (
        lambda data: [data["model"].pop(n) for n in list(data["model"]) if n.startswith(LAYER)],
        r"options say decoder_layers=2 and its weights 1",
    ),
    "latents of another number": (
        put("img_connector.latent_query", torch.zeros(9, 32)),
        r"options say latent_query_num=\d+ and its weights 9",
    ),
    "an empty size": (
        put("img_connector.latent_query", torch.zeros(0, 32)),
        r"mllm\.resampler\.latents \(our name\) has the shape \(0, 32\)",
    ),
    "the embedding untied": (put(TIED, torch.zeros(3, 3)), "one matrix for both"),
    "no weight": (put("extra", "text"), "'extra' in its model is not a weight"),
    "no model": (lambda data: data.__setitem__("model", None), "holds no 'model'"),
    "no heads": (
        lambda data: data.__setitem__("cfg", None),
        "decoder_attention_heads=None for a width of 32",
    ),
    "heads that do not fit": (option("decoder_attention_heads", 5), "decoder_attention_heads=5"),
    "no number of heads": (option("decoder_attention_heads", 0), "decoder_attention_heads=0"),
    "a rate that is none": (option("dropout", 2.0), r"dropout=2\.0, which is no rate"),
    "another activation": (option("activation_fn", "relu"), "activation_fn='relu'"),
    "another tower": (option("visual_model_name", "ViT-H-14"), "visual_model_name='ViT-H-14'"),
    "another vocabulary": (
        lambda data: data["model"].update(
            {name: torch.zeros(99, 32) for name in (TIED, EMBEDDING)}
        ),
        r"ids and the checkpoint's embedding 99",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_fit_is_named_and_nothing_is_written(
    name, changed, architecture, tmp_path
) -> None:
    change, message = REFUSALS[name]
    path = changed(change)
    before = files(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(path, tmp_path / "made", architecture=architecture)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == before


def test_many_names_are_three_and_a_count(changed, architecture, tmp_path) -> None:
    def many(data):
        for index in range(9):
            data["model"][f"extra.{index}.weight"] = torch.zeros(1)

    with pytest.raises(CheckpointError, match=r"extra\.2\.weight and 6 more \(9 in all\)"):
        convert(changed(many), tmp_path / "made", architecture=architecture)


def test_heads_that_shapes_cannot_show_are_never_guessed(final, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"vision tower is 16 wide.*give --architecture"):
        convert(final, tmp_path / "made")


def test_open_clips_unused_attention_is_left_out(changed, architecture, tmp_path) -> None:
    name = "img_model.visual.transformer.resblocks.0.attn.in_proj_weight"
    path = changed(put(name, torch.zeros(48, 16)))
    convert(path, tmp_path / "made", architecture=architecture)
    ignored = json.loads((tmp_path / "made" / "parity.json").read_text())["ignored"]
    assert "never uses" in ignored[name]


def test_old_names_of_the_vaes_attention_are_read(changed, architecture, tmp_path) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(data):
        for name in list(data["model"]):
            for new, name_before in old.items():
                if name.startswith("vae.") and f"attentions.0.{new}." in name:
                    data["model"][name.replace(new, name_before)] = data["model"].pop(name)

    path = changed(rename)
    assert "vae.vae.decoder.mid_block.attentions.0.query.weight" in torch.load(path)["model"]
    convert(path, tmp_path / "made", architecture=architecture)
    KosmosGPipeline.from_pretrained(tmp_path / "made")


def test_a_missing_tokenizer_names_both_files(changed, architecture, tmp_path) -> None:
    path = changed(dict)
    (tmp_path / "dict.txt").unlink()
    with pytest.raises(CheckpointError, match=r"sentencepiece\.bpe\.model and dict\.txt, are not"):
        convert(path, tmp_path / "made", architecture=architecture)


def test_what_exists_is_not_overwritten(final, architecture, tmp_path, toy_dir) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="made exists; remove it"):
        convert(final, tmp_path / "made", architecture=architecture)
    with pytest.raises(CheckpointError, match=r"mine\.txt exists; remove it"):
        to_original(toy_dir, tmp_path / "made" / "mine.txt")
    assert files(tmp_path) == ["made/mine.txt"]
    (tmp_path / "made" / "mine.txt").unlink()
    convert(final, tmp_path / "made", architecture=architecture)
    assert (tmp_path / "made" / "model_index.json").is_file()


def test_progress_is_shown_on_a_terminal_only(
    final, architecture, toy_dir, tmp_path, monkeypatch, capfd
) -> None:
    convert(final, tmp_path / "quiet", architecture=architecture, base=str(toy_dir))
    assert capfd.readouterr() == ("", "")
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with open(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        convert(final, tmp_path / "shown", architecture=architecture, base=str(toy_dir))
    shown = ""
    with contextlib.suppress(OSError):  # so a terminal says that its other end is closed
        while read := os.read(ours, 4096).decode():
            shown += read
    os.close(ours)
    for what in ("writing", "comparing", "sha256"):
        assert re.search(rf"{what}: +\d+%", shown), what
    assert "\n" not in shown
    assert not shown.rpartition("\r")[0].rpartition("\r")[2].strip()  # wiped at the end


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_conversion_leaves_nothing(
    error, final, architecture, tmp_path, monkeypatch
) -> None:
    """The last thing that is written fails: by then all weights are on the disk."""

    def stop(directory: Path) -> None:
        assert len(list(directory.rglob("*.safetensors"))) == 4
        raise error

    monkeypatch.setattr(writing, "write_sums", stop)
    with pytest.raises(error if isinstance(error, type) else OSError):
        convert(final, tmp_path / "made", architecture=architecture)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_noticed_before_the_work(final, architecture, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(writing, "sum_bytes", lambda *_: 10**18)
    with pytest.raises(CheckpointError, match=r"GB free and 1000000000\.0 GB will be written"):
        convert(final, tmp_path / "made", architecture=architecture)


def test_what_their_code_cannot_compute_is_not_written(toy_dir, tmp_path) -> None:
    shutil.copytree(toy_dir, tmp_path / "model")
    path = tmp_path / "model" / "mllm" / "config.json"
    path.write_text(path.read_text().replace('"sinusoidal"', '"xpos"'))
    with pytest.raises(CheckpointError, match="positions='xpos'"):
        to_original(tmp_path / "model", tmp_path / "back.pt")
    assert not (tmp_path / "back.pt").exists()


def test_the_dead_scale_is_the_formula() -> None:
    """NUMERICS section 4: zeta_i = (2i + 0.4 d) / (1.4 d)."""
    scale = original._dead_scale(4)
    assert scale.tolist() == pytest.approx([1.6 / 5.6, 3.6 / 5.6])
