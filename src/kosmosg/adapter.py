"""Low-rank adapters of the MLLM and M: put in, taken out, kept in one safetensors file.

A file holds the two factors of each adapted map, and says in its header which model it was made
for. It names no code, and nothing of it is taken for a pattern: the maps are those that its
tensors are called after.
"""

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from kosmosg import config, hashes
from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.model.kosmosg import KosmosG

SUFFIX = ".safetensors"
FORMAT_VERSION = 1
KEY = "kosmosg_adapter"
PARTS = ("mllm", "aligner")
# What learns when an adapter does, as a stage names it.
TRAINABLE = ("*.lora_A.*", "*.lora_B.*")
MAX_RANK = 4096
_NAME = "adapter"
_FACTORS = ("lora_A", "lora_B")
_MAX_HEADER = 2**20


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Which maps of the model get a product of two thin ones added to them, and how much of it.

    `targets` are patterns (`fnmatch`) over the names of linear maps in `KosmosG`; `alpha / rank` is
    what the product is multiplied by.
    """

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ("mllm.layers.*", "mllm.resampler.*", "aligner.encoder.*")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says of itself: the model it belongs to, and how it came about."""

    format_version: int
    rank: int
    alpha: float
    base: Mapping[str, str]
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])


def targets_of(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the names of the linear maps that the patterns match.

    Raises:
        ConfigError: If a pattern matches none.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"adapter target {pattern!r} matches none of the {len(names)} linear maps (they"
                f" read like: {', '.join(names[-3:])}); correct the pattern or remove it"
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def num_parameters(model: nn.Module, config: AdapterConfig) -> int:
    """Return how many parameters an adapter of this model has; it may be on the meta device."""
    linears = [model.get_submodule(name) for name in targets_of(model, config.targets)]
    return sum(
        config.rank * (linear.in_features + linear.out_features)
        for linear in linears
        if isinstance(linear, nn.Linear)
    )


def add(model: KosmosG, config: AdapterConfig) -> None:
    """Put a new adapter into the model in place; its second factors are zero, so nothing changes.

    The factors are float32, whatever the model is, as they are to learn. The first ones are drawn
    from torch's generator.

    Raises:
        ConfigError: If there is one already, a pattern matches nothing, or the rank is no rank.
    """
    if not 1 <= config.rank <= MAX_RANK:
        raise ConfigError(f"adapter rank is {config.rank}; give 1 to {MAX_RANK}")
    _inject(model, targets_of(model, config.targets), rank=config.rank, alpha=config.alpha)


def remove(model: nn.Module) -> None:
    """Take the adapter out; the model is what it was, to the bit."""
    for name, layer in _layers(model):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())


@contextmanager
def left_out(model: nn.Module) -> Iterator[None]:
    """Within, the model computes as if no adapter were in it, to the bit."""
    layers = [layer for _, layer in _layers(model)]
    factors = [
        one for layer in layers for name in _FACTORS for one in getattr(layer, name).values()
    ]
    learned = [factor.weight.requires_grad for factor in factors]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        # peft has all factors learn that it enables, and none that it disables.
        for factor, was in zip(factors, learned, strict=True):
            factor.weight.requires_grad_(was)


def is_there(model: nn.Module) -> bool:
    """Return whether an adapter is in the model, or in this part of it."""
    return any(True for _ in _layers(model))


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the factors by the names of their maps, such as `mllm.layers.0.ffn.fc1.lora_A`."""
    return {
        f"{name}.{factor}": getattr(layer, factor)[_NAME].weight
        for name, layer in _layers(model)
        for factor in _FACTORS
    }


def write(
    path: Path,
    model: KosmosG,
    adapter: AdapterConfig,
    *,
    base: Mapping[str, str],
    provenance: Mapping[str, Any],
) -> None:
    """Write the adapter that is in a model, whole or not at all.

    Args:
        path: Ends in .safetensors.
        model: With the adapter in it.
        adapter: What it was made with.
        base: `base_of` the directory that the model came from.
        provenance: How it came about, as JSON.

    Raises:
        CheckpointError: If it cannot be written.
    """
    header = Header(
        format_version=FORMAT_VERSION,
        rank=adapter.rank,
        alpha=adapter.alpha,
        base=base,
        provenance=provenance,
    )
    tensors = {
        name: weight.detach().float().cpu().contiguous() for name, weight in weights(model).items()
    }
    data = save(tensors, {KEY: json.dumps(config.to_dict(header))})
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write {path}: {error.strerror}; make room or choose another directory"
        ) from None


def base_of(directory: Path) -> dict[str, str]:
    """Return what an adapter remembers of a model's directory: the sha256 of the parts it changes.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    return hashes.of_parts(directory, PARTS)


def find(path: Path) -> Path:
    """Return the file of an adapter, given it or the directory that holds it.

    Raises:
        CheckpointError: If there is none, several, or its kind can run code.
    """
    if path.is_dir():
        files = sorted(path.glob(f"*{SUFFIX}"))
        if len(files) != 1:
            raise CheckpointError(
                f"{path} has {len(files)} files that end in {SUFFIX}; name the adapter's file"
            )
        return files[0]
    if not path.is_file():
        raise CheckpointError(f"there is no adapter {path}; nothing is downloaded: check the path")
    if path.suffix != SUFFIX:
        raise CheckpointError(
            f"the adapter {path} does not end in {SUFFIX}; other files can run code: give one that"
            " kosmosg train subject wrote"
        )
    return path


def read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Return what a file says of itself, and its factors by name.

    Raises:
        CheckpointError: If it is no adapter of ours, damaged, or of another version.
    """
    path = find(path)
    try:
        with safe_open(path, "pt") as file:
            said = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in list(file.keys())} if said else {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; copy it again") from None
    if said is None or len(said) > _MAX_HEADER:
        raise CheckpointError(
            f"{path} is no adapter of kosmosg; give one that kosmosg train subject wrote"
            " (a LoRA for the U-Net goes to --lora)"
        )
    try:
        fields = json.loads(said)
        version = fields.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format version {str(version)[:20]}; this kosmosg reads version"
                f" {FORMAT_VERSION}: use the kosmosg that wrote it"
            )
        return config.from_dict(Header, fields), tensors
    except (ValueError, RecursionError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"the header of {path} cannot be read: {error}") from None


def load(model: KosmosG, path: Path, *, base: Mapping[str, str], scale: float = 1.0) -> Header:
    """Put the adapter of a file into a model in place; return what the file says of itself.

    The factors take the types and devices of the maps that they belong to.

    Args:
        model: Without an adapter.
        path: A file, or a directory with one.
        base: `base_of` the directory that the model came from.
        scale: How much of it; 0 changes nothing but for rounding.

    Raises:
        CheckpointError: If it is no adapter, or one of another model.
        ConfigError: If there is one in the model already.
    """
    header, tensors = read(path)
    other = [part for part in PARTS if header.base.get(part) != base.get(part)]
    if other:
        made_for, here = header.base.get(other[0], "none"), base.get(other[0], "none")
        raise CheckpointError(
            f"the adapter {path} was made for another model: the sha256 of its {other[0]} is"
            f" {made_for[:12]}, that of this one {here[:12]}; load the model it was tuned on"
        )
    linears = {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear)}
    names = sorted({name.rpartition(".")[0] for name in tensors})
    if is_there(model):
        raise ConfigError("there is an adapter in the model already; call unload_adapter first")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    fitting: dict[str, tuple[int, ...]] = {}
    for name in names:
        if name in linears:
            fitting[f"{name}.lora_A"] = (header.rank, linears[name].in_features)
            fitting[f"{name}.lora_B"] = (linears[name].out_features, header.rank)
    if shapes != fitting or not names:
        odd = min(shapes.items() ^ fitting.items(), default=("nothing", ()))
        raise CheckpointError(
            f"the adapter {path} does not fit this model: {odd[0][:80]} {odd[1]}; load the model"
            " that it was tuned on"
        )
    with torch.random.fork_rng():
        _inject(model, names, rank=header.rank, alpha=header.alpha * scale)
    with torch.no_grad():
        for name, layer in _layers(model):
            like = layer.get_base_layer().weight
            dtype = like.dtype if like.dtype.is_floating_point else torch.float32
            for factor in _FACTORS:
                linear = getattr(layer, factor)[_NAME]
                linear.to(like.device, dtype).requires_grad_(False)
                linear.weight.copy_(tensors[f"{name}.{factor}"])
    return header


def _inject(model: KosmosG, names: Sequence[str], *, rank: int, alpha: float) -> None:
    from peft import LoraConfig, inject_adapter_in_model  # whoever loads no adapter needs it not

    if is_there(model):
        raise ConfigError("there is an adapter in the model already; take it out first")
    learned = {name: one.requires_grad for name, one in model.named_parameters()}
    made = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(names), bias="none")  # pyright: ignore[reportArgumentType] -- alpha may be a fraction
    with warnings.catch_warnings(), _named(model):
        inject_adapter_in_model(made, model, adapter_name=_NAME)
    # peft freezes everything else, which is a stage's to decide.
    for name, one in model.named_parameters():
        if (was := learned.get(name.replace(".base_layer.", "."))) is not None:
            one.requires_grad_(was)


@contextmanager
def _named(model: nn.Module) -> Iterator[None]:
    """Take off the model again what peft notes on it."""
    try:
        yield
    finally:
        for name in ("peft_config", "_hf_peft_config_loaded"):
            if name in vars(model):
                delattr(model, name)


def _layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Return the maps that are adapted, outermost names."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(maps := getattr(module, "lora_A", None), nn.ModuleDict) and _NAME in maps
    ]
