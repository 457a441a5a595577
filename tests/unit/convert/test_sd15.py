"""One toy Stable Diffusion in every form that people keep it in."""

import json
import os
import pickle
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from kosmosg import KosmosGPipeline
from kosmosg.convert import convert, sd15
from kosmosg.errors import CheckpointError
from toys.files import Reduces, torch_file
from toys.ldm import ldm
from toys.model import EMBED_DIM

WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def decoder(toy_dir: Path) -> KosmosGPipeline:
    return KosmosGPipeline.from_pretrained(toy_dir)


@pytest.fixture
def base(toy_dir: Path, tmp_path: Path) -> Path:
    """A directory of a Stable Diffusion alone."""
    for part in ("unet", "vae", "scheduler"):
        shutil.copytree(toy_dir / part, tmp_path / "base" / part)
    return tmp_path / "base"


def load(base: Path | str, architecture) -> sd15.Decoder:
    return sd15.load(str(base), unet_config=architecture.unet, vae_config=architecture.vae)


def same(found: sd15.Decoder, decoder: KosmosGPipeline, dtype=torch.float32) -> None:
    for tensors, model in ((found.unet, decoder.unet), (found.vae, decoder.vae)):
        expected = model.state_dict()
        assert tensors.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(tensors[name].read(), value.to(dtype)), name


def test_a_directory_of_safetensors(base: Path, decoder, architecture) -> None:
    found = load(base, architecture)
    same(found, decoder)
    assert found.unet_config["cross_attention_dim"] == EMBED_DIM
    assert found.source == "base"


def test_a_directory_of_bins(base: Path, decoder, architecture) -> None:
    for part in ("unet", "vae"):
        (base / part / f"{WEIGHTS}.safetensors").unlink()
        torch.save(getattr(decoder, part).state_dict(), base / part / f"{WEIGHTS}.bin")
    same(load(base, architecture), decoder)


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_a_directory_of_the_fp16_variant(suffix: str, base: Path, decoder, architecture) -> None:
    for part in ("unet", "vae"):
        (base / part / f"{WEIGHTS}.safetensors").unlink()
        state = {k: v.half() for k, v in getattr(decoder, part).state_dict().items()}
        path = base / part / f"{WEIGHTS}.fp16.{suffix}"
        torch.save(state, path) if suffix == "bin" else save_file(state, path)
    same(load(base, architecture), decoder, torch.float16)


def test_a_directory_of_shards(tmp_path: Path, decoder, architecture) -> None:
    decoder.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded/unet").glob("*.safetensors"))) > 1
    same(load(tmp_path / "sharded", architecture), decoder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["sd.safetensors", "sd.ckpt", "bare.ckpt"])
def test_one_file_in_the_original_layout(name, dtype, tmp_path, decoder, architecture) -> None:
    weights = {key: value.to(dtype) for key, value in ldm(decoder.unet, decoder.vae).items()}
    weights |= {"cond_stage_model.x": torch.zeros(2), "model_ema.decay": torch.zeros(())}
    path = tmp_path / name
    if name == "sd.ckpt":
        callbacks = {"best_model_path": "x"}
        torch.save({"epoch": 1, "callbacks": callbacks, "state_dict": weights}, path)
    elif name == "bare.ckpt":
        torch.save(weights, path)
    else:
        save_file({key: value.contiguous() for key, value in weights.items()}, path)
    found = load(path, architecture)
    same(found, decoder, dtype)
    assert found.source == name


def test_the_noise_schedule_of_a_fine_tune_is_kept(
    base: Path, final, architecture, tmp_path
) -> None:
    path = base / "scheduler" / "scheduler_config.json"
    own = {"_class_name": "PNDMScheduler", "beta_end": 0.02, "prediction_type": "v_prediction",
           "timestep_spacing": "leading", "skip_prk_steps": True}  # fmt: skip
    path.write_text(json.dumps(own))
    convert(final, tmp_path / "made", base=str(base), architecture=architecture)
    scheduler = KosmosGPipeline.from_pretrained(tmp_path / "made").scheduler.config
    assert scheduler["beta_end"] == 0.02
    assert scheduler["prediction_type"] == "v_prediction"
    assert scheduler["beta_start"] == 0.00085
    assert scheduler["final_sigmas_type"] == "sigma_min"  # walked as released
    assert scheduler["timestep_spacing"] == "linspace"


@pytest.mark.parametrize(("width", "kind"), [(1024, "2.x"), (2048, "SDXL"), (24, "")])
def test_a_unet_of_another_width_is_refused_by_its_name(
    width, kind, final, architecture, tmp_path, decoder
) -> None:
    weights = ldm(decoder.unet, decoder.vae)
    for name, value in weights.items():
        if re.search(r"attn2\.to_[kv]\.weight", name):
            weights[name] = torch.zeros(len(value), width)
    torch.save(weights, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=rf"conditions {width} wide.*{kind}.*{EMBED_DIM};"):
        convert(final, tmp_path / "made", base=str(tmp_path / "other.ckpt"),
                architecture=architecture)  # fmt: skip


def test_an_inpainting_unet_is_refused(final, architecture, tmp_path, decoder) -> None:
    weights = ldm(decoder.unet, decoder.vae)
    name = "model.diffusion_model.input_blocks.0.0.weight"
    weights[name] = torch.zeros(len(weights[name]), 9, 3, 3)
    torch.save(weights, tmp_path / "inpainting.ckpt")
    with pytest.raises(CheckpointError, match="reads 9 channels: it is for inpainting"):
        convert(final, tmp_path / "made", base=str(tmp_path / "inpainting.ckpt"),
                architecture=architecture)  # fmt: skip


def test_a_base_that_lacks_a_weight_is_named(final, architecture, tmp_path, base) -> None:
    path = base / "vae" / f"{WEIGHTS}.safetensors"
    state = sd15.read_file(path)
    save_file({k: v.read() for k, v in state.items() if k != "decoder.conv_in.bias"}, path)
    with pytest.raises(CheckpointError, match=r"missing vae\.decoder\.conv_in\.bias \(1 in all\)"):
        convert(final, tmp_path / "made", base=str(base), architecture=architecture)


def test_what_is_no_stable_diffusion_says_what_to_give(base, tmp_path, architecture) -> None:
    with pytest.raises(CheckpointError, match="there is no Stable Diffusion at nowhere;"):
        load("nowhere", architecture)
    with pytest.raises(CheckpointError, match=r"no Stable Diffusion at models/sd\.safetensors;"):
        load("models/sd.safetensors", architecture)  # no name on the hub, which is not asked
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"no weights named model\.diffusion_model\.\*"):
        load(tmp_path / "other.ckpt", architecture)
    torch.save({"a": 1}, tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match="holds no weights"):
        load(tmp_path / "none.ckpt", architecture)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load(tmp_path / "cut.safetensors", architecture)
    (base / "unet" / f"{WEIGHTS}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"there are no weights in .*unet"):
        load(base, architecture)
    (base / "unet" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"unet/config\.json is missing or not JSON"):
        load(base, architecture)


def test_without_a_network_a_name_says_what_to_fetch(architecture, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError) as caught:
        load(sd15.SUGGESTED, architecture)
    assert "on a machine with network download unet/config.json" in str(caught.value)
    assert "--base" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub(base: Path, tmp_path: Path, monkeypatch) -> Path:
    """A hub with the one repository `own/base`, which is fetched to `tmp_path / "fetched"`."""

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        assert name == "own/base"
        for path in [path for path in base.rglob("*") if path.is_file()]:
            file = path.relative_to(base)
            if any(fnmatch(file.as_posix(), pattern) for pattern in allow_patterns):
                (tmp_path / "fetched" / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, tmp_path / "fetched" / file)
        return str(tmp_path / "fetched")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    return base


def fetched(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in (folder / "fetched").rglob("*.safetensors"))


def test_a_name_on_the_hub_is_fetched_once(hub: Path, decoder, architecture, tmp_path) -> None:
    for part in ("unet", "vae"):
        for more in (f"{WEIGHTS}.fp16.safetensors", f"{WEIGHTS}.bin"):
            (hub / part / more).write_bytes(b"not wanted")
    (hub / "text_encoder").mkdir()
    (hub / "text_encoder" / "model.safetensors").write_bytes(b"not wanted")
    found = load("own/base", architecture)
    same(found, decoder)
    assert found.source == "own/base"
    assert fetched(tmp_path) == ["unet", "vae"]


def test_of_a_name_with_fp16_alone_that_is_fetched(hub, decoder, architecture, tmp_path) -> None:
    for part in ("unet", "vae"):
        (hub / part / f"{WEIGHTS}.safetensors").unlink()
        state = {k: v.half() for k, v in getattr(decoder, part).state_dict().items()}
        save_file(state, hub / part / f"{WEIGHTS}.fp16.safetensors")
    same(load("own/base", architecture), decoder, torch.float16)
    assert fetched(tmp_path) == ["unet", "vae"]


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError(104, "reset"), huggingface_hub.errors.HTTPError("peer closed\nhalf way"),
     RuntimeError("cas: 500"), huggingface_hub.errors.HFValidationError("own/base")],
)  # fmt: skip
def test_a_download_that_breaks_says_what_to_fetch(error, architecture, monkeypatch) -> None:
    def fetch(_name: str, **_options: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(CheckpointError, match="cannot fetch own/base ") as caught:
        load("own/base", architecture)
    assert f"({type(error).__name__})" in str(caught.value)
    assert f"unet/{WEIGHTS}.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["sd.ckpt", "unet/diffusion_pytorch_model.bin"])
def test_a_base_that_would_run_something_is_refused(
    file, base, final, architecture, tmp_path
) -> None:
    marker = tmp_path / "it-ran"
    attack = pickle.dumps({"state_dict": Reduces(os.system, f"touch {marker}")}, protocol=2)
    given = base if file.startswith("unet/") else base / file
    if file.startswith("unet/"):
        (base / "unet" / f"{WEIGHTS}.safetensors").unlink()
    torch_file(base / file, attack)
    with pytest.raises(CheckpointError, match=r"is refused: its pickle names posix\.system") as e:
        convert(final, tmp_path / "made", base=str(given), architecture=architecture)
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 400
    assert not marker.exists()
    assert not (tmp_path / "made").exists()


def test_a_configuration_that_makes_no_model_is_named(final, architecture, tmp_path, base) -> None:
    path = base / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"norm_num_groups": 7}))
    with pytest.raises(CheckpointError, match="configuration of the U-Net of base cannot be used"):
        convert(final, tmp_path / "made", base=str(base), architecture=architecture)
