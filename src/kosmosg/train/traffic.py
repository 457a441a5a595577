"""What the ranks of a sharded model tell one another in a step, from its shapes alone."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from kosmosg.train.units import Unit

NUMBER = 8  # bytes of what the loop adds up, in float64


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of the tensors that ranks make together in one step, and how many messages that is.

    Attributes:
        all_gather: Weights, made whole from their shards.
        reduce_scatter: Gradients, before they are added up and shared out.
        all_reduce: Added up shards of gradients, between copies of the model (`shard_ranks`).
        norms: The norms of the gradients, a number for each tensor that learns.
        numbers: What the loop adds up: weights, losses, and whether to stop.
        messages: Of the first three.
        shard_ranks: How many ranks share a copy.
        num_copies: How many copies there are.
    """

    all_gather: int
    reduce_scatter: int
    all_reduce: int
    norms: int
    numbers: int
    messages: int
    shard_ranks: int
    num_copies: int

    @property
    def sent(self) -> int:
        """Return the bytes that each rank sends, in rings: a part of the whole to its neighbour."""
        within = (self.shard_ranks - 1) / self.shard_ranks
        between = (self.num_copies - 1) / self.num_copies
        num_ranks = self.shard_ranks * self.num_copies
        small = 2 * self.norms * within + 2 * self.numbers * (num_ranks - 1) / num_ranks
        shards = (self.all_gather + self.reduce_scatter) * within
        return round(shards + 2 * self.all_reduce * between + small)


@dataclass(frozen=True, kw_only=True)
class Passage:
    """One pass through a unit: its FLOPs, and whether gradients come back to it and go on."""

    flops: int
    comes_back: bool
    goes_on: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Use:
    """What a micro-batch does with a unit; sizes are in bytes of all shards, padding included.

    Attributes:
        gathers: How often it is gathered in the forward passes, and in the backward ones.
        stays: Whether it then stays whole for all of the step.
        weights: What each gathering makes.
        gradients: What is added up and shared out once a step.
        copies: What each rank then adds up with those of other copies.
        whole_gradients: The gradients in the type of the weights, before they are shared out.
        passages: Of the micro-batch.
    """

    unit: Unit
    gathers: tuple[int, int]
    stays: bool
    weights: int
    gradients: int
    copies: int
    whole_gradients: int
    passages: tuple[Passage, ...]

    @property
    def comes_again(self) -> bool:
        """Return whether gradients wait for those of another pass."""
        return len(self.passages) > 1 and self.whole_gradients > 0


class Passages:
    """Notes, while it is entered, each pass through these units' modules."""

    def __init__(self, units: Iterable[Unit], flops: Callable[[], int]) -> None:
        self.units = list(units)
        self._flops = flops
        self._contexts = ExitStack()
        self._entered: list[int] = []
        self._found: dict[nn.Module, list[Passage]] = {unit.module: [] for unit in self.units}

    def __enter__(self) -> "Passages":
        """Begin to note."""
        for module in self._found:
            hooks = (
                module.register_forward_pre_hook(self._enter),
                module.register_forward_hook(self._leave, with_kwargs=True),
            )
            for hook in hooks:
                self._contexts.enter_context(hook)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End."""
        self._contexts.__exit__(kind, error, trace)

    def of(self, unit: Unit) -> list[Passage]:
        """Return what was noted of a unit."""
        return self._found[unit.module]

    def _enter(self, _module: nn.Module, _args: Any) -> None:  # noqa: ANN401 - torch's hook
        self._entered.append(self._flops())

    def _leave(self, module: nn.Module, args: Any, named: Any, result: Any) -> None:  # noqa: ANN401
        passage = Passage(
            flops=self._flops() - self._entered.pop(),
            comes_back=_has_gradient(result),
            goes_on=_has_gradient((args, named)),
        )
        self._found[module].append(passage)


def _has_gradient(values: Any) -> bool:  # noqa: ANN401 - any tree
    leaves = _pytree.tree_leaves(values)
    return any(isinstance(one, Tensor) and one.requires_grad for one in leaves)


def use(
    unit: Unit,
    passages: Sequence[Passage],
    *,
    dtype: torch.dtype,
    gathered: Literal["layer", "step"],
    shard_ranks: int,
    num_copies: int,
) -> Use:
    """Return what a micro-batch of these passages does with a unit.

    Args:
        dtype: Of products, and of what is frozen beside the model. Gradients travel in float32,
            as does what learns outside blocks.
    """
    learns = unit.padded(shard_ranks, learns=True)
    share = learns * 4
    itemsize = 4 if unit.kind == "root" else dtype.itemsize
    stays = gathered == "step" and unit.kind != "frozen"
    gathers = (min(1, len(passages)), 0) if stays else _gathers(passages, kept=unit.kept)
    return Use(
        unit=unit,
        gathers=gathers if shard_ranks > 1 else (0, 0),
        stays=stays,
        weights=unit.padded(shard_ranks) * itemsize,
        gradients=share if shard_ranks > 1 else 0,
        copies=share // shard_ranks if num_copies > 1 else 0,
        whole_gradients=learns * itemsize,
        passages=tuple(passages),
    )


def _gathers(passages: Sequence[Passage], *, kept: bool) -> tuple[int, int]:
    """Return how often FSDP2 gathers a unit in the forward passes, and in the backward ones.

    It lets go of the weights after each forward pass, unless they are kept, and after each backward
    pass that goes on behind the unit.
    """
    is_whole, counts = False, [0, 0]
    turns = [(0, True, not kept) for _ in passages]
    turns += [(1, one.comes_back, one.comes_back and one.goes_on) for one in reversed(passages)]
    for way, asks, lets_go in turns:
        counts[way] += asks and not is_whole
        is_whole = (is_whole or asks) and not lets_go
    return counts[0], counts[1]


def traffic(
    uses: Sequence[Use],
    *,
    micro_batches: int,
    num_names: int,
    shard_ranks: int,
    num_copies: int,
) -> Traffic:
    """Return what a step tells: weights for each micro-batch, gradients with the last.

    Args:
        uses: Of a micro-batch, a unit each.
        micro_batches: Of a rank.
        num_names: How many named values the loop adds up.
    """
    learned = [use for use in uses if use.gradients or use.copies]
    times = [sum(use.gathers) * (1 if use.stays else micro_batches) for use in uses]
    reduced = sum(bool(use.gradients) + bool(use.copies) for use in learned)
    tensors = sum(p.requires_grad for use in uses for p in use.unit.parameters)
    agreed = 1 + 4 + 1 + 2 * num_names  # a weight; what to do; whether names are new, each twice
    return Traffic(
        all_gather=sum(count * use.weights for count, use in zip(times, uses, strict=True)),
        reduce_scatter=sum(use.gradients for use in uses),
        all_reduce=sum(use.copies for use in uses),
        norms=4 * tensors if shard_ranks > 1 else 0,
        numbers=NUMBER * agreed if shard_ranks * num_copies > 1 else 0,
        messages=sum(times) + reduced,
        shard_ranks=shard_ranks,
        num_copies=num_copies,
    )
