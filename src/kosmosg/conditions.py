"""A prompt's condition as a file: made where the MLLM is, used where only the U-Net is.

The file is safetensors and nothing else. Its tensors are `prompt_embeds`, `negative_prompt_embeds`
and, of prompts with words and pictures, `picture_prompt_embeds` (the pictures alone), each
1 x queries x embed. Its metadata says in JSON what was encoded, and by which weights.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from kosmosg.errors import CheckpointError, ConfigError

VERSION = 1
MAX_BYTES = 16 * 2**20  # the released model's is below 1 MiB
_KEY = "kosmosg"
_NEEDED = ("prompt_embeds", "negative_prompt_embeds")
_OPTIONAL = "picture_prompt_embeds"
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_REMEDY = "write it again with `kosmosg encode`"

Row = Float[Tensor, "1 queries embed"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """What the U-Net is conditioned on for one prompt.

    Args:
        prompt_embeds: Of the prompt.
        negative_prompt_embeds: Of the null prompt or the negative one.
        picture_prompt_embeds: Of the prompt without its words; None where it has no words or no
            pictures.
        provenance: What was encoded, with what: JSON values.
    """

    prompt_embeds: Row
    negative_prompt_embeds: Row
    picture_prompt_embeds: Row | None
    provenance: dict[str, Any]


def save(condition: Condition, path: Path) -> None:
    """Write a condition as one safetensors file, whole or not at all.

    Raises:
        CheckpointError: If it cannot be written; what was there stays.
    """
    data = to_bytes(condition)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write {path}: {error.strerror}; make room or choose another place"
        ) from None


def to_bytes(condition: Condition) -> bytes:
    """Return a condition as the bytes of its file."""
    tensors = {name: getattr(condition, name) for name in (*_NEEDED, _OPTIONAL)}
    kept = {
        name: value.detach().cpu().contiguous().clone()  # clone: they may be views of one tensor
        for name, value in tensors.items()
        if value is not None
    }
    described = {"version": VERSION, **condition.provenance}
    return safetensors.torch.save(kept, metadata={_KEY: json.dumps(described)})


def load(path: Path) -> Condition:
    """Return the condition in a file, which may be anybody's.

    Raises:
        CheckpointError: If it is missing, damaged, too large, or not a condition.
    """
    if not path.is_file():  # nor a pipe, which would be waited for
        raise CheckpointError(f"there is no file {path}; {_REMEDY}")
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes, more than any condition ({MAX_BYTES}); "
            "give a file that `kosmosg encode` wrote"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no dict
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}; {_REMEDY}") from None
    provenance = _provenance(metadata, path)
    _check(tensors, path)
    return Condition(
        prompt_embeds=tensors["prompt_embeds"],
        negative_prompt_embeds=tensors["negative_prompt_embeds"],
        picture_prompt_embeds=tensors.get(_OPTIONAL),
        provenance=provenance,
    )


def blend(a: Condition, b: Condition, weight: float) -> Condition:
    """Return the condition that lies between two: `a` at weight 0, `b` at weight 1.

    Each tensor is a + weight (b - a), row by row of the queries; half precision is blended in
    float32. There is a `picture_prompt_embeds` where both have one.

    Raises:
        ConfigError: If the weight is not 0 to 1, or the two are of different size.
    """
    if not 0 <= weight <= 1:
        raise ConfigError(f"the blend is {weight}; give a number from 0 (first) to 1 (second)")
    ours, theirs = a.prompt_embeds, b.prompt_embeds
    if ours.shape != theirs.shape:
        raise ConfigError(
            f"a condition of {_size(ours)} cannot be blended with one of {_size(theirs)}; "
            "encode both with one model"
        )
    pictures = None
    if a.picture_prompt_embeds is not None and b.picture_prompt_embeds is not None:
        pictures = _between(a.picture_prompt_embeds, b.picture_prompt_embeds, weight)
    return Condition(
        prompt_embeds=_between(ours, theirs, weight),
        negative_prompt_embeds=_between(a.negative_prompt_embeds, b.negative_prompt_embeds, weight),
        picture_prompt_embeds=pictures,
        provenance={"blend": weight, "of": [a.provenance, b.provenance]},
    )


def _between(a: Tensor, b: Tensor, weight: float) -> Tensor:
    return torch.lerp(a.float(), b.float(), weight).to(a.dtype)


def _size(embeds: Tensor) -> str:
    return " x ".join(str(side) for side in embeds.shape[1:])


def _provenance(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    try:
        described = json.loads(metadata[_KEY])
        version = described.pop("version")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} does not say how it was made; {_REMEDY}") from None
    if version != VERSION:
        raise CheckpointError(
            f"{path} has version {version!r:.40}, this kosmosg reads version {VERSION}; {_REMEDY}"
        )
    return described


def _check(tensors: dict[str, Tensor], path: Path) -> None:
    names = set(tensors)
    if names - {_OPTIONAL} != set(_NEEDED):
        raise CheckpointError(
            f"{path} holds {', '.join(sorted(names)[:5]) or 'nothing'}; a condition has "
            f"{' and '.join(_NEEDED)}: {_REMEDY}"
        )
    size = tensors["prompt_embeds"].shape
    for name, value in sorted(tensors.items(), reverse=True):  # prompt_embeds comes first
        if value.ndim != 3 or len(value) != 1 or value.shape != size or not value.numel():
            raise CheckpointError(
                f"{path}: {name} is {tuple(value.shape)}; all are 1 x queries x embed: {_REMEDY}"
            )
        if value.dtype not in _DTYPES or not value.isfinite().all():
            raise CheckpointError(f"{path}: {name} is not of finite numbers; {_REMEDY}")
