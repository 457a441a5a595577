"""A checkpoint of the authors: its options, its weights under our names, and what is left out."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kosmosg.convert import pickled
from kosmosg.convert.inert import options as options_in
from kosmosg.convert.names import our_name
from kosmosg.convert.sd15 import modern_name
from kosmosg.convert.sizes import check_options
from kosmosg.convert.stored import StoredTensor
from kosmosg.errors import CheckpointError

EMBEDDING = "gpt_model.decoder.embed_tokens.weight"
TIED = "gpt_model.decoder.output_projection.weight"
DUMMY = "gpt_model.decoder.embed_positions._float_tensor"
DEAD_SCALE = "gpt_model.decoder.self_attn_sope.scale"
# Prefixes of names, and why their weights are left out.
_LEFT_OUT = {
    TIED: "the embedding once more (compared: equal)",
    DUMMY: "a dummy that tells fairseq its device",
    DEAD_SCALE: "the scale of xPos, which the release never applies",
    "aligner.clip_encoder.text_model.embeddings.position_ids": "counts from 0: no weight",
}
_UNUSED = re.compile(r"img_model\.visual\.transformer\.resblocks\.\d+\.attn\.")
_TRAINING = {
    "aligner.decoder.": "N, which only training uses; --keep-training-parts keeps it",
    "text_encoder.": "CLIP's text tower, which only training uses; --keep-training-parts keeps it",
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint holds, no weight read yet.

    Args:
        options: The model's, such as `decoder_attention_heads`.
        tensors: Weights to convert, by our names (`mllm.`, `aligner.`, `unet.`, ...).
        their_names: Of those weights.
        ignored: The authors' names of the others, and why.
        has_reconstruction: Whether N is in the file: then it is one of stage 2.
    """

    path: Path
    options: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    their_names: Mapping[str, str]
    ignored: Mapping[str, str]
    has_reconstruction: bool

    def part(self, name: str) -> dict[str, StoredTensor]:
        """Return the weights of one part, by their names in it."""
        start = f"{name}."
        return {
            ours.removeprefix(start): tensor
            for ours, tensor in self.tensors.items()
            if ours.startswith(start)
        }


def read_checkpoint(path: Path, *, keep_training_parts: bool) -> Checkpoint:
    """Return a checkpoint of stage 2 or 3.

    Raises:
        CheckpointError: If it is none, is damaged, or holds a weight that is not in the table of
            names.
    """
    data = pickled.load(path)
    model = data.get("model") if isinstance(data, dict) else None
    if not isinstance(model, dict) or not model:
        raise CheckpointError(f"{path} holds no 'model'; give the authors' checkpoint")
    options = options_in(options_in(data.get("cfg")).get("model"))
    options = options or options_in(data.get("args"))
    check_options(options)
    for name, value in model.items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor):
            raise CheckpointError(f"{path}: {str(name)[:80]!r} in its model is not a weight")
    _check_tied(model, path)
    ignored = {name: why for name in model if (why := _why_ignored(name))}
    their_names = _our_names([name for name in model if name not in ignored], path)
    has_reconstruction = any(name.startswith("aligner.decoder.") for name in their_names)
    if keep_training_parts and not has_reconstruction:
        raise CheckpointError(
            f"{path} is not of stage 2 and has no parts of training; "
            "leave out --keep-training-parts"
        )
    for start, why in {} if keep_training_parts else _TRAINING.items():
        ignored |= {theirs: why for ours, theirs in their_names.items() if ours.startswith(start)}
    kept = {ours: theirs for ours, theirs in their_names.items() if theirs not in ignored}
    return Checkpoint(
        path=path,
        options=options,
        tensors={ours: model[theirs] for ours, theirs in kept.items()},
        their_names=kept,
        ignored=ignored,
        has_reconstruction=has_reconstruction,
    )


def some(names: Iterable[str]) -> str:
    """Return the first three names, and how many there are."""
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(name[:100] for name in names[:3])}{more} ({len(names)} in all)"


def _why_ignored(name: str) -> str | None:
    if _UNUSED.match(name):
        return "open_clip's own attention, which the release replaces and never uses"
    return _LEFT_OUT.get(name)


def _our_names(names: Iterable[str], path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    unknown = []
    for theirs in names:
        try:
            ours = our_name(theirs)
        except CheckpointError:
            unknown.append(theirs)
            continue
        ours = modern_name(ours) if ours.startswith("vae.") else ours
        if ours in found:
            unknown.append(theirs)
        found[ours] = theirs
    if unknown:
        raise CheckpointError(
            f"{path} has weights that kosmosg does not know: {some(unknown)}; "
            "give an unchanged checkpoint of the authors"
        )
    return found


def _check_tied(model: Mapping[str, StoredTensor], path: Path) -> None:
    """Pass an output matrix that is the embedding: our model has only the one."""
    tied, embedding = model.get(TIED), model.get(EMBEDDING)
    if tied is None or embedding is None or tied == embedding:
        return
    if tied.shape != embedding.shape or not torch.equal(tied.read(), embedding.read()):
        raise CheckpointError(
            f"{path}: {TIED} differs from {EMBEDDING}, and this model has one matrix for both; "
            "give an unchanged checkpoint of the authors"
        )
