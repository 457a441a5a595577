"""A converted model on the disk: shards, sums, model card; whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import __version__ as diffusers_version
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from kosmosg import hashes
from kosmosg.convert.stored import StoredTensor
from kosmosg.errors import CheckpointError

MAX_SHARD_BYTES = 2 * 10**9
PARITY_FILE = "parity.json"


def progress(what: str, num_bytes: int) -> "tqdm[Any]":
    """Return a bar of bytes, which is shown on a terminal only and leaves nothing behind."""
    return tqdm(desc=what, total=num_bytes, unit="B", unit_scale=True, disable=None, leave=False)


@contextmanager
def appearing(target: Path, *, num_bytes: int) -> Iterator[Path]:
    """Give a path beside `target` to write to, which takes its name when all went well.

    Raises:
        CheckpointError: If `target` exists, or the disk has no room for `num_bytes`.
    """
    target = target.resolve()
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists; remove it, or choose another name with -o")
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < num_bytes:
        raise CheckpointError(
            f"{target.parent} has {free / 1e9:.1f} GB free and {num_bytes / 1e9:.1f} GB will be "
            "written; make room or choose another disk with -o"
        )
    passing = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield passing
        passing.rename(target)
    finally:
        if passing.is_dir():
            shutil.rmtree(passing, ignore_errors=True)
        else:
            passing.unlink(missing_ok=True)


def write_weights(
    folder: Path,
    tensors: Mapping[str, StoredTensor],
    bar: "tqdm[Any]",
    *,
    dtype: torch.dtype | None,
    stem: str = "diffusion_pytorch_model",
) -> None:
    """Write tensors as safetensors, one shard in memory at a time.

    Args:
        folder: Of the part; it is made.
        tensors: By the name that they get.
        bar: Advanced by the bytes read.
        dtype: Of what is written; None: as stored.
        stem: What the files are called.

    Raises:
        CheckpointError: If a value is too large for `dtype`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(tensors, dtype)
    names: dict[str, str] = {}
    for index, shard in enumerate(shards, 1):
        many = f"-{index:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file = f"{stem}{many}.safetensors"
        collected: dict[str, Tensor] = {}
        for name in shard:
            collected[name] = _cast(tensors[name].read(), dtype, name)
            names[name] = file
            bar.update(tensors[name].nbytes)
        save_file(collected, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors lets nobody else read it
    if len(shards) > 1:
        total = sum(_num_bytes(tensor, dtype) for tensor in tensors.values())
        index_file = {"metadata": {"total_size": total}, "weight_map": names}
        write_json(folder / f"{stem}.safetensors.index.json", index_file)


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON for people to read too."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_sums(directory: Path) -> None:
    """Write the sha256 of every file of weights, as `sha256sum -c` reads it."""
    paths = sorted(directory.rglob("*.safetensors"))
    lines = []
    with progress("sha256", sum(path.stat().st_size for path in paths)) as bar:
        for path in paths:
            lines.append(f"{hashes.of_file(path)}  {path.relative_to(directory).as_posix()}\n")
            bar.update(path.stat().st_size)
    (directory / hashes.SUMS).write_text("".join(lines), encoding="utf-8")


def write_index(directory: Path) -> None:
    """Write the index that makes the directory a pipeline of diffusers."""
    index = {
        "_class_name": "KosmosGPipeline",
        "_diffusers_version": diffusers_version,
        "aligner": ["kosmosg.model.alignernet", "AlignerNet"],
        "mllm": ["kosmosg.model.mllm", "MLLM"],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "tokenizer": [None, None],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(directory / "model_index.json", index)


def card(*, checkpoint: str, decoder: str, stage: str, parts: Mapping[str, int]) -> str:
    """Return the model card: where each part comes from, and under which licence."""
    rows = "\n".join(f"| `{name}/` | {count:,} |" for name, count in parts.items())
    return f"""---
license: other
library_name: diffusers
pipeline_tag: text-to-image
tags: [kosmos-g, subject-driven]
---

# Kosmos-G, converted

The authors' weights after {stage}, from `{checkpoint}`, in the layout of diffusers; the image
decoder is that of {decoder}. Made by `kosmosg convert`. `{PARITY_FILE}` says what became of each
weight of the checkpoint, and `sha256sum -c {hashes.SUMS}` whether these files are still whole.

```sh
kosmosg generate --model . "a photo of" dog.png "on the beach"
```

| Part | Parameters |
|---|---|
{rows}

Licences of what is in here; check each before you pass the directory on:

| What | Licence |
|---|---|
| `mllm/`, `aligner/`, `tokenizer/`: the authors' weights and vocabulary | MIT, as far as the \
repository microsoft/unilm says; check it and any terms beside the download |
| the vision tower in `mllm/` and `text_encoder/`: from OpenAI's CLIP | MIT |
| `unet/`, `vae/`: Stable Diffusion 1.5 or a fine-tune of it | CreativeML OpenRAIL-M, with its \
use restrictions; a fine-tune may add its own |
| kosmosg, which wrote and reads these files | MIT |
"""


def sum_bytes(groups: Iterable[Mapping[str, StoredTensor]], dtype: torch.dtype | None) -> int:
    """Return how many bytes the tensors take once written."""
    return sum(_num_bytes(one, dtype) for group in groups for one in group.values())


def _num_bytes(tensor: StoredTensor, dtype: torch.dtype | None) -> int:
    return tensor.nbytes // tensor.dtype.itemsize * (dtype or tensor.dtype).itemsize


def _shards(tensors: Mapping[str, StoredTensor], dtype: torch.dtype | None) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        num_bytes = _num_bytes(tensor, dtype)
        if shards[-1] and size + num_bytes > MAX_SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += num_bytes
    return shards


def _cast(tensor: Tensor, dtype: torch.dtype | None, name: str) -> Tensor:
    if dtype is None or dtype == tensor.dtype:
        return tensor
    cast = tensor.to(dtype)
    if dtype == torch.float16 and not torch.equal(cast.isfinite(), tensor.isfinite()):
        raise CheckpointError(
            f"{name} reaches {tensor.abs().max().item():.3g}, too large for float16; "
            "convert with --dtype bfloat16 or float32"
        )
    return cast
