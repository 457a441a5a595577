"""Optimiser, learning-rate schedules and the moving average of the weights."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kosmosg.errors import CheckpointError, KosmosGError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with a warm-up and a decay to zero.

    `weight_decay` applies to every parameter, normalisations and biases included. `eps_scale`
    says what epsilon is added to: `corrected`, as torch does, the bias-corrected root; `raw`, as
    the authors' Adam does, the root before its correction. `total_steps` is where the decay
    reaches zero; None means the run's length.

    Source:
        Paper appendix A; NUMERICS §8 for epsilon, clipping and decay on all parameters.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float
    schedule: Literal["linear", "cosine"]
    warmup_steps: int
    total_steps: int | None = None
    eps_scale: Literal["corrected", "raw"] = "corrected"


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """An exponential moving average of the weights; it is what a run exports.

    `decay` is for one step; the average is brought up to date every `every` steps.
    """

    decay: float
    every: int = 4


def learning_rate(config: OptimConfig, updates_done: int, total_steps: int) -> float:
    """Return the rate for the update that follows `updates_done` updates.

    Source:
        NUMERICS §8: update number n, from 1, uses lr(n - 1); so the first one uses rate 0.
    """
    total = config.total_steps or total_steps
    warmup = config.warmup_steps
    if updates_done <= warmup and warmup > 0:
        return config.lr * updates_done / warmup
    done = min(1.0, (updates_done - warmup) / max(1, total - warmup))
    if config.schedule == "linear":
        return config.lr * (1 - done)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """Return fused AdamW over these parameters; `set_rate` sets its rate before each update."""
    return torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def set_rate(
    optimizer: torch.optim.AdamW, config: OptimConfig, *, updates_done: int, total_steps: int
) -> float:
    """Set and return the learning rate of the coming update, and epsilon with it."""
    rate = learning_rate(config, updates_done, total_steps)
    # Dividing by the correction turns torch's rule into the authors' one exactly.
    correction = math.sqrt(1 - config.betas[1] ** (updates_done + 1))
    eps = config.eps / correction if config.eps_scale == "raw" else config.eps
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["eps"] = eps
    return rate


def optimizer_tensors(
    optimizer: torch.optim.AdamW, named: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Return the optimiser's state as named tensors, `<parameter>/<slot>`."""
    return {
        f"{name}/{slot}": value
        for name, parameter in named.items()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def room_for_optimizer(
    optimizer: torch.optim.AdamW, named: Mapping[str, nn.Parameter], keys: Iterable[str]
) -> dict[str, Tensor]:
    """Make the optimiser's tensors of these names, to be filled; return them.

    Raises:
        CheckpointError: If a name belongs to another parameter.
    """
    made: dict[str, Tensor] = {}
    for key in keys:
        name, _, slot = key.rpartition("/")
        if name not in named:
            raise CheckpointError(
                f"the optimiser state holds {name!r}, which this stage does not train;"
                " resume with the code and configuration that wrote it"
            )
        parameter = named[name]
        if slot == "step":  # a number, which each rank has
            value = torch.zeros((), device=parameter.device)
        else:
            value = torch.zeros_like(parameter, requires_grad=False)
        optimizer.state[parameter][slot] = made[key] = value
    return made


class LossScale:
    """The factor that keeps float16 gradients from vanishing; 1 for other types.

    A gradient that overflows halves it and costs the update; so many updates without one double it.

    Source:
        NUMERICS section 8: from 4, window 256, at least 1e-4.
    """

    def __init__(self, *, start: float = 4.0, window: int = 256, least: float = 1e-4) -> None:
        self.value = start
        self.num_good = 0
        self._window, self._least = window, least

    def grow(self) -> None:
        """Count an update."""
        self.num_good += 1
        if self.num_good % self._window == 0:
            self.value *= 2

    def shrink(self) -> None:
        """Count an overflow.

        Raises:
            KosmosGError: If the factor is at its least: the gradients themselves are too large.
        """
        self.num_good = 0
        self.value /= 2
        if self.value < self._least:
            raise KosmosGError(
                f"gradients overflow float16 at a loss scale of {self.value}; use"
                " precision=bfloat16, or lower optim.lr and go on from an earlier checkpoint"
            )


class Average:
    """The moving average of named parameters, kept beside them."""

    def __init__(self, config: EmaConfig, named: Mapping[str, nn.Parameter]) -> None:
        self.config = config
        self.updates = 0
        self._parameters = list(named.values())
        self.tensors = {name: parameter.detach().clone() for name, parameter in named.items()}

    def update(self, step: int) -> None:
        """Bring the average up to date after update number `step`, every so many steps."""
        if step % self.config.every:
            return
        self.updates += 1
        # Early on the average would mostly remember the initial weights; so it starts shorter.
        steps = self.updates * self.config.every
        decay = min(self.config.decay, (1 + steps) / (10 + steps)) ** self.config.every
        for average, parameter in zip(self.tensors.values(), self._parameters, strict=True):
            average.lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the weights; a second call undoes the first.

        By value: a sharded parameter has more than one view of its memory.
        """
        for parameter, average in zip(self._parameters, self.tensors.values(), strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)
