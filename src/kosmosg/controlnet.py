"""ControlNets: networks that steer the U-Net by a picture, and one kind of picture for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from diffusers.models.controlnets.controlnet import ControlNetModel
from PIL import Image
from safetensors import SafetensorError

from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.images import to_rgb
from kosmosg.pipeline import KosmosGPipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers reads no other name


def weights_of(directory: str | Path) -> Path:
    """Return the file of a ControlNet's weights.

    Raises:
        CheckpointError: If the directory holds no ControlNet.
    """
    for name in ("config.json", WEIGHTS):
        if not (Path(directory) / name).is_file():
            raise CheckpointError(
                f"no ControlNet at {directory}: {name} is missing; name the directory that "
                "ControlNetModel.save_pretrained wrote"
            )
    return Path(directory) / name


def load_controlnet(directory: str | Path, pipe: KosmosGPipeline) -> ControlNetModel:
    """Return the ControlNet of a directory (config.json and safetensors), for this pipeline.

    Raises:
        CheckpointError: If it is missing, damaged or no ControlNet.
        ConfigError: If it was made for another U-Net or VAE.
    """
    directory = Path(directory)
    weights_of(directory)
    remedy = "copy the whole directory again, with weights as safetensors"
    try:
        loaded: Any = ControlNetModel.from_pretrained(
            str(directory),
            local_files_only=True,
            use_safetensors=True,
            torch_dtype=pipe.unet.dtype,
            output_loading_info=True,
        )
    except (
        *(OSError, RuntimeError, ValueError, TypeError, SafetensorError),
        *(ArithmeticError, AttributeError, LookupError),  # diffusers, of an odd config.json
    ) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"cannot load the ControlNet {directory}: {reason}; {remedy}"
        ) from error
    controlnet, info = loaded
    wrong = [*info["missing_keys"], *info["unexpected_keys"]]  # which diffusers only logs
    if wrong:
        raise CheckpointError(
            f"the ControlNet {directory} has {len(wrong)} missing or unexpected weights, such as "
            f"{wrong[0]}; {remedy}"
        )
    controlnet = controlnet.to(pipe.unet.device).eval()
    check_controlnet(controlnet, pipe, str(directory))
    return controlnet


def check_controlnet(controlnet: ControlNetModel, pipe: KosmosGPipeline, name: str) -> None:
    """Pass a ControlNet made for this U-Net and this VAE.

    Raises:
        ConfigError: Naming both sizes.
    """
    theirs, ours = controlnet.config, pipe.unet.config
    for key, what in (
        ("cross_attention_dim", "reads conditions of width"),
        ("block_out_channels", "has channels"),
    ):
        their, our = _plain(theirs[key]), _plain(ours[key])
        if their != our:
            raise ConfigError(
                f"{name} {what} {their} and this U-Net {our}; take a ControlNet made for this U-Net"
            )
    shrinks = 2 ** (len(theirs["conditioning_embedding_out_channels"]) - 1)
    if shrinks != pipe.vae_scale_factor:
        raise ConfigError(
            f"{name} shrinks control pictures by {shrinks} and this VAE by "
            f"{pipe.vae_scale_factor}; take a ControlNet made for this model"
        )


def edges(image: Image.Image) -> Image.Image:
    """Return a picture's edges, white on black: what a Canny ControlNet reads.

    Raises:
        ConfigError: If OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ConfigError(
            "edges need OpenCV, which is not installed: pip install opencv-python-headless"
        ) from error
    grey = np.asarray(to_rgb(image).convert("L"))
    return Image.fromarray(cv2.Canny(grey, 100, 200)).convert("RGB")


def _plain(value: int | Sequence[int]) -> int | list[int]:
    return value if isinstance(value, int) else list(value)  # JSON makes lists of tuples
