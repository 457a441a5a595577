"""An independent reader of toy pictures: which creature, where. Its answers are the scores.

It shares nothing with the model it judges: its own network, seed and renders, and no CLIP features.
A picture of two is read through two windows, each holding one of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor, nn

from kosmosg.toyworld.foundation import pictures
from kosmosg.toyworld.scenes import (
    ACCESSORIES,
    COLOURS,
    PATTERN_COLOURS,
    PATTERNS,
    PLACES,
    SHAPES,
    STYLES,
    Scene,
)

ANSWERS: Mapping[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "body_colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "pattern_colour": tuple(PATTERN_COLOURS),
    "accessory": ACCESSORIES,
    "place": PLACES,
    "style": STYLES,
}
IGNORE = -100  # an answer that the picture cannot give: the pattern colour of a plain creature


class Judge(ModelMixin, ConfigMixin):
    """A small convolutional classifier with one head a question."""

    @register_to_config
    def __init__(self, *, width: int = 24) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 3 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
                nn.Conv2d(after, after, 3, padding=1, groups=1 if before == 3 else 4),
                nn.GroupNorm(8, after),
                nn.SiLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.pool = nn.Conv2d(4 * width, 24, 1)  # 24 places of 4x4 or larger maps, then flattened
        self.hidden = nn.Linear(24 * 16 + 8 * width, 8 * width)
        self.heads = nn.ModuleDict(
            {question: nn.Linear(8 * width, len(options)) for question, options in ANSWERS.items()}
        )

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> dict[str, Float[Tensor, "batch options"]]:
        """Return the logits of every question, for pictures in [-1, 1] of any size (read at 64)."""
        hidden = self.penultimate(images)
        return {question: head(hidden) for question, head in self.heads.items()}

    def penultimate(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return what all answers are read from: features that two pictures are compared by."""
        if images.shape[-1] != 64:
            images = F.interpolate(images, size=(64, 64), mode="area")
        features = self.features(images)
        whole = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        hidden = torch.cat([self.pool(features).flatten(1), whole], dim=1)
        return F.silu(self.hidden(hidden))


def window(
    images: Float[Tensor, "batch 3 size size2"], side: str
) -> Float[Tensor, "batch 3 size size2"]:
    """Return the left or right half of the pictures, moved to the middle of grey ones."""
    size = images.shape[-1]
    width = size // 2
    start = {"left": 0, "right": size - width}[side]
    seen = torch.zeros_like(images)
    middle = (size - width) // 2
    seen[..., middle : middle + width] = images[..., start : start + width]
    return seen


@torch.no_grad()
def read(
    judge: Judge, images: Float[Tensor, "batch 3 height width"], side: str | None = None
) -> dict[str, Int[Tensor, " batch"]]:
    """Return the index of the answer to each question; `side` reads one of two creatures."""
    logits = judge(images if side is None else window(images, side))
    return {question: scores.argmax(-1) for question, scores in logits.items()}


def truth(scenes: Sequence[Scene], slot: int = 0) -> dict[str, Int[Tensor, " batch"]]:
    """Return the right answers for the subject number `slot` of each scene."""
    subjects = [scene.subjects[slot] for scene in scenes]
    said = {
        "shape": [s.shape for s in subjects],
        "body_colour": [s.colour for s in subjects],
        "pattern": [s.pattern for s in subjects],
        "pattern_colour": [None if s.pattern == "plain" else s.pattern_colour for s in subjects],
        "accessory": [s.accessory for s in subjects],
        "place": [scene.place for scene in scenes],
        "style": [scene.style for scene in scenes],
    }
    return {
        question: torch.tensor(
            [ANSWERS[question].index(a) if a in ANSWERS[question] else IGNORE for a in answers]
        )
        for question, answers in said.items()
    }


@dataclass(frozen=True, kw_only=True)
class JudgeStage:
    """Classification of creatures alone, and of each of two through its window."""

    trainable: tuple[str, ...] = ("*",)

    def collate(self, records: Sequence[Scene]) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw the scenes; a scene of two gives two windows, of more gives nothing."""
        groups = [(s, None, 0) for s in records if len(s.subjects) == 1]
        groups += [(s, "left", 0) for s in records if len(s.subjects) == 2]
        groups += [(s, "right", 1) for s in records if len(s.subjects) == 2]
        images = pictures([scene for scene, _, _ in groups], 64)
        shown = [
            image[None] if side is None else window(image[None], side)
            for image, (_, side, _) in zip(images, groups, strict=True)
        ]
        answers = [truth([scene], slot) for scene, _, slot in groups]
        labels = {question: torch.cat([a[question] for a in answers]) for question in ANSWERS}
        return torch.cat(shown), labels

    def weight(self, batch: tuple[Tensor, dict[str, Tensor]]) -> int:
        """Return the number of pictures read."""
        return len(batch[0])

    def loss(
        self,
        model: nn.Module,
        batch: tuple[Tensor, dict[str, Tensor]],
        generator: torch.Generator,  # noqa: ARG002 - nothing here is random
    ) -> dict[str, Tensor]:
        """Return the summed cross entropy of each question."""
        images, labels = batch
        logits = model(images)
        return {
            question: F.cross_entropy(
                scores.float(), labels[question], ignore_index=IGNORE, reduction="sum"
            )
            for question, scores in logits.items()
        }
