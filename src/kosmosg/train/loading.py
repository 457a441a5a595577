"""Parts of a model from directories: read whole, of the right sizes, or refused by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPVisionModel

from kosmosg import release
from kosmosg.convert import sd15
from kosmosg.convert.sizes import UNET, VAE
from kosmosg.convert.stored import StoredTensor
from kosmosg.errors import CheckpointError
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.clip_vision import ClipVision
from kosmosg.model.image_decoder import ImageDecoder

Module = TypeVar("Module", bound=nn.Module)


def has_part(directory: Path, part: str) -> bool:
    """Return whether a model's directory has this part."""
    return (directory / part / "config.json").is_file()


def load_part(
    cls: type[Module],
    directory: Path,
    name: str,
    dtype: torch.dtype,
    **changes: Any,  # noqa: ANN401 -- of its configuration
) -> Module:
    """Return one part of a model's directory, whose file must hold just its weights.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    release.check_part(directory, name)
    made = _loaded(cls, directory / name, dtype, **changes)
    release.check_weights(directory, {name: made.state_dict()})
    return made


def _loaded(
    cls: type[Module],
    folder: Path,
    dtype: torch.dtype,
    **changes: Any,  # noqa: ANN401
) -> Module:
    if not folder.is_dir():
        raise CheckpointError(f"there is no directory {folder}; correct the path")
    read: Any = cls
    try:
        return read.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, **changes
        )
    except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"cannot load {folder} as {cls.__name__}: {reason}; copy the whole directory again"
        ) from None


def _from_stored(
    cls: Any,  # noqa: ANN401 -- of diffusers
    sizes: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    dtype: torch.dtype,
    source: str,
) -> Any:  # noqa: ANN401 -- a `cls`
    try:
        with torch.device("meta"):
            made = cls.from_config(dict(sizes))
        state = {name: tensor.read().to(dtype) for name, tensor in tensors.items()}
        made.load_state_dict(state, assign=True)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{cls.__name__} of {source} cannot be used: {reason}; give another one"
        ) from None
    return made


def with_reconstruction(aligner: AlignerNet, *, wanted: bool) -> AlignerNet:
    """Return an AlignerNet with N (new if it had none), or without; M is the same."""
    if aligner.config["with_reconstruction"] == wanted:
        return aligner
    sizes = {name: value for name, value in aligner.config.items() if not name.startswith("_")}
    made = AlignerNet(**{**sizes, "with_reconstruction": wanted})
    made.encoder.load_state_dict(aligner.encoder.state_dict())
    return made


def load_decoder(
    directory: Path | None, base: str | None, *, embed_dim: int, dtype: torch.dtype
) -> ImageDecoder:
    """Return U-Net and VAE, frozen: those of a model's directory, else of a Stable Diffusion.

    Raises:
        CheckpointError: If there are none, or they take conditions of another width.
    """
    if directory is not None and has_part(directory, "unet") and has_part(directory, "vae"):
        unet = load_part(UNet2DConditionModel, directory, "unet", dtype)
        vae = load_part(AutoencoderKL, directory, "vae", dtype)
    elif base is None:
        raise CheckpointError(
            f"stage 3 draws with Stable Diffusion's U-Net and VAE, and {directory or 'a new model'}"
            " has none; name a Stable Diffusion 1.5: model.base=DIR"
        )
    else:
        found = sd15.load(base, unet_config=UNET, vae_config=VAE)
        sd15.check_width(found, embed_dim)
        source = found.source
        unet = _from_stored(UNet2DConditionModel, found.unet_config, found.unet, dtype, source)
        vae = _from_stored(AutoencoderKL, found.vae_config, found.vae, dtype, source)
    width = unet.config["cross_attention_dim"]
    if width != embed_dim:
        raise CheckpointError(
            f"the U-Net takes conditions {width} wide and AlignerNet makes {embed_dim}; give parts"
            " that belong together"
        )
    if not torch.cuda.is_available():
        unet.set_attn_processor(AttnProcessor())  # plain products are faster on a CPU
    return ImageDecoder(vae, unet).eval()


def load_vision(vision: ClipVision, directory: Path) -> None:
    """Give a new vision tower the weights of CLIP's in a directory.

    Raises:
        CheckpointError: If there is none there, or it is of other sizes.
    """
    given = _loaded(CLIPVisionModel, directory, torch.float32).state_dict()
    own = vision.clip.state_dict()
    odd = [name for name in own.keys() | given.keys() if _shape(own, name) != _shape(given, name)]
    if odd:
        name = min(odd)
        raise CheckpointError(
            f"the vision tower in {directory} is not that of model.mllm: {name} is"
            f" {_shape(given, name)}, not {_shape(own, name)}; give the one of these sizes"
        )
    vision.clip.load_state_dict(given)


def _shape(state: Mapping[str, torch.Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None
