"""One run of the loop: its numbers, and whether they can be."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from kosmosg.data.mixture import rank_slice
from kosmosg.errors import ConfigError
from kosmosg.train.distributed import Precision, Ranks
from kosmosg.train.optim import EmaConfig, OptimConfig

MAX_BAD_IN_A_ROW = 10
_COUNTS = (
    "steps",
    "global_batch_size",
    "micro_batch",
    "keep_checkpoints",
    "log_every",
    "validate_every",
    "validation_records",
    "samples_every",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of the loop.

    `steps` counts optimiser updates of `global_batch_size` records, which are computed
    `micro_batch` records at a time. `checkpoint_s` is in seconds; the `*_every` fields are in
    steps. Validation takes the first `validation_records` of the validation stream, with the
    same noise each time.

    `keep_checkpoints` is how many of the last stay; `keep_every` adds one each so many steps that
    stays for good. `data_timeout_s` is how long a step may wait for its records. `on_bad_loss` says
    what a loss or gradient that is not finite does: `skip` leaves the update out, up to
    `MAX_BAD_IN_A_ROW` times. `recompute` saves memory for time; `compiled` says what goes through
    torch.compile. Of several processes, `shard_ranks` share one copy of what learns (None: all),
    and `frozen_parts`, the model's and those beside it, are `whole` on each or `sharded` too.
    Weights are `gathered` for a `layer` at a time, anew in each pass, or once for the `step`: fewer
    messages and more memory.
    """

    seed: int
    steps: int
    global_batch_size: int
    micro_batch: int
    optim: OptimConfig
    ema: EmaConfig | None
    precision: Precision
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_s: float = 180.0
    keep_checkpoints: int = 2
    log_every: int = 10
    validate_every: int = 100
    validation_records: int = 64
    samples_every: int = 1000
    keep_every: int | None = None
    data_timeout_s: float = 600.0
    on_bad_loss: Literal["stop", "skip"] = "stop"
    recompute: Literal["nothing", "blocks"] = "nothing"
    compiled: Literal["nothing", "blocks"] = "nothing"
    shard_ranks: int | None = None
    frozen_parts: Literal["whole", "sharded"] = "whole"
    gathered: Literal["layer", "step"] = "layer"


def check(model: nn.Module, config: TrainConfig, ranks: Ranks) -> None:
    """Refuse what cannot be trained so.

    Raises:
        ConfigError: What is wrong, and what to do.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ConfigError(
                f"{name} is {parameter.dtype}; what learns must be float32 (model.float()), and"
                " precision=bfloat16 then computes in bfloat16"
            )
    for name in _COUNTS:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} = {getattr(config, name)}; it must be at least 1")
    if not 0 <= config.seed < 2**63:
        raise ConfigError(f"seed = {config.seed}; it must lie between 0 and 2**63 - 1")
    if not is_even(config.global_batch_size, config.micro_batch, ranks.num_ranks):
        raise ConfigError(
            f"global_batch_size = {config.global_batch_size} in pieces of {config.micro_batch}"
            f" gives {ranks.num_ranks} processes unequal numbers of pieces; make it a multiple of"
            f" {ranks.num_ranks}"
        )


def is_even(size: int, micro_batch: int, num_ranks: int) -> bool:
    """Return whether all ranks cut their slices of `size` records into as many pieces."""
    if num_ranks > size:
        return False
    slices = (rank_slice(size, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks))
    return len({-(-len(one) // micro_batch) for one in slices}) == 1
