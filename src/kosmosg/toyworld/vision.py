"""The toy world's CLIP vision tower: a ViT whose patches say what they show.

Contrast between whole pictures and captions does not make small ViTs see shapes (docs/log.md).
Each patch therefore predicts the words of the creature that covers it, and all predict the place:
grounded words, known to the renderer. What learns here is exactly what the MLLM will see.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kosmosg.images import CLIP_MEAN, CLIP_STD
from kosmosg.model.clip_vision import ClipVision
from kosmosg.toyworld.render import render
from kosmosg.toyworld.scenes import (
    ACCESSORIES,
    BLANK,
    COLOURS,
    PATTERN_COLOURS,
    PATTERNS,
    PLACES,
    SHAPES,
    Scene,
    Subject,
)

_SUBJECT_WORDS = (SHAPES, tuple(COLOURS), PATTERNS, tuple(PATTERN_COLOURS), ACCESSORIES)
SUBJECT_WIDTHS = [len(words) for words in _SUBJECT_WORDS]
_WIDTHS = [*SUBJECT_WIDTHS, len(PLACES)]
IGNORED = -100


class GroundedVision(nn.Module):
    """The tower and the linear reader of its features."""

    def __init__(self, vision: ClipVision, hidden_size: int) -> None:
        super().__init__()
        self.vision = vision
        self.scale = nn.Parameter(torch.tensor(10.0))  # the features have length 1
        self.words = nn.Linear(hidden_size, sum(_WIDTHS))

    def forward(
        self, pixel_values: Float[Tensor, "images 3 size size"]
    ) -> tuple[Float[Tensor, "images patches words"], ...]:
        """Return the logits of each kind of word at the class token and every patch."""
        logits = self.words(self.scale * self.vision(pixel_values))
        return logits.split(_WIDTHS, dim=-1)


@dataclass(frozen=True, kw_only=True)
class VisionStage:
    """Cross entropy of grounded words, a mean over the patches that have one."""

    size: int = 64
    patch: int = 8
    blank: float = 0.25  # how many scenes are put on white, as cut-outs are
    trainable: tuple[str, ...] = ("*",)

    def collate(self, records: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
        """Return pixels, the words of each patch (5 kinds) and the place."""
        scenes = [
            replace(scene, place=BLANK, style="plain")
            if np.random.default_rng([scene.seed, 2]).random() < self.blank
            else scene
            for scene in records
        ]
        drawn, masks = render(scenes, self.size)
        pixels = (drawn.astype(np.float32) / 255 - CLIP_MEAN) / CLIP_STD
        words = patch_words(scenes, masks, self.size // self.patch)
        places = [PLACES.index(s.place) if s.place != BLANK else IGNORED for s in scenes]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), words, torch.tensor(places)

    def weight(self, batch: tuple[Tensor, Tensor, Tensor]) -> int:
        """Return the number of pictures."""
        return len(batch[0])

    def loss(
        self,
        model: GroundedVision,
        batch: tuple[Tensor, Tensor, Tensor],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return the losses times the number of pictures, and the accuracy for shapes."""
        del generator  # nothing is drawn
        pixels, words, places = batch
        *by_word, by_place = (logits.float() for logits in model(pixels))
        count = len(pixels)
        losses = {
            f"words{kind}": count
            * F.cross_entropy(logits[:, 1:].flatten(0, 1), words[..., kind].flatten())
            for kind, logits in enumerate(by_word)
        }
        spread = places[:, None].expand(-1, by_place.shape[1]).flatten()
        losses["place"] = 0.5 * count * F.cross_entropy(by_place.flatten(0, 1), spread)
        shown = words[..., 0] != IGNORED
        right = (by_word[0][:, 1:].argmax(-1) == words[..., 0])[shown].float().mean()
        losses["metric_shape"] = count * right
        return losses


def patch_words(
    scenes: Sequence[Scene], masks: Bool[np.ndarray, "scenes 4 size size"], side: int
) -> Int[Tensor, "scenes patches kinds"]:
    """Return the words of the creature that covers each patch, by kind; `IGNORED` where none does.

    Args:
        side: Patches in a row.
    """
    cells = torch.from_numpy(masks).float().unflatten(2, (side, -1)).unflatten(4, (side, -1))
    share, owner = cells.mean((3, 5)).flatten(2).max(1)
    words = torch.full((len(scenes), side * side, len(_SUBJECT_WORDS)), IGNORED)
    for index, scene in enumerate(scenes):
        known = torch.tensor([subject_words(subject) for subject in scene.subjects])
        seen = share[index] > 0.3
        words[index, seen] = known[owner[index, seen]]
    return words


def subject_words(subject: Subject) -> list[int]:
    """Return the number of the word of each kind; a plain creature has no second colour."""
    return [
        SHAPES.index(subject.shape),
        list(COLOURS).index(subject.colour),
        PATTERNS.index(subject.pattern),
        IGNORED
        if subject.pattern == "plain"
        else list(PATTERN_COLOURS).index(subject.pattern_colour),
        ACCESSORIES.index(subject.accessory),
    ]
