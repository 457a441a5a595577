"""Optimiser, learning-rate schedules and the moving average of the weights."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kosmosg.errors import CheckpointError


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


def restore_optimizer(
    optimizer: torch.optim.AdamW,
    named: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put back what `optimizer_tensors` returned.

    Raises:
        CheckpointError: If the tensors belong to other parameters.
    """
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        if name not in named:
            raise CheckpointError(
                f"the optimiser state holds {name!r}, which this stage does not train;"
                " resume with the code and configuration that wrote it"
            )
        parameter = named[name]
        optimizer.state[parameter][slot] = value.to(parameter.device).clone()


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

    def swap(self) -> None:
        """Exchange the average and the weights; a second call undoes the first."""
        for parameter, name in zip(self._parameters, self.tensors, strict=True):
            self.tensors[name], parameter.data = parameter.data, self.tensors[name]
