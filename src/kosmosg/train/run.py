"""From a configuration to a running stage: the only place that knows all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from kosmosg.config import to_dict
from kosmosg.data.mixture import Stream
from kosmosg.errors import ConfigError
from kosmosg.model.image_decoder import ImageDecoder
from kosmosg.model.kosmosg import KosmosG
from kosmosg.model.mllm import MLLM
from kosmosg.tokenizer import Tokenizer
from kosmosg.train.cache import TensorCache, fingerprint
from kosmosg.train.loop import Samples, fit, restore_result
from kosmosg.train.stage import Stage
from kosmosg.train.stage1_language import LanguageConfig, LanguageStage
from kosmosg.train.stage2_align import (
    AlignConfig,
    AlignPicturesConfig,
    AlignPicturesStage,
    AlignStage,
    TextTower,
)
from kosmosg.train.stage3_instruct import InstructConfig, InstructStage
from kosmosg.train.trainconfig import TrainConfig

StageConfig: TypeAlias = LanguageConfig | AlignConfig | AlignPicturesConfig | InstructConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: which stage, and how it is trained."""

    stage: StageConfig
    train: TrainConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """What a stage works with besides its configuration.

    `model` is an MLLM for stage 1 and a KosmosG for the others; stage 2 needs the text tower,
    stage 3 the image decoder. `workers` are processes that read the stream; 0 is a thread. Without
    a stream nothing can be trained, but the result of a run restored.
    """

    model: MLLM | KosmosG
    tokenizer: Tokenizer
    stream: Stream | None = None
    workers: int = 0
    validation: Stream | None = None
    samples: Samples | None = None
    text_tower: TextTower | None = None
    image_decoder: ImageDecoder | None = None


def run(
    config: RunConfig,
    parts: Parts,
    run_dir: Path,
    *,
    resume: bool = False,
    recipe: Mapping[str, Any] | None = None,
) -> Path:
    """Train one stage; return its last checkpoint's directory. The model then holds the result.

    Args:
        config: The type of its `stage` picks the stage.
        parts: What it works with.
        run_dir: See `fit`.
        resume: Continue a run that was stopped.
        recipe: A larger configuration that this one is a part of, to be kept and compared; None
            means `config`.

    Raises:
        ConfigError: If a part that the stage needs is missing; else as `fit`.
    """
    check_shared(config)
    return fit(
        parts.model,
        make_stage(config.stage, parts, precision=config.train.precision),
        _need(parts.stream, "stream", config.stage),
        config.train,
        run_dir,
        resume=resume,
        workers=parts.workers,
        validation=parts.validation,
        samples=parts.samples,
        recipe=to_dict(config) if recipe is None else recipe,
    )


def restore(
    config: RunConfig, parts: Parts, run_dir: Path, *, recipe: Mapping[str, Any] | None = None
) -> int:
    """Give the model what a run has made by its newest whole checkpoint; return that step.

    Args:
        config: As of `run`.
        parts: What it was begun with; no stream is needed.
        run_dir: The run's; nothing there changes.
        recipe: As of `run`.

    Raises:
        ConfigError: If a part that the stage needs is missing; else as `restore_result`.
        CheckpointError: As `restore_result`.
    """
    stage = make_stage(config.stage, parts, precision=config.train.precision)
    return restore_result(parts.model, stage, config.train, run_dir, recipe=recipe)


def make_stage(config: StageConfig, parts: Parts, *, precision: str = "float32") -> Stage:
    """Return the stage of a configuration.

    Args:
        config: Its type picks the stage.
        parts: What it works with.
        precision: The run's: what is cached in one is not used in another.

    Raises:
        ConfigError: If a part that it needs is missing, or the configuration contradicts itself.
        KosmosGError: If its cache cannot be used.
    """
    mllm = parts.model.mllm if isinstance(parts.model, KosmosG) else parts.model
    common = {
        "tokenizer": parts.tokenizer,
        "num_latents": mllm.config["num_latents"],
        "image_size": mllm.config["image_size"],
        "trainable": config.trainable,
    }
    match config:
        case LanguageConfig():
            return LanguageStage(
                **common, word_weights=config.word_weights, attention=config.attention
            )
        case AlignConfig():
            tower = _need(parts.text_tower, "text_tower", config)
            _check_align(config, parts.model)
            return AlignStage(
                **common,
                text_tower=tower,
                padding=config.padding,
                mllm=config.mllm,
                reconstruction_weight=config.reconstruction_weight,
                length_groups=_checked(config.length_groups),
                cache=_cache(config.cache, precision, mllm=mllm, text_tower=tower.encoder),
            )
        case AlignPicturesConfig():
            return AlignPicturesStage(
                **common, text_tower=_need(parts.text_tower, "text_tower", config)
            )
        case InstructConfig():
            decoder = _need(parts.image_decoder, "image_decoder", config)
            return InstructStage(
                **common,
                target_size=target_size(decoder),
                image_decoder=decoder,
                condition_drop=config.condition_drop,
                loss_weighting=config.loss_weighting,
                min_snr_gamma=config.min_snr_gamma,
                length_groups=_checked(config.length_groups),
                cache=_cache(config.cache, precision, vae=decoder.vae),
                unet_activations=config.unet_activations,
            )


def check_shared(config: RunConfig) -> None:
    """Pass a run whose processes would compute equally often.

    Raises:
        ConfigError: If they would not, and wait for one another for ever.
    """
    if config.train.frozen_parts == "sharded" and getattr(config.stage, "cache", None) is not None:
        raise ConfigError(
            "train.frozen_parts=sharded has all processes compute together, and with stage.cache"
            " one may find what another must compute; remove one"
        )


def _check_align(config: AlignConfig, model: nn.Module) -> None:
    for pattern in config.trainable:
        learning = (name for name, _ in model.named_parameters() if fnmatchcase(name, pattern))
        for name in learning:
            if name.startswith("mllm."):
                raise ConfigError(
                    f"stage.trainable {pattern!r} names {name}; stage 2 computes the language model"
                    " without gradients, so name parts of the aligner alone"
                )
    if config.cache is not None and config.mllm == "train":
        raise ConfigError(
            "stage.cache keeps states, and stage.mllm=train draws them anew each time; remove one"
        )
    if config.cache is not None and config.padding == "released":
        raise ConfigError(
            "stage.cache keeps the states of words, and stage.padding=released needs those of pads;"
            " remove one"
        )


def _checked(length_groups: int | None) -> Any:  # noqa: ANN401 - None where it may be
    if length_groups is not None and length_groups < 1:
        raise ConfigError(f"stage.length_groups = {length_groups}; it must be at least 1")
    return length_groups


def _cache(directory: str | None, precision: str, **frozen: nn.Module) -> TensorCache | None:
    """Return the cache of what these frozen modules give, if one is asked for."""
    if directory is None:
        return None
    return TensorCache(Path(directory).expanduser(), fingerprint=fingerprint(precision, **frozen))


def _need(part: Any, name: str, config: StageConfig) -> Any:  # noqa: ANN401 - passes it through
    if part is None:
        raise ConfigError(f"stage {config.kind!r} needs {name}; give it with the parts")
    return part


def target_size(decoder: ImageDecoder) -> int:
    """Return the side of the pictures whose latents the U-Net was made for."""
    factor = 2 ** (len(decoder.vae.config["block_out_channels"]) - 1)
    return decoder.unet.config["sample_size"] * factor
