"""What a run needs before it is begun: parameters, memory, FLOPs, traffic, hours. Nothing is made.

The model stands on torch's meta device, where each stage's own products are run in shape alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from kosmosg.errors import ConfigError
from kosmosg.train.run import StageConfig
from kosmosg.train.shapes import PartSize, Record, Sizes, StageShapes, Tuning
from kosmosg.train.tally import Tally
from kosmosg.train.traffic import Passage, Passages, Traffic, Use, traffic, use
from kosmosg.train.trainconfig import TrainConfig

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
        count: Records of a micro-batch on each GPU.
        flops: Of one step on all GPUs together.
        recomputed_flops: What activation checkpointing adds to them.
        memory: Bytes on each GPU by what they hold, activations without checkpointing.
        checkpointed_bytes: The activations with checkpointing.
        uses: What a micro-batch does with each part that is sharded.
        traffic: What the GPUs tell one another in a step.
    """

    parts: tuple[PartSize, ...]
    count: int
    flops: int
    recomputed_flops: int
    memory: Mapping[str, int]
    checkpointed_bytes: int
    uses: tuple[Use, ...]
    traffic: Traffic

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
    stage: StageConfig,
    train: TrainConfig,
    sizes: Sizes,
    *,
    record: Record,
    gpus: int,
    num_sources: int = 1,
    tuning: Tuning | None = None,
) -> Need:
    """Return what one stage, or with `tuning` a subject's adapter, needs on so many GPUs.

    What learns is sharded over them, what is frozen stands on each, or is sharded too
    (`frozen_parts`).

    Raises:
        ConfigError: If there are more GPUs than records in a step, they cannot be grouped as the
            configuration says, or a pattern of the stage matches nothing.
    """
    if not 1 <= gpus <= train.global_batch_size:
        raise ConfigError(
            f"{gpus} GPUs for steps of {train.global_batch_size} records; each needs at least one"
        )
    share = -(-train.global_batch_size // gpus)
    records = min(train.micro_batch, share)
    counted = count(stage, train, sizes, record=record, records=records, tuning=tuning)
    return shared_out(counted, train, gpus=gpus, num_sources=num_sources)


@dataclass(frozen=True, kw_only=True, eq=False)
class Counted:
    """One micro-batch of so many records, run in shape alone."""

    run: StageShapes
    records: int
    tally: Tally
    passages: Passages


def count(
    stage: StageConfig,
    train: TrainConfig,
    sizes: Sizes,
    *,
    record: Record,
    records: int,
    tuning: Tuning | None = None,
) -> Counted:
    """Return what a micro-batch of so many records takes.

    Raises:
        ConfigError: If a pattern of the stage matches nothing.
    """
    dtype = torch.float32 if train.precision == "float32" else torch.bfloat16
    run = StageShapes(stage, sizes, dtype, tuning)
    tally = Tally(run.modules)
    passages = Passages(run.units(train.frozen_parts), lambda: tally.flops)
    with tally, passages:
        run.loss(records, record).backward()
    return Counted(run=run, records=records, tally=tally, passages=passages)


def shared_out(counted: Counted, train: TrainConfig, *, gpus: int, num_sources: int = 1) -> Need:
    """Return what steps of such micro-batches need on so many GPUs.

    Raises:
        ConfigError: If they cannot be grouped as the configuration says.
    """
    shard_ranks = gpus if train.shard_ranks is None else train.shard_ranks
    if gpus % shard_ranks:
        raise ConfigError(f"shard_ranks = {shard_ranks} with {gpus} GPUs; give a divisor of them")
    run, tally, passages = counted.run, counted.tally, counted.passages
    layout = {"shard_ranks": shard_ranks, "num_copies": gpus // shard_ranks}
    uses = tuple(
        use(
            unit,
            _cut(passages.of(unit), run.passes(unit, counted.records)),
            dtype=run.dtype,
            gathered=train.gathered,
            **layout,
        )
        for unit in passages.units
    )
    share = -(-train.global_batch_size // gpus)
    micro_batches = -(-share // counted.records)
    memory = _memory(run, train, uses, gpus=shard_ranks, is_summed=micro_batches > 1)
    batches = train.global_batch_size / counted.records
    return Need(
        parts=run.sizes(),
        count=counted.records,
        flops=round(tally.flops * batches),
        recomputed_flops=round(tally.recomputed_flops * batches),
        memory=memory | {"activations": tally.kept_bytes},
        checkpointed_bytes=tally.checkpointed_bytes,
        uses=uses,
        traffic=traffic(
            uses,
            micro_batches=micro_batches,
            num_names=run.num_terms + (2 * num_sources if num_sources > 1 else 0),
            **layout,
        ),
    )


def _cut(found: Sequence[Passage], passes: int) -> list[Passage]:
    """Return what was computed at once as the passes in which a run computes it."""
    if not found:
        return []
    flops = sum(one.flops for one in found) // passes
    return [replace(found[-1], flops=flops)] * passes


def _memory(
    run: StageShapes, train: TrainConfig, uses: Sequence[Use], *, gpus: int, is_summed: bool
) -> dict[str, int]:
    """Return the bytes of one GPU of those that share a copy, but for activations.

    Beside the shards stand whole what is kept for the backward pass and two more units, or on one
    GPU all of it, cast once a step; and their gradients, or all until the last pass of the last
    micro-batch lets them be added up.
    """
    parts, itemsize = run.sizes(), run.dtype.itemsize
    learns = sum(part.learns for part in parts)
    called = [use for use in uses if use.passages]
    weights = [(use.weights, use.unit.kept or use.stays) for use in called]
    gradients = [(use.whole_gradients, use.unit.kept) for use in called]
    if gpus == 1:
        gathered, waiting = 0 if itemsize == WEIGHT else learns * itemsize, 0
    else:
        gathered, waiting = _at_once(weights), _at_once(gradients)
        if is_summed:
            waiting = learns * GRADIENT
        elif any(use.comes_again for use in called):
            waiting = sum(size for size, _ in gradients)
    return {
        "weights": learns * WEIGHT // gpus,
        "gradients": learns * GRADIENT // gpus + waiting,
        "optimizer": learns * ADAM // gpus,
        "average": learns * WEIGHT // gpus if train.ema else 0,
        "gathered": gathered,
        "frozen": run.frozen_bytes // (gpus if train.frozen_parts == "sharded" else 1),
    }


def _at_once(sizes: Sequence[tuple[int, bool]]) -> int:
    """Return the bytes of units that stand whole at once: those kept, and two others."""
    others = sorted(size for size, kept in sizes if not kept)
    return sum(size for size, kept in sizes if kept) + sum(others[-2:])
