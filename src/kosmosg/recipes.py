"""Full-size runs as functions: the paper's three stages."""

from dataclasses import dataclass, field

from kosmosg.data.sources import DataConfig
from kosmosg.train.loop import TrainConfig
from kosmosg.train.run import StageConfig
from kosmosg.train.start import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One stage: what learns how, from which weights and which data.

    `init` is a released model's directory; None makes a new one as `model` says.
    """

    stage: StageConfig
    train: TrainConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    init: str | None = None
    data: DataConfig | None = None
