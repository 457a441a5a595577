"""Several processes that train one model: joined by torchrun, sharded from outside by FSDP2.

Model files stay single-device code. What is here changes nothing in one process that was not
started by torchrun.
"""

import atexit
import functools
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint as recompute

from kosmosg.errors import ConfigError, KosmosGError
from kosmosg.train import units

Precision = Literal["float32", "bfloat16", "float16"]
DTYPES: Mapping[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# A rank that died closes its connections at once; this is for one that hangs.
PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes that train together, seen from one of them.

    `mesh` has the dimensions `replicate` and `shard`; `writers` is a group of its own for what the
    checkpoints' threads say to one another. Both are None in a single process.
    """

    device: torch.device
    rank: int = 0
    num_ranks: int = 1
    mesh: DeviceMesh | None = None
    writers: dist.ProcessGroup | None = None
    _names: list[str] = field(default_factory=list)

    @property
    def is_first(self) -> bool:
        """Return whether this process writes logs and pictures."""
        return self.rank == 0

    def total(self, *values: int | float) -> list[int | float]:
        """Return the sum of each value over the ranks."""
        if self.num_ranks == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers)
        return numbers.tolist()

    def totals(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sum of each named value over the ranks; a rank may lack a name.

        Names that all know by now cost one small message; a new one costs a second.
        """
        if self.num_ranks == 1:
            return dict(values)
        known = list(self._names)
        is_new = any(name not in known for name in values)
        num_new, *sums = self.total(
            is_new,
            *(float(values.get(name, 0.0)) for name in known),
            *(name in values for name in known),
        )
        if num_new:
            for names in self.gathered(list(values)):
                self._names.extend(name for name in names if name not in self._names)
            return self.totals(values)
        counts = sums[len(known) :]
        summed = zip(known, sums, counts, strict=False)
        return {name: torch.tensor(total) for name, total, count in summed if count}

    def gathered(self, value: object) -> list[Any]:
        """Return what each rank has, in their order."""
        if self.num_ranks == 1:
            return [value]
        everybody: list[Any] = [None] * self.num_ranks
        dist.all_gather_object(everybody, value)
        return everybody


def is_first() -> bool:
    """Return whether this process is the only one or the first, in a group or after it."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def parting_named(ranks: Ranks) -> Iterator[None]:
    """Within, another process's end is an error of ours in one line.

    Raises:
        KosmosGError: If the connection to another process broke.
    """
    try:
        yield
    except RuntimeError as error:
        told = str(error)
        if ranks.num_ranks == 1 or not any(word in told for word in ("gloo", "NCCL", "Connection")):
            raise
        raise KosmosGError(
            f"rank {ranks.rank}: another process of this run ended, and says why itself"
            f" ({told.splitlines()[0][:200]})"
        ) from error


def wait_for_all() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def join(device: str, *, shard_ranks: int | None) -> Ranks:
    """Be one of the processes that torchrun started; without torchrun, the only one.

    Args:
        device: "auto", "cpu" or "cuda".
        shard_ranks: How many ranks share one copy of what learns, such as those of a node (HSDP);
            None: all of them.

    Raises:
        ConfigError: If there is no such device, the ranks cannot be grouped so, or torchrun would
            hang after a restart.
    """
    kind = _kind(device)
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if num_ranks == 1:
        return Ranks(torch.device(kind))
    shard_ranks = num_ranks if shard_ranks is None else shard_ranks
    if not 0 < shard_ranks <= num_ranks or num_ranks % shard_ranks:
        raise ConfigError(
            f"shard_ranks = {shard_ranks} with {num_ranks} processes; give a divisor of their"
            " number, such as the GPUs of a node, or null for all"
        )
    where = torch.device(kind)
    if kind == "cuda":
        where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(where)
    if not dist.is_initialized():
        _require_own_store()
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
        # Not after each run: torchrun's store would hand a second group the first one's addresses.
        atexit.register(dist.destroy_process_group)
    shape = (num_ranks // shard_ranks, shard_ranks)
    return Ranks(
        where,
        rank=dist.get_rank(),
        num_ranks=num_ranks,
        mesh=init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard")),
        # A thread's messages must not mix with the loop's.
        writers=cast(Any, dist.new_group(backend="gloo", timeout=PATIENCE)),
    )


def alone() -> Ranks:
    """Return the only process of what needs no other, on the CPU.

    Raises:
        ConfigError: If torchrun started several.
    """
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if num_ranks > 1:
        raise ConfigError(
            f"{num_ranks} processes would all write the same; run it without torchrun"
        )
    return Ranks(torch.device("cpu"))


def _require_own_store() -> None:
    """Refuse what hangs: torchrun's own store still holds the addresses of the attempt that failed.

    Found with torch 2.13; each attempt then waits for processes that are gone.
    """
    is_shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if is_shared and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise ConfigError(
            "torchrun with --max-restarts would hang after a restart: set"
            " TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where it is started"
            " (scripts/train-distributed does)"
        )


def _kind(name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda', but torch sees no GPU; use device=cpu or device=auto")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


# ------------------------------------------------------------------------------------ the model


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the layers of M, N and the language model in which something learns."""
    return units.spread_blocks(model, units.learns)


def recompute_blocks(model: nn.Module) -> None:
    """Keep only each block's input for the backward pass, which computes the rest again."""
    for block in blocks(model):
        # Set on the object, so that no parameter changes its name.
        block.forward = functools.partial(recompute, block.forward, use_reentrant=False)


def shard(
    model: nn.Module,
    ranks: Ranks,
    *,
    precision: Precision,
    frozen: Literal["whole", "sharded"],
    gathered: Literal["layer", "step"],
) -> None:
    """Spread what learns over the ranks, block by block, then what is left of each stack.

    Frozen parameters stay whole on each rank, or are spread with the part that they belong to. What
    a unit gathers it lets go after its turn, or `let_go` does, after the step's last. Gradients are
    summed over the ranks, not averaged: the loop divides by the weight of all.

    Raises:
        ConfigError: If the ranks start from different weights.
    """
    is_whole = frozen == "whole"
    kept = {p for p in model.parameters() if not p.requires_grad} if is_whole else set()
    _spread(
        model,
        units.learning_units(model, frozen),
        ranks,
        precision=precision,
        ignored=kept,
        gathered=gathered,
    )


def shard_frozen(part: nn.Module, ranks: Ranks) -> None:
    """Spread a frozen part, called as a whole, over the ranks; it goes to their device.

    Raises:
        ConfigError: If the ranks start from different weights.
    """
    part.to(ranks.device)
    _spread(
        part,
        units.frozen_units(part),
        ranks,
        precision="float32",
        ignored=set(),
        gathered="layer",
    )


def _spread(
    model: nn.Module,
    parts: Sequence[units.Unit],
    ranks: Ranks,
    *,
    precision: Precision,
    ignored: set[nn.Parameter],
    gathered: Literal["layer", "step"],
) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    _require_equal_weights(model, ranks)
    # Blocks travel and compute in half precision under autocast. On a CPU LayerNorm takes no half
    # weights beside a float32 residual stream, so there they travel whole.
    is_half = precision != "float32" and ranks.device.type == "cuda"
    half = MixedPrecisionPolicy(
        param_dtype=DTYPES[precision] if is_half else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    as_held = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for unit in parts:
        made: Any = fully_shard(
            unit.module,
            mesh=_mesh(ranks),
            mp_policy=half if unit.kind == "block" else as_held,
            ignored_params=ignored,
            reshard_after_forward=gathered == "layer" and not unit.kept,
        )
        made.set_reshard_after_backward(gathered == "layer", recurse=False)
        made.set_gradient_divide_factor(1.0)
        made.set_force_sum_reduction_for_comms(True)  # gloo has no other
        # Where one rank's batch has pictures and another's has none, both must send the same. Of
        # the others each pass through them but the last would send zeros.
        made.set_reduce_scatter_unused_params(unit.may_lack, recurse=False)


def _mesh(ranks: Ranks) -> DeviceMesh:
    assert ranks.mesh is not None  # of several ranks
    return ranks.mesh if ranks.mesh.size(0) > 1 else ranks.mesh["shard"]


def _require_equal_weights(model: nn.Module, ranks: Ranks) -> None:
    total = hashlib.sha256()
    for value in model.state_dict().values():
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    everybody = ranks.gathered(total.hexdigest())
    others = [rank for rank, one in enumerate(everybody) if one != everybody[0]]
    if others:
        raise ConfigError(
            f"rank {others[0]} starts from other weights than rank 0; load the same files, or seed"
            " torch alike, on each rank"
        )


def fsdp_modules(model: nn.Module) -> list[Any]:
    """Return the parts that are sharded, none in a single process."""
    return [module for module in model.modules() if hasattr(module, "set_requires_gradient_sync")]


def let_go(model: nn.Module) -> None:
    """Forget gathered copies of the weights, which a change of the shards makes stale."""
    for module in fsdp_modules(model):
        module.reshard()


def synchronise(model: nn.Module, *, now: bool) -> None:
    """Say whether the coming backward pass sends gradients, or keeps them for a later one."""
    for module in fsdp_modules(model):
        module.set_requires_gradient_sync(now, recurse=False)


def whole(value: Tensor) -> Tensor:
    """Return the tensor that the ranks hold parts of; each rank must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def copy_whole(source: nn.Module, target: nn.Module, *, names: Collection[str]) -> None:
    """Copy these weights of a sharded model into one that is not; each rank must take part."""
    theirs = target.state_dict()
    for name, value in source.state_dict().items():
        if name in names:
            theirs[name].copy_(whole(value))
