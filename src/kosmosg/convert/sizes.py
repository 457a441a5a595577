"""The sizes of a model from the shapes of its weights, and what shapes cannot show."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from kosmosg.errors import CheckpointError
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.mllm import MLLM

# Stable Diffusion 1.5; what is not named here has diffusers' default.
UNET = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}
VAE = {
    "sample_size": 512,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.18215,
}
TEXT_ENCODER = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# Options of the release that its weights do not betray and that change its numbers.
_FIXED = {
    "activation_fn": "gelu",
    "no_scale_embedding": False,
    "deepnorm": False,
    "visual_model_name": "ViT-L-14",
}
# What may differ in a checkpoint of the released sizes; the vocabulary is the tokenizer's.
_FREE = {"vocab_size", "dropout", "attention_dropout", "resampler_dropout", "with_reconstruction"}
_RELEASED_WIDTHS = {"vision tower": 1024, "AlignerNet": 768}

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What the shapes of weights cannot show; the defaults are the release's.

    The heads of the MLLM are among the checkpoint's own options. Those of the other parts are
    constants in the authors' code, so a checkpoint of other widths needs them from outside.

    Args:
        vision_heads: Attention heads of the vision tower.
        aligner_heads: Attention heads of AlignerNet.
        unet: Configuration of the U-Net in the checkpoint, or in a base of one file.
        vae: Configuration of the VAE there.
        text_encoder: Configuration of the text tower in a checkpoint of stage 2.

    Source:
        NUMERICS sections 3.2 and 5: every head is 64 wide.
    """

    vision_heads: int = 16
    aligner_heads: int = 12
    unet: dict[str, Any] = field(default_factory=lambda: dict(UNET))
    vae: dict[str, Any] = field(default_factory=lambda: dict(VAE))
    text_encoder: dict[str, Any] = field(default_factory=lambda: dict(TEXT_ENCODER))


def check_options(given: Mapping[str, Any]) -> None:
    """Pass options of a checkpoint that this model computes as the release does.

    Raises:
        CheckpointError: Naming the option.
    """
    for name, value in _FIXED.items():
        if name in given and given[name] != value:
            raise CheckpointError(
                f"the checkpoint was made with {name}={given[name]!r:.60} and this model knows "
                f"{value!r} only; convert a checkpoint of the released kind"
            )


def mllm_sizes(
    shapes: Shapes, given: Mapping[str, Any], architecture: Architecture | None
) -> dict[str, Any]:
    """Return the configuration of the MLLM.

    Args:
        shapes: Of the weights, under our names.
        given: The model's options as the checkpoint keeps them.
        architecture: None: the release's.

    Raises:
        CheckpointError: If a weight that shows a size is missing, or heads are not known.
    """
    vocab_size, hidden_size = _shape(shapes, "mllm.embed_tokens.weight", 2)
    patches, vision_size = _shape(
        shapes, "mllm.vision.clip.embeddings.position_embedding.weight", 2
    )
    patch_size = _shape(shapes, "mllm.vision.clip.embeddings.patch_embedding.weight", 4)[-1]
    tower = "mllm.vision.clip.encoder.layers"
    attention_dropout = _rate(given, "attention_dropout")
    num_layers = _layers(shapes, "mllm.layers")
    num_latents, _ = _shape(shapes, "mllm.resampler.latents", 2)
    _check_said(given, decoder_layers=num_layers, latent_query_num=num_latents)
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": _shape(shapes, "mllm.layers.0.ffn.fc1.weight", 2)[0],
        "num_hidden_layers": num_layers,
        "num_attention_heads": _mllm_heads(given, hidden_size),
        "num_latents": num_latents,
        "dropout": _rate(given, "dropout"),
        # The released kernel of the decoder's attention has no dropout, the resampler has.
        "attention_dropout": 0.0 if given.get("flash_attention", True) else attention_dropout,
        "resampler_dropout": attention_dropout,
        "vision_hidden_size": vision_size,
        "vision_intermediate_size": _shape(shapes, f"{tower}.0.mlp.fc1.weight", 2)[0],
        "vision_layers": _layers(shapes, tower),
        "vision_heads": _heads("vision tower", vision_size, architecture),
        "image_size": math.isqrt(max(patches - 1, 0)) * patch_size,
        "patch_size": patch_size,
    }


def aligner_sizes(
    shapes: Shapes, architecture: Architecture | None, *, with_reconstruction: bool
) -> dict[str, Any]:
    """Return the configuration of AlignerNet.

    Raises:
        CheckpointError: As `mllm_sizes`.
    """
    embed_dim, hidden_size = _shape(shapes, "aligner.encoder.project.weight", 2)
    return {
        "hidden_size": hidden_size,
        "embed_dim": embed_dim,
        "intermediate_size": _shape(shapes, "aligner.encoder.layers.0.ffn.fc1.weight", 2)[0],
        "num_heads": _heads("AlignerNet", embed_dim, architecture),
        "num_layers": _layers(shapes, "aligner.encoder.layers"),
        "num_queries": _shape(shapes, "aligner.encoder.queries", 2)[0],
        "max_positions": _shape(shapes, "aligner.encoder.positions.weight", 2)[0],
        "with_reconstruction": with_reconstruction,
    }


def check_released(mllm: Mapping[str, Any], aligner: Mapping[str, Any]) -> None:
    """Pass configurations of the released sizes.

    No weight contradicts another where a layer is missing as a whole, or a row of the queries.

    Raises:
        CheckpointError: Naming the size.
    """
    with torch.device("meta"):
        parts = (("MLLM", mllm, MLLM().config), ("AlignerNet", aligner, AlignerNet().config))
    for part, sizes, released in parts:
        for name in sorted(sizes.keys() - _FREE):
            if sizes[name] != released[name]:
                raise CheckpointError(
                    f"of the checkpoint's {part} {name} is {sizes[name]}, the released one "
                    f"{released[name]}; give an unchanged checkpoint of the authors, or "
                    "--architecture for one of other sizes"
                )


def _check_said(given: Mapping[str, Any], **found: int) -> None:
    for name, count in found.items():
        if name in given and given[name] != count:
            raise CheckpointError(
                f"the checkpoint's options say {name}={given[name]!r:.60} and its weights {count}; "
                "give an unchanged checkpoint of the authors"
            )


def _shape(shapes: Shapes, name: str, ndim: int) -> tuple[int, ...]:
    shape = shapes.get(name, ())
    if len(shape) != ndim or 0 in shape:
        found = f"has the shape {shape}" if name in shapes else "is missing"
        raise CheckpointError(
            f"not a checkpoint of Kosmos-G: the weight {name} (our name) {found}; "
            "give the authors' checkpoint of stage 2 or 3"
        )
    return shape


def _layers(shapes: Shapes, stack: str) -> int:
    """Return how many layers there are; gaps in their numbers are found when names are compared."""
    at = stack.count(".") + 1
    return len({name.split(".")[at] for name in shapes if name.startswith(f"{stack}.")})


def _mllm_heads(given: Mapping[str, Any], hidden_size: int) -> int:
    heads = given.get("decoder_attention_heads", 32 if hidden_size == 2048 else None)
    if type(heads) is not int or heads < 1 or hidden_size % heads:
        raise CheckpointError(
            f"the checkpoint's options say decoder_attention_heads={heads!r:.60} for a width of "
            f"{hidden_size}; the shapes cannot show it: keep its cfg or args in the file"
        )
    return heads


def _rate(given: Mapping[str, Any], name: str) -> float:
    rate = given.get(name, 0.1)
    if type(rate) not in (int, float) or not 0 <= rate <= 1:
        raise CheckpointError(
            f"the checkpoint's options say {name}={rate!r:.60}, which is no rate from 0 to 1; "
            "give an unchanged checkpoint of the authors"
        )
    return rate


def _heads(part: str, width: int, architecture: Architecture | None) -> int:
    if architecture is None and width != _RELEASED_WIDTHS[part]:
        raise CheckpointError(
            f"the {part} is {width} wide, the released one {_RELEASED_WIDTHS[part]}, and shapes "
            "cannot show its attention heads; give --architecture, a JSON file that names them"
        )
    known = architecture or Architecture()
    heads = known.vision_heads if part == "vision tower" else known.aligner_heads
    if heads < 1 or width % heads:
        raise CheckpointError(
            f"{heads} heads do not divide the {part}'s width of {width}; correct --architecture"
        )
    return heads
