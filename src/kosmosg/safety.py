"""The optional safety checker: diffusers' own, read from a directory, and pictures judged by it."""

import os
from pathlib import Path
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from kosmosg.errors import CheckpointError, ConfigError

NAMES = ("safety_checker", "feature_extractor")
_PREPROCESSOR = "preprocessor_config.json"
Images = Float[Tensor, "batch channels height width"]


def attach(pipe: DiffusionPipeline, directory: str | os.PathLike[str]) -> None:
    """Give a pipeline the safety checker of a directory, on the device where it computes.

    Raises:
        CheckpointError: If the directory holds none, or a damaged one.
    """
    parts: Any = pipe
    checker, extractor = load(directory, dtype=parts.unet.dtype)
    checker.to(parts.unet.device)
    pipe.register_modules(safety_checker=checker, feature_extractor=extractor)


def load(
    directory: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
) -> tuple[nn.Module, Any]:
    """Return a StableDiffusionSafetyChecker and what prepares pictures for it.

    Nothing is downloaded, and only safetensors and JSON are read.

    Args:
        directory: With config.json, model.safetensors and preprocessor_config.json; the last may
            lie in `feature_extractor` beside it instead, as in Stable Diffusion 1.5.
        dtype: What it computes in.
        variant: Of the weights, such as `fp16`; taken if it is there.

    Raises:
        CheckpointError: If a file is missing or damaged, or it is another model: a checker some of
            whose weights are random, or no numbers, would pass anything.
    """
    directory = Path(directory)
    if variant and not (directory / f"model.{variant}.safetensors").is_file():
        variant = None
    weights = f"model.{variant}.safetensors" if variant else "model.safetensors"
    for name in ("config.json", weights):
        if not (directory / name).is_file():
            raise _unusable(directory, f"{name} is missing")
    places = (directory, directory.parent / "feature_extractor")
    found = [place for place in places if (place / _PREPROCESSOR).is_file()]
    if not found:
        raise _unusable(directory, f"{_PREPROCESSOR} is in none of {places[0]}, {places[1]}")
    # A second of imports, for those who want it.
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessorPil

    given: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "variant": variant}
    try:
        extractor = CLIPImageProcessorPil.from_pretrained(str(found[0]), local_files_only=True)
        loaded: Any = StableDiffusionSafetyChecker.from_pretrained(
            str(directory), dtype=dtype, output_loading_info=True, **given
        )
    except (
        *(OSError, RuntimeError, ValueError, TypeError, SafetensorError, ImportError),
        *(ArithmeticError, AttributeError, LookupError),  # transformers, of an odd config.json
    ) as error:
        raise _unusable(directory, " ".join(str(error).split())) from error
    checker, info = loaded
    wrong = sorted([*info["missing_keys"], *info["unexpected_keys"]])  # only logged otherwise
    if wrong:
        raise _unusable(
            directory, f"{len(wrong)} weights are missing or unexpected, such as {wrong[0]}"
        )
    if not all(weight.isfinite().all() for weight in checker.state_dict().values()):
        raise _unusable(directory, "some of its weights are no numbers")
    return checker.eval(), extractor


def check_pair(safety_checker: object, feature_extractor: object) -> None:
    """Pass a checker that has what prepares pictures for it.

    Raises:
        ConfigError: If that is missing.
    """
    if safety_checker is not None and feature_extractor is None:
        raise ConfigError(
            "there is a safety_checker and no feature_extractor to prepare pictures for it; give "
            "both, as kosmosg.safety.load returns them"
        )


def judge(
    safety_checker: Any,  # noqa: ANN401 -- diffusers' class, which is not imported here
    feature_extractor: Any,  # noqa: ANN401 -- of transformers
    images: Images,
) -> tuple[Images, list[bool]]:
    """Return pictures in [0, 1], black where the checker finds what it looks for, and where it did.

    Source:
        StableDiffusionPipeline.run_safety_checker of diffusers.
    """
    pixels = VaeImageProcessor.pt_to_numpy(images)
    shown = feature_extractor(VaeImageProcessor.numpy_to_pil(pixels), return_tensors="pt")
    # It would blacken what it is given in place; what is wanted of it here is its opinion.
    _, flagged = safety_checker(
        clip_input=shown.pixel_values.to(safety_checker.device, safety_checker.dtype),
        images=torch.zeros(len(images)),
    )
    is_flagged = torch.tensor(flagged, device=images.device)[:, None, None, None]
    return torch.where(is_flagged, torch.zeros_like(images), images), [bool(one) for one in flagged]


def _unusable(directory: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"no safety checker at {directory}: {reason}; give the directory safety_checker of a "
        "Stable Diffusion 1.5, its weights as safetensors"
    )
