"""Stable Diffusion 1.5 in any form: a directory of diffusers, one file, or a name on the hub."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)

from kosmosg import release
from kosmosg.convert import pickled
from kosmosg.convert.inert import options
from kosmosg.convert.stored import StoredTensor, read_safetensors
from kosmosg.errors import CheckpointError
from kosmosg.model.image_decoder import NOISE_SCHEDULE

SUGGESTED = "stable-diffusion-v1-5/stable-diffusion-v1-5"
Tensors = Mapping[str, StoredTensor]

_FILES = (".safetensors", ".ckpt", ".pt", ".bin")
_WEIGHTS = "diffusion_pytorch_model"
# One copy of each weight: the repository holds it in four forms, 20 GB in all.
_CONFIGS = ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
_FULL, _HALF = (
    [f"{part}/{_WEIGHTS}{variant}.safetensors" for part in ("unet", "vae")]
    for variant in ("", ".fp16")
)
_UNET_PREFIX, _VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """An image decoder before it is loaded: configurations, weights not yet read, noise schedule.

    `source` is what the model card calls it.
    """

    unet_config: dict[str, Any]
    unet: Tensors
    vae_config: dict[str, Any]
    vae: Tensors
    schedule: dict[str, Any]
    source: str


def load(base: str, *, unet_config: Mapping[str, Any], vae_config: Mapping[str, Any]) -> Decoder:
    """Return the image decoder of `base`.

    Args:
        base: A directory in diffusers' layout; a .safetensors or .ckpt file in the original one;
            or, where neither exists, an id on the hub such as `stable-diffusion-v1-5/...`.
        unet_config: Of the U-Net of a single file, which cannot say it; a directory has its own.
        vae_config: Likewise.

    Raises:
        CheckpointError: If it is none of these, is damaged, or cannot be fetched.
    """
    path = Path(base)
    if path.is_dir():
        return _directory(path, path.name)
    if path.is_file():
        return _single_file(path, dict(unet_config), dict(vae_config))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and path.suffix not in _FILES:
        return _directory(_fetched(base), base)
    raise CheckpointError(
        f"there is no Stable Diffusion at {base}; give a directory, a .safetensors or .ckpt file, "
        f"or a name on the hub such as {SUGGESTED}"
    )


def check_width(decoder: Decoder, embed_dim: int) -> None:
    """Pass a U-Net that takes AlignerNet's output and the VAE's latents.

    Raises:
        CheckpointError: Naming both widths.
    """
    width, channels = _condition_width(decoder.unet), _channels(decoder.unet)
    if width != embed_dim:
        kind = {1024: ", that of Stable Diffusion 2.x", 2048: ", that of SDXL"}.get(width, "")
        raise CheckpointError(
            f"the U-Net of {decoder.source} takes conditions {width} wide{kind}, and AlignerNet "
            f"makes {embed_dim}; give Stable Diffusion 1.5 or a fine-tune of it"
        )
    if channels != decoder.vae_config.get("latent_channels", 4):
        raise CheckpointError(
            f"the U-Net of {decoder.source} reads {channels} channels: it is for inpainting or the "
            "like; give one that reads latents alone"
        )


def modern_name(name: str) -> str:
    """Return the name that today's diffusers gives a weight of a VAE."""
    old = re.fullmatch(r"(.*mid_block\.attentions\.0\.)(query|key|value|proj_attn)(\..*)", name)
    return f"{old[1]}{_OLD_ATTENTION[old[2]]}{old[3]}" if old else name


def _modern(tensors: Tensors) -> dict[str, StoredTensor]:
    return {modern_name(name): tensor for name, tensor in tensors.items()}


def read_file(path: Path) -> dict[str, StoredTensor]:
    """Return the weights of a file by its kind, none read yet: safetensors, or torch's own.

    Raises:
        CheckpointError: If it is neither, or holds no weights.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    data = pickled.load(path)
    data = data.get("state_dict", data) if isinstance(data, dict) else {}
    tensors = {
        name: value for name, value in options(data).items() if isinstance(value, StoredTensor)
    }
    if not tensors:
        raise CheckpointError(f"{path} holds no weights; give another file")
    return tensors


def _directory(path: Path, name: str) -> Decoder:
    return Decoder(
        unet_config=_config(path, "unet/config.json"),
        unet=_weights(path / "unet"),
        vae_config=_config(path, "vae/config.json"),
        vae=_modern(_weights(path / "vae")),
        schedule=_schedule(path),
        source=name,
    )


def _config(directory: Path, name: str) -> dict[str, Any]:
    try:
        read = json.loads((directory / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise CheckpointError(
            f"{directory / name} is missing or not JSON; give a directory in diffusers' layout "
            f"(unet/, vae/, scheduler/), such as {SUGGESTED} downloaded whole"
        )
    return {key: value for key, value in read.items() if not key.startswith("_")}


def _weights(folder: Path) -> dict[str, StoredTensor]:
    """Return the weights of one part: safetensors before .bin, full precision before fp16."""
    bins = {
        variant: [path for path in sorted(folder.glob("*.bin")) if re.fullmatch(name, path.name)]
        for variant, name in (
            ("", rf"{_WEIGHTS}(-\d+-of-\d+)?\.bin"),
            ("fp16", rf"{_WEIGHTS}\.fp16(-\d+-of-\d+)?\.bin"),
        )
    }
    files = (
        release.weight_files(folder)
        or release.weight_files(folder, variant="fp16")
        or bins[""]
        or bins["fp16"]
    )
    if files:
        return {name: one for path in files for name, one in read_file(path).items()}
    raise CheckpointError(
        f"there are no weights in {folder} ({_WEIGHTS}.safetensors or .bin, or their fp16 variant);"
        " download the directory again, with its large files"
    )


def _schedule(directory: Path) -> dict[str, Any]:
    """Return the noise schedule that the U-Net was trained with: how it is walked is ours."""
    if not (directory / "scheduler").is_dir():
        return dict(NOISE_SCHEDULE)
    own = _config(directory, "scheduler/scheduler_config.json")
    names = (*NOISE_SCHEDULE, "trained_betas", "rescale_betas_zero_snr")
    return dict(NOISE_SCHEDULE) | {name: own[name] for name in names if own.get(name) is not None}


def _single_file(path: Path, unet_config: dict[str, Any], vae_config: dict[str, Any]) -> Decoder:
    tensors = read_file(path)
    for prefix in (_UNET_PREFIX, _VAE_PREFIX):
        if not any(name.startswith(prefix) for name in tensors):
            raise CheckpointError(
                f"{path} has no weights named {prefix}*; give a whole Stable Diffusion 1.5 in its "
                "original layout, or a directory in diffusers' layout"
            )
    unet = {name: one for name, one in tensors.items() if name.startswith(_UNET_PREFIX)}
    vae = {
        name: _linear(name, one) for name, one in tensors.items() if name.startswith(_VAE_PREFIX)
    }
    if _condition_width(unet) == unet_config["cross_attention_dim"]:  # else it will be refused
        # diffusers' converters only move what they are given, so nothing is read here.
        unet = convert_ldm_unet_checkpoint(unet, unet_config)
        vae = _modern(convert_ldm_vae_checkpoint(vae, vae_config))
    return Decoder(
        unet_config=unet_config,
        unet=unet,
        vae_config=vae_config,
        vae=vae,
        schedule=dict(NOISE_SCHEDULE),
        source=path.name,
    )


def _linear(name: str, tensor: StoredTensor) -> StoredTensor:
    """Return the VAE's attention as linear maps; the original layout has convolutions of 1 x 1."""
    if ".mid.attn_1." in name and name.endswith(".weight") and tensor.shape[2:] == (1, 1):
        return replace(tensor, shape=tensor.shape[:2], stride=tensor.stride[:2])
    return tensor


def _condition_width(unet: Tensors) -> int:
    for name, tensor in unet.items():
        if name.endswith("attn2.to_k.weight"):
            return tensor.shape[-1]
    return 0


def _channels(unet: Tensors) -> int:
    for name in ("conv_in.weight", f"{_UNET_PREFIX}input_blocks.0.0.weight"):
        if name in unet and unet[name].ndim == 4:
            return unet[name].shape[1]
    return 0


def _fetched(name: str) -> Path:
    """Return where a repository of the hub lies here now: in full precision, or as fp16."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        found = Path(snapshot_download(name, allow_patterns=[*_CONFIGS, *_FULL]))
        if not all((found / file).is_file() for file in _FULL):
            found = Path(snapshot_download(name, allow_patterns=[*_CONFIGS, *_HALF]))
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot fetch {name} ({type(error).__name__}); on a machine with network download "
            f"{', '.join([*_CONFIGS, *_FULL])} from it into a directory, copy that here and give "
            "it as --base"
        ) from None
    return found
