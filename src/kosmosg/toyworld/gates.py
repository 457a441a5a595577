"""Whether the foundation can carry what is built on it: three measurements to take before stage 1.

A U-Net cannot draw a word that its text tower collapsed, a language model cannot read a shape that
the vision tower does not show, and no picture is crisper than its autoencoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextModel

from kosmosg.images import CLIP_MEAN, CLIP_STD
from kosmosg.model.clip_vision import ClipVision
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld.foundation import pictures, psnr, text_ids
from kosmosg.toyworld.render import render
from kosmosg.toyworld.scenes import (
    ACCESSORIES,
    COLOURS,
    PATTERN_COLOURS,
    PATTERNS,
    SHAPES,
    Scene,
    sample_scene,
)

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "pattern_colour": tuple(PATTERN_COLOURS),
    "pattern": PATTERNS[1:],
    "accessory": tuple(word for word in ACCESSORIES[1:] if word != "sunglasses"),
}
_CAPTION = "a {} {} with {} {} wearing a {}"
MIN_PSNR = 27.0  # dB
MIN_SHAPE = 0.9
MIN_DISTANCE = (5.0, 3.0)  # of the first creature's words, and of the second's


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One measurement and the least that it should be."""

    what: str
    value: float
    at_least: float

    @property
    def passed(self) -> bool:
        """Whether what is built on the foundation may count on this."""
        return self.value >= self.at_least


def measure(
    vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: Tokenizer, vision: ClipVision
) -> list[Gate]:
    """Return every gate; about half a minute of one core."""
    gates = [Gate(what="vae psnr dB", value=restored(vae), at_least=MIN_PSNR)]
    gates += [
        Gate(what=f"word {attribute}, {subject} creature", value=value, at_least=least)
        for attribute, distances in one_word_change(text_encoder, tokenizer).items()
        for subject, value, least in zip(("first", "second"), distances, MIN_DISTANCE, strict=True)
    ]
    shape = patch_probe(vision)["shape"]
    return [*gates, Gate(what="patches, shape", value=shape, at_least=MIN_SHAPE)]


@torch.no_grad()
def one_word_change(
    text_encoder: CLIPTextModel, tokenizer: Tokenizer, *, count: int = 64
) -> dict[str, tuple[float, float]]:
    """Return how far one changed word moves the text states, for the first and second subject.

    The squared distance is summed over the width and averaged over the changed word's position and
    all after it, since a causal tower cannot move those before. It means something for states of
    variance 1 (`foundation.scale_states`).
    """
    rng = np.random.default_rng(0)
    far: dict[str, tuple[float, float]] = {}
    for place, attribute in enumerate(_OPTIONS):
        far[attribute] = (
            _mean_distance(text_encoder, tokenizer, place, 0, count, rng),
            _mean_distance(text_encoder, tokenizer, place, 1, count, rng),
        )
    return far


def _mean_distance(
    text_encoder: CLIPTextModel,
    tokenizer: Tokenizer,
    place: int,
    subject: int,
    count: int,
    rng: np.random.Generator,
) -> float:
    options = list(_OPTIONS.values())
    before, after = [], []
    for _ in range(count):
        said = [[str(rng.choice(words)) for words in options] for _ in range(2)]
        other = [list(words) for words in said]
        others = [word for word in options[place] if word != said[subject][place]]
        other[subject][place] = str(rng.choice(others))
        before.append(" and ".join(_CAPTION.format(*words) for words in said))
        after.append(" and ".join(_CAPTION.format(*words) for words in other))
    ids = torch.stack([text_ids(captions, tokenizer) for captions in (before, after)])
    first, second = (text_encoder(row).last_hidden_state for row in ids)
    distances = (first - second).square().sum(-1)
    reached = (ids[0] != ids[1]).cumsum(1) > 0
    return float((distances * reached).sum() / reached.sum())


@torch.no_grad()
def patch_probe(vision: ClipVision, *, train: int = 4000, test: int = 1000) -> dict[str, float]:
    """Return the accuracy of a linear reader of the patch grid, on creatures of held-out kinds.

    One creature a picture, of the training split to fit the reader and of the held-out one to test
    it. The grid is averaged to 4x4 cells; ridge regression onto one-hot answers.
    """
    grids, answers = _grids(vision, train, seed=61, held_out=False)
    held_grids, held_answers = _grids(vision, test, seed=62, held_out=True)
    gram = grids.T @ grids + 1e-3 * len(grids) * grids.var() * torch.eye(grids.shape[1])
    scores = {}
    for name, truth in answers.items():
        wanted = F.one_hot(truth).float() - 1 / (int(truth.max()) + 1)
        weights = torch.linalg.solve(gram, grids.T @ wanted)
        right = (held_grids @ weights).argmax(1) == held_answers[name]
        scores[name] = float(right.float().mean())
    return scores


def _grids(
    vision: ClipVision, count: int, *, seed: int, held_out: bool
) -> tuple[Float[Tensor, "count cells"], dict[str, Int[Tensor, " count"]]]:
    scenes = [
        sample_scene(
            np.random.default_rng([seed, i]), count=1, held_out=held_out, style_probability=0.0
        )
        for i in range(count)
    ]
    size = vision.clip.config.image_size
    assert isinstance(size, int)
    grids = []
    for start in range(0, count, 200):
        drawn, _ = render(scenes[start : start + 200], size)
        pixels = torch.from_numpy((drawn / 255 - CLIP_MEAN) / CLIP_STD).permute(0, 3, 1, 2)
        patches = vision(pixels.float())[:, 1:]
        side = int(patches.shape[1] ** 0.5)
        maps = patches.transpose(1, 2).unflatten(2, (side, side))
        grids.append(F.adaptive_avg_pool2d(maps, 4).flatten(1))
    features = torch.cat(grids)
    features = torch.cat([features - features.mean(0), torch.ones(count, 1)], dim=1)
    subjects = [scene.subjects[0] for scene in scenes]
    return features, {
        "shape": torch.tensor([SHAPES.index(s.shape) for s in subjects]),
        "body_colour": torch.tensor([list(COLOURS).index(s.colour) for s in subjects]),
        "pattern": torch.tensor([PATTERNS.index(s.pattern) for s in subjects]),
        "accessory": torch.tensor([ACCESSORIES.index(s.accessory) for s in subjects]),
    }


@torch.no_grad()
def restored(vae: AutoencoderKL, *, count: int = 256) -> float:
    """Return the autoencoder's peak signal to noise ratio in dB on held-out renders."""
    images = pictures(held_out_scenes(count), 64)
    posterior: Any = vae.encode(images, return_dict=False)[0]
    return psnr(vae.decode(posterior.mean, return_dict=False)[0], images)


def held_out_scenes(count: int) -> list[Scene]:
    """Return the scenes that the autoencoder is measured on."""
    return [sample_scene(np.random.default_rng([63, i]), held_out=True) for i in range(count)]
