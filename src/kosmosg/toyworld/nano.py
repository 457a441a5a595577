"""The nano recipes: a foundation, then the paper's three stages; each part is one command.

Times are for a 2-core machine (AVX-512) that has nothing else to do, from measured rates where
docs/results.md has them and estimates else; the figures are what each part has to reach.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from kosmosg.data.sources import DataConfig
from kosmosg.toyworld.scenes import PATTERNS, SHAPES
from kosmosg.train.optim import EmaConfig, OptimConfig
from kosmosg.train.stage1_language import LanguageConfig
from kosmosg.train.stage2_align import AlignConfig
from kosmosg.train.stage3_instruct import InstructConfig
from kosmosg.train.trainconfig import TrainConfig

FOUNDATION = ("vae", "clip", "judge", "unet")
STAGES = ("stage1", "stage2", "stage3")
# What constructs training data, beside the model; the captioner goes on from stage 1.
CONSTRUCTION = ("captioner", "segmenter")
PARTS = (*FOUNDATION, *STAGES, *CONSTRUCTION)
# The last layer of CLIP's vision tower learns with the language model, the rest is frozen (paper
# section 2.1; NUMERICS section 8 for the final norm).
LAST_VISION_LAYER = ("vision.clip.encoder.layers.3.*", "vision.clip.post_layernorm.*")
WORD_WEIGHTS = {**dict.fromkeys(SHAPES, 3.0), **dict.fromkeys(PATTERNS[1:], 2.0)}
LANGUAGE = ("resampler.*", "embed_tokens.*", "layers.*", "layer_norm.*", *LAST_VISION_LAYER)


@dataclass(frozen=True, kw_only=True)
class FoundationConfig:
    """What a foundation part trains.

    The rest is the U-Net's: whether the text tower learns with it, and what an error counts where a
    creature stands, where one beside it counts 1.
    """

    kind: Literal["foundation"] = "foundation"
    text_tower: Literal["trained", "frozen"] = "trained"
    body_weight: float = 3.0


@dataclass(frozen=True, kw_only=True)
class NanoConfig:
    """One part of the nano run.

    `data` are shards that stages 1 to 3 train from; None is the toy world's own endless records.
    """

    part: str
    stage: FoundationConfig | LanguageConfig | AlignConfig | InstructConfig
    train: TrainConfig
    data: DataConfig | None = None


def _train(*, steps: int, batch: int, lr: float, seed: int, ema: float = 0.999) -> TrainConfig:
    return TrainConfig(
        seed=seed,
        steps=steps,
        global_batch_size=batch,
        micro_batch=batch,
        optim=OptimConfig(
            lr=lr, clip_norm=1.0, schedule="cosine", warmup_steps=min(200, 1 + steps // 10)
        ),
        ema=EmaConfig(decay=ema, every=4),
        precision="bfloat16",
    )


def vae() -> NanoConfig:
    """Autoencoder, 120k pictures: about 45 minutes of both cores; 27 dB is the gate."""
    return NanoConfig(
        part="vae",
        stage=FoundationConfig(),
        train=_train(steps=15000, batch=8, lr=1.2e-3, seed=1, ema=0.995),
    )


def clip() -> NanoConfig:
    """Vision tower, 200k pictures: about 20 minutes of one core."""
    return NanoConfig(
        part="clip",
        stage=FoundationConfig(),
        train=_train(steps=4200, batch=48, lr=1.5e-3, seed=3),
    )


def judge() -> NanoConfig:
    """The judge, 100k pictures: about 6 minutes of one core; 97% on each question is the gate."""
    return NanoConfig(
        part="judge",
        stage=FoundationConfig(),
        train=_train(steps=3200, batch=32, lr=2e-3, seed=77),
    )


def unet() -> NanoConfig:
    """U-Net and text tower, 400k pictures: about 117 minutes of both cores.

    What ships has seen 540k, in three legs: `--leg 2` goes on.
    """
    return NanoConfig(
        part="unet",
        stage=FoundationConfig(),
        train=_train(steps=12500, batch=32, lr=1e-3, seed=4),
    )


def stage1() -> NanoConfig:
    """Stage 1, 120k documents: about 20 minutes of one core; shape words right at .85 is the gate.

    Source:
        Paper section 2.1. Deviation: shape words weigh 3 and pattern words 2 (NANO section 4),
        since a small model otherwise stays long on a plateau where it guesses them.
    """
    return NanoConfig(
        part="stage1",
        stage=LanguageConfig(trainable=LANGUAGE, word_weights=WORD_WEIGHTS),
        train=_train(steps=2500, batch=48, lr=1.2e-3, seed=5),
    )


def stage2() -> NanoConfig:
    """Stage 2, 130k captions: about 10 minutes of one core.

    Source:
        Paper section 2.2. Deviation: the reconstruction weighs 0.02. At 1 it holds M, which is
        small here, from the words for ten times as long (docs/log.md).
    """
    return NanoConfig(
        part="stage2",
        stage=AlignConfig(padding="masked", mllm="eval", reconstruction_weight=0.02),
        train=_train(steps=2000, batch=64, lr=3e-3, seed=6),
    )


def stage3() -> NanoConfig:
    """Stage 3, 77k examples: about 30 minutes of both cores.

    Source:
        Paper section 2.3. Deviation: min-SNR weighting, which a small budget needs.
    """
    trainable = ("aligner.encoder.*", *(f"mllm.{name}" for name in LANGUAGE))
    return NanoConfig(
        part="stage3",
        stage=InstructConfig(trainable=trainable, loss_weighting="min_snr", min_snr_gamma=5.0),
        train=_train(steps=2400, batch=32, lr=6e-4, seed=7),
    )


def captioner() -> NanoConfig:
    """Captioner, 72k pictures: about 15 minutes of one core.

    All words right of both of two creatures at .85 is the gate. Stage 1's language model sees what
    there is, but of two creatures it names the wrong one first in one caption of four
    (docs/log.md). Here most captions tell of several, and the whole vision tower learns.
    """
    return NanoConfig(
        part="captioner",
        stage=LanguageConfig(trainable=("*",), word_weights=WORD_WEIGHTS),
        train=_train(steps=1500, batch=48, lr=1e-3, seed=10),
    )


def segmenter() -> NanoConfig:
    """CLIPSeg, 96k pictures with two prompts each: about 15 minutes of one core.

    A mean intersection over union of .8 on held-out creatures is the gate.
    """
    return NanoConfig(
        part="segmenter",
        stage=FoundationConfig(),
        train=_train(steps=3000, batch=32, lr=1.5e-3, seed=9),
    )


RECIPES: Mapping[str, Callable[[], NanoConfig]] = {
    "vae": vae,
    "clip": clip,
    "judge": judge,
    "unet": unet,
    "stage1": stage1,
    "stage2": stage2,
    "stage3": stage3,
    "captioner": captioner,
    "segmenter": segmenter,
}


def scaled(config: NanoConfig, scale: float) -> NanoConfig:
    """Return the part with its number of steps multiplied, at least 2, for a quick proof."""
    steps = max(2, round(config.train.steps * scale))
    warmup = min(config.train.optim.warmup_steps, 1 + steps // 10)
    optim = replace(config.train.optim, warmup_steps=warmup)
    return replace(config, train=replace(config.train, steps=steps, optim=optim))
