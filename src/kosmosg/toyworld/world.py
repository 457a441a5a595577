"""A nano directory, loaded for evaluation: what draws, what reads prompts, and who judges."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPVisionModel

from kosmosg import release
from kosmosg.errors import CheckpointError
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.clip_vision import ClipVision
from kosmosg.model.kosmosg import KosmosG
from kosmosg.model.mllm import MLLM
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld.judge import Judge
from kosmosg.toyworld.workspace import VISION, pipeline

Source = Literal["render", "vae", "text_encoder", "stage2", "stage3"]
_Part = TypeVar("_Part", bound=ModelMixin)


@dataclass(frozen=True, kw_only=True)
class World:
    """A model's directory, loaded: what rows draw with, and who judges.

    Attributes:
        readers: By stage, what makes conditions of prompts; `stage3` is the shipped one.
    """

    pipe: KosmosGPipeline
    judge: Judge
    text_encoder: CLIPTextModel | None
    readers: Mapping[str, KosmosG]


@dataclass(frozen=True, kw_only=True)
class Foundation:
    """What the paper takes pretrained, and nano makes first."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: Tokenizer
    vision: ClipVision


def load(directory: Path, needed: Collection[Source]) -> World:
    """Return these parts of a model's directory and the judge, in float32.

    Args:
        directory: A whole model, or the `model` of a workspace in which not all is trained yet.
        needed: What the rows draw with.

    Raises:
        CheckpointError: If a part is missing or damaged.
    """
    if (directory / release.INDEX_FILE).is_file():
        pipe = KosmosGPipeline.from_pretrained(directory)
    else:
        pipe = _unfinished(directory, needed)
    pipe.set_progress_bar_config(disable=True)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    device = pipe.device
    readers = {}
    if pipe.mllm is not None and pipe.aligner is not None:
        readers["stage3"] = KosmosG(pipe.mllm, pipe.aligner)
    if "stage2" in needed:
        mllm = _part(MLLM, directory / "stage2", "mllm")
        readers["stage2"] = KosmosG(mllm, _part(AlignerNet, directory / "stage2", "aligner"))
    text_encoder = None
    if "text_encoder" in needed:
        text_encoder = _text_encoder(directory / "text_encoder")
        nn.Module.to(text_encoder, device)
    judge = _part(Judge, directory, "judge")
    nn.Module.to(judge, device)  # diffusers' own `to` confuses type checkers
    return World(
        pipe=pipe,
        judge=judge,
        text_encoder=text_encoder,
        readers={name: reader.to(device).eval() for name, reader in readers.items()},
    )


def _unfinished(directory: Path, needed: Collection[Source]) -> KosmosGPipeline:
    """Return the pipeline of a workspace's parts, without readers of prompts if none is needed."""
    reads = "stage3" in needed
    return pipeline(
        Tokenizer.from_pretrained(directory / "tokenizer"),
        _part(UNet2DConditionModel, directory, "unet"),
        _part(AutoencoderKL, directory, "vae"),
        _part(MLLM, directory, "mllm") if reads else None,
        _part(AlignerNet, directory, "aligner") if reads else None,
    )


def load_foundation(directory: Path) -> Foundation:
    """Return what nano stands on, from a whole model or a workspace's `model`, in float32.

    The vision tower of a whole model is the one that stage 1 left: its last layer has learnt on.

    Raises:
        CheckpointError: If a part is missing or damaged.
    """
    if (directory / "clip").is_dir():
        vision = ClipVision(**VISION)
        vision.clip.load_state_dict(
            CLIPVisionModel.from_pretrained(directory / "clip", dtype=torch.float32).state_dict()
        )
    else:
        vision = _part(MLLM, directory / "stage2", "mllm").vision
    return Foundation(
        vae=_part(AutoencoderKL, directory, "vae"),
        text_encoder=_text_encoder(directory / "text_encoder"),
        tokenizer=Tokenizer.from_pretrained(directory / "tokenizer"),
        vision=vision.eval(),
    )


def _part(kind: type[_Part], directory: Path, name: str) -> _Part:
    if not release.weight_files(directory / name):
        raise CheckpointError(_missing(directory / name))
    part = kind.from_pretrained(directory / name, dtype=torch.float32, local_files_only=True)
    release.check_weights(directory, {name: part.state_dict()})
    return part.eval()


def _text_encoder(folder: Path) -> CLIPTextModel:
    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(_missing(folder))
    return CLIPTextModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def _missing(folder: Path) -> str:
    return (
        f"{folder} has no weights, and a row you asked for needs them; "
        "train it, choose other rows with --rows, or give a model that has it (nano has)"
    )
