"""What an experiment is made of: how much of it, what it works with, and what it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from kosmosg.evaluate.metrics import Score
from kosmosg.toyworld.evaluate import Precision
from kosmosg.toyworld.world import World

# Of one core, measured where docs/results/ was made; they only foretell how long a row takes.
SECONDS_A_PICTURE = 0.2
# What every row depends on.
DRAWING = ("num_inference_steps", "precision", "seed")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of everything.

    Args:
        prompts: Of each row.
        points: Prompts of each point of a curve.
        subjects: Creatures that are tuned to, each by itself.
        seeds: Of what is trained.
        scale: What the steps of each training are multiplied by.
        num_inference_steps: Of the sampler; None is the model's own.
        precision: Of the U-Net's work.
        seed: Of the creatures, places and noise.
    """

    prompts: int = 1000
    points: int = 256
    subjects: int = 16
    seeds: tuple[int, ...] = (7, 107, 207)
    scale: float = 1.0
    num_inference_steps: int | None = None
    precision: Precision = "bfloat16"
    seed: int = 0

    def steps(self, whole: int) -> int:
        """Return the steps of a training that has so many in full, at least 2."""
        return max(2, round(self.scale * whole))


QUICK = Budget(
    prompts=4,
    points=4,
    subjects=1,
    seeds=(7,),
    scale=0.001,
    num_inference_steps=2,
    precision="float32",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """What an experiment works with.

    Args:
        world: The model that ships, or another.
        directory: Of that model.
        budget: How much.
        work_dir: Its own, for what it trains; survives a stop.
        advance: Told of pictures that were drawn.
    """

    world: World
    directory: Path
    budget: Budget
    work_dir: Path
    advance: Callable[[int], object]

    @property
    def size(self) -> int:
        """The side of the pictures."""
        return self.world.pipe.generation_config.height

    @property
    def shown_size(self) -> int:
        """The side of the pictures that the language model sees."""
        return self.world.pipe.mllm.config["image_size"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What an experiment found.

    Args:
        scores: Means with 95% intervals.
        judge: The same of the renderer's pictures.
        n: Prompts of each seed.
        seeds: Of what was trained.
        picture: To look at; None if there is none.
        config: What it depends on besides the budget.
    """

    scores: dict[str, Score]
    judge: dict[str, float]
    n: int
    seeds: tuple[int, ...] = (0,)
    picture: Image.Image | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A row that can be measured.

    Args:
        name: Of the row and its file.
        claim: A key of `rows.CLAIMS`.
        says: What is done, in a line.
        measure: Does it.
        pictures: How many it draws.
        seconds: Of one core that it trains for.
        budget: What of the budget it depends on.
    """

    name: str
    claim: str
    says: str
    measure: Callable[[Setting], Measured]
    pictures: Callable[[Budget], int | float]
    seconds: Callable[[Budget], int | float] = lambda _budget: 0.0
    budget: tuple[str, ...] = ("prompts", *DRAWING)

    def cost_s(self, budget: Budget) -> int | float:
        """Return about how many seconds of one core it takes."""
        return SECONDS_A_PICTURE * self.pictures(budget) + self.seconds(budget)
