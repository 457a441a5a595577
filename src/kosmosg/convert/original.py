"""Our directory to a checkpoint in the authors' layout."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kosmosg import release
from kosmosg.convert import writing
from kosmosg.convert.archive import write_archive
from kosmosg.convert.names import their_name
from kosmosg.convert.reading import DEAD_SCALE, DUMMY, EMBEDDING, TIED
from kosmosg.convert.stored import StoredTensor, read_safetensors
from kosmosg.errors import CheckpointError

# Sections of fairseq's options in which this model decides nothing.
_SETTINGS = (
    *("common", "common_eval", "distributed_training", "dataset", "optimization", "checkpoint"),
    *("bmuf", "generation", "eval_lm", "interactive", "ema"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ready:
    """A small tensor that is written as if it were stored."""

    value: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def read(self) -> Tensor:
        return self.value


def to_original(directory: Path, out: Path) -> None:
    """Write the model of a directory as a file of the authors' layout.

    A model with N is written as they write stage 2, without U-Net and VAE, with the text tower if
    it is there.

    Args:
        directory: Written by `convert` or `save_pretrained`.
        out: The file; it must not exist yet.

    Raises:
        CheckpointError: If the directory is no whole model, is one that the authors' code cannot
            compute, or `out` exists or cannot be written.

    Source:
        NUMERICS sections 4 (the dead scale) and 12.
    """
    directory = release.find(directory)
    release.read_generation_config(directory)
    mllm, aligner = (release.read_part_config(directory, part) for part in ("mllm", "aligner"))
    if mllm["positions"] != "sinusoidal" or mllm["resampler_layers"]:
        raise CheckpointError(
            f"{directory} has positions={mllm['positions']!r} and resampler_layers="
            f"{mllm['resampler_layers']}; the authors' code computes 'sinusoidal' and 0 only"
        )
    parts = ("mllm", "aligner") if aligner["with_reconstruction"] else release.PARTS
    release.check_files(directory, parts)
    model: dict[str, StoredTensor | _Ready] = {}
    for part in parts:
        model |= {their_name(f"{part}.{n}"): one for n, one in _weights(directory / part).items()}
    text_encoder = directory / "text_encoder" / "model.safetensors"
    if aligner["with_reconstruction"] and text_encoder.is_file():
        for name, tensor in read_safetensors(text_encoder).items():
            model[their_name(f"text_encoder.{name.removeprefix('text_model.')}")] = tensor
    embedding = model[EMBEDDING]
    head_dim = mllm["hidden_size"] // mllm["num_attention_heads"]
    model[TIED] = embedding
    model[DEAD_SCALE] = _Ready(value=_dead_scale(head_dim).to(embedding.dtype))
    model[DUMMY] = _Ready(value=torch.zeros(1, dtype=embedding.dtype))
    data = _sections(mllm, aligner, model)
    stored = [{name: one for name, one in model.items() if isinstance(one, StoredTensor)}]
    with writing.appearing(out, num_bytes=writing.sum_bytes(stored, None)) as made:
        write_archive(made, data)


def _weights(folder: Path) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for path in release.weight_files(folder):
        found |= read_safetensors(path)
    return found


def _dead_scale(head_dim: int) -> Float[Tensor, " half"]:
    return (torch.arange(0, head_dim, 2) + 0.4 * head_dim) / (1.4 * head_dim)


def _sections(
    mllm: Mapping[str, Any], aligner: Mapping[str, Any], model: Mapping[str, StoredTensor | _Ready]
) -> dict[str, Any]:
    """Return the whole file: their sections, in each the options that this model decides.

    Of training there is nothing to say: a section without a decision has its name alone, and the
    optimiser's state is left out, as in the golden files.
    """
    align = aligner["with_reconstruction"]
    cfg: dict[str, Any] = {"_name": None, **{name: {"_name": None} for name in _SETTINGS}}
    cfg["model"] = _options(mllm, aligner)
    cfg["task"] = {"_name": "kosmosg", "image_token_length": mllm["num_latents"], "align": align}
    cfg["criterion"] = {"_name": "kosmosg", "align": align}
    cfg["lr_scheduler"] = {"_name": "fixed"}
    cfg["scoring"] = {"_name": "bleu"}
    cfg |= {"optimizer": None, "bpe": None, "tokenizer": None}
    last = {
        "criterion_name": "KosmosGLoss",
        "optimizer_name": "MemoryEfficientFP16Optimizer",
        "lr_scheduler_state": {"best": None},
        "num_updates": 0,
    }
    return {
        "args": None,
        "cfg": cfg,
        "model": model,
        "criterion": {},
        "optimizer_history": [last],
        "task_state": {},
        "extra_state": {
            "metrics": None,
            "previous_training_time": 0.0,
            "train_iterator": {"epoch": 1},
            "epoch": 1,
        },
    }


def _options(mllm: Mapping[str, Any], aligner: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of fairseq that say what the weights do not."""
    return {
        "_name": "kosmosg_xl",
        "activation_fn": "gelu",
        "decoder_embed_dim": mllm["hidden_size"],
        "decoder_input_dim": mllm["hidden_size"],
        "decoder_output_dim": mllm["hidden_size"],
        "decoder_ffn_embed_dim": mllm["intermediate_size"],
        "decoder_layers": mllm["num_hidden_layers"],
        "decoder_attention_heads": mllm["num_attention_heads"],
        "dropout": mllm["dropout"],
        "attention_dropout": mllm["resampler_dropout"],
        "flash_attention": mllm["attention_dropout"] == 0,
        "latent_query_num": mllm["num_latents"],
        "share_decoder_input_output_embed": True,
        "no_scale_embedding": False,
        "decoder_normalize_before": True,
        "no_decoder_final_norm": False,
        "deepnorm": False,
        "sope_rel_pos": True,
        "subln": True,
        "text_encoder": "none",
        "image_encoder": "clip",
        "audio_encoder": "none",
        "connector": "xconnector",
        "visual_model_name": "ViT-L-14",
        "visual_output_dim": mllm["vision_hidden_size"],
        "align": aligner["with_reconstruction"],
    }
