"""What a run needs before it is begun: parameters, memory, FLOPs, hours. Nothing is read or made.

The model stands on torch's meta device, where each stage's own products are run in shape alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from kosmosg.errors import ConfigError
from kosmosg.train.loop import TrainConfig
from kosmosg.train.run import StageConfig
from kosmosg.train.shapes import PartSize, Record, Sizes, StageShapes
from kosmosg.train.tally import Tally

GIB = 2**30
WEIGHT, GRADIENT, ADAM = 4, 4, 8  # bytes a parameter that learns: all of it in float32


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A kind of GPU: its memory, and dense products a second as its maker states them."""

    memory_gib: float
    bfloat16: float
    float32: float


GPUS: Mapping[str, Gpu] = {
    "V100-32GB": Gpu(memory_gib=32.0, bfloat16=125e12, float32=15.7e12),  # of float16: no bfloat16
    "A100-40GB": Gpu(memory_gib=40.0, bfloat16=312e12, float32=19.5e12),
    "A100-80GB": Gpu(memory_gib=80.0, bfloat16=312e12, float32=19.5e12),
    "H100": Gpu(memory_gib=80.0, bfloat16=989e12, float32=67e12),
    "H200": Gpu(memory_gib=141.0, bfloat16=989e12, float32=67e12),
    "RTX4090": Gpu(memory_gib=24.0, bfloat16=165e12, float32=82.6e12),
}


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a run needs.

    Attributes:
        parts: Of the model, and what stands frozen beside it.
        flops: Of one step on all GPUs together.
        recomputed_flops: What activation checkpointing adds to them.
        memory: Bytes on each GPU by what they hold, activations without checkpointing.
        checkpointed_bytes: The activations with checkpointing.
    """

    parts: tuple[PartSize, ...]
    flops: int
    recomputed_flops: int
    memory: Mapping[str, int]
    checkpointed_bytes: int

    def total_bytes(self, *, checkpointing: bool) -> int:
        """Return the memory of one GPU, without what the allocator wastes and CUDA holds."""
        total = sum(self.memory.values())
        return total - (self.memory["activations"] - self.checkpointed_bytes) * checkpointing

    def hours(
        self,
        config: TrainConfig,
        *,
        gpus: int,
        kind: str,
        utilisation: float,
        checkpointing: bool,
    ) -> float:
        """Return how long the run takes where products run at this share of the stated rate."""
        flops = (self.flops + self.recomputed_flops * checkpointing) * config.steps
        rate = rate_of(kind, config.precision)
        return flops / (gpus * rate * utilisation) / 3600


def rate_of(kind: str, precision: str) -> float:
    """Return the FLOPs a second of a kind of GPU.

    Raises:
        ConfigError: If the kind is not known.
    """
    if kind not in GPUS:
        raise ConfigError(f"no GPU kind {kind!r}; the kinds are {', '.join(GPUS)}")
    return GPUS[kind].float32 if precision == "float32" else GPUS[kind].bfloat16


def need(
    stage: StageConfig, train: TrainConfig, sizes: Sizes, *, record: Record, gpus: int
) -> Need:
    """Return what one stage needs on so many GPUs.

    What learns is sharded over them, what is frozen stands on each in the precision of the
    products.

    Raises:
        ConfigError: If there are more GPUs than records in a step, or a pattern of the stage
            matches nothing.
    """
    if not 1 <= gpus <= train.global_batch_size:
        raise ConfigError(
            f"{gpus} GPUs for steps of {train.global_batch_size} records; each needs at least one"
        )
    dtype = torch.float32 if train.precision == "float32" else torch.bfloat16
    run = StageShapes(stage, sizes, dtype)
    share = -(-train.global_batch_size // gpus)
    count = min(train.micro_batch, share)
    tally = Tally(run.modules)
    with tally:
        run.loss(count, record).backward()
    parts = run.sizes()
    learns = sum(part.learns for part in parts)
    memory = {
        "weights": learns * WEIGHT // gpus,
        "gradients": learns * GRADIENT // gpus,
        "optimizer": learns * ADAM // gpus,
        "average": learns * WEIGHT // gpus if train.ema else 0,
        "gathered": run.gathered(gpus) * dtype.itemsize,
        "frozen": sum(part.frozen for part in parts) * dtype.itemsize,
        "activations": tally.kept_bytes,
    }
    batches = train.global_batch_size / count
    return Need(
        parts=parts,
        flops=round(tally.flops * batches),
        recomputed_flops=round(tally.recomputed_flops * batches),
        memory=memory,
        checkpointed_bytes=tally.checkpointed_bytes,
    )
