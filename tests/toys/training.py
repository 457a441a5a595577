"""A model, a stage and a stream small enough to run in a millisecond."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from kosmosg.train.optim import EmaConfig, OptimConfig
from kosmosg.train.stage import Draws
from kosmosg.train.trainconfig import TrainConfig


@dataclass(frozen=True)
class Pair:
    key: str
    given: np.ndarray
    wanted: np.ndarray


class Pairs:
    """Vectors and their images under a fixed map; depends on (seed, index) only."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.map = np.random.default_rng(7).normal(size=(6, 3))

    def batch(self, step: int, size: int) -> list[Pair]:
        return [self._record(step * size + i) for i in range(size)]

    def _record(self, index: int) -> Pair:
        given = np.random.default_rng((self.seed, index)).normal(size=6)
        return Pair(f"pair-{index}", given, given @ self.map)


class Net(nn.Module):
    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.body = nn.Linear(6, 16)
        self.norm = nn.LayerNorm(16)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(16, 3)

    def forward(self, given: Tensor) -> Tensor:
        return self.head(self.dropout(torch.tanh(self.norm(self.body(given)))))


class Regression:
    """Squared error to the target plus noise that is drawn for each sample."""

    def __init__(self, trainable: tuple[str, ...] = ("*",)) -> None:
        self.trainable = trainable

    def collate(self, records: list[Pair]) -> tuple[Tensor, Tensor]:
        given = torch.tensor(np.stack([record.given for record in records]), dtype=torch.float32)
        wanted = torch.tensor(np.stack([record.wanted for record in records]), dtype=torch.float32)
        return given, wanted

    def weight(self, batch: tuple[Tensor, Tensor]) -> int:
        return len(batch[0])

    def loss(
        self, model: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        given, wanted = batch
        noise = Draws(generator, count=len(given)).normal(3, device=given.device)
        error = model(given) - (wanted + 0.1 * noise)
        return {"squares": (error**2).mean(1).sum(), "metric_worst": error.abs().max()}


def net(dropout: float = 0.2) -> Net:
    torch.manual_seed(3)
    return Net(dropout)


def train_config(**changes: object) -> TrainConfig:
    fields = {
        "seed": 1,
        "steps": 12,
        "global_batch_size": 8,
        "micro_batch": 4,
        "optim": OptimConfig(lr=1e-2, clip_norm=1.0, schedule="cosine", warmup_steps=3),
        "ema": EmaConfig(decay=0.9, every=2),
        "precision": "float32",
        "log_every": 2,
        "validate_every": 4,
        "validation_records": 6,
        "samples_every": 6,
    }
    return TrainConfig(**(fields | changes))
