"""The models of a configuration: where they are, which they are, and ready to use."""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from kosmosg import hashes, release
from kosmosg.construct.config import (
    Blip2Config,
    ClipSegConfig,
    ConstructConfig,
    EditsConfig,
    EndpointConfig,
    LlmConfig,
    MllmConfig,
    RuleConfig,
)
from kosmosg.construct.filters import ClassifierConfig
from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from kosmosg.construct.caption import Captioner
    from kosmosg.construct.entities import EntityFinder
    from kosmosg.construct.example import Steps
    from kosmosg.construct.filters import Judge


def provenance_of(config: ConstructConfig) -> dict[str, str]:
    """Return what every example of a run says of its making: models, their sums, our version.

    It reads all weights once, and passes only if all are there.

    Raises:
        ConfigError: Naming a model that is not there, and where it can be had.
        CheckpointError: If a file cannot be read.
    """
    from kosmosg.construct.caption import speaker_part

    said = {"kosmosg": version("kosmosg")}
    match config.captioner:
        case None:
            pass
        case MllmConfig(directory=name) as chosen:
            home, part = release.find(name), speaker_part(release.find(name))
            said["captioner"] = _named(chosen.directory, hashes.of_parts(home, [part])[part])
        case Blip2Config() as chosen:
            said["captioner"] = _summed("captioner", chosen)
    match config.entities:
        case RuleConfig():
            said["entities"] = "rule"
        case EndpointConfig(model=model):
            said["entities"] = f"{model} behind an endpoint"
        case LlmConfig() as llm:
            said["entities"] = _summed("entities", llm)
    said["segmenter"] = _summed("segmenter", config.segmenter)
    return said | classifier_of(config)


def classifier_of(config: ConstructConfig | EditsConfig) -> dict[str, str]:
    """Return which classifier looks at pictures, with its sum; nothing if none does.

    Raises:
        ConfigError: If it is not there.
    """
    chosen = config.filters.classifier
    return {} if chosen is None else {"classifier": _summed("filters.classifier", chosen)}


def load(config: ConstructConfig) -> "Steps":
    """Return the steps of a configuration, their models loaded.

    Raises:
        ConfigError: If a model or the device is not there.
        CheckpointError: If a model is damaged or of another kind.
    """
    import torch

    from kosmosg.construct.example import Steps
    from kosmosg.construct.segment import clipseg

    device = _device_of(config)
    segmenter = clipseg(
        directory_of("segmenter", config.segmenter),
        device=device,
        dtype=getattr(torch, config.segmenter.dtype),
    )
    return Steps(
        captioner=_captioner(config, device), finder=_finder(config, device), segmenter=segmenter
    )


def load_filter(config: ConstructConfig | EditsConfig) -> "Judge | None":
    """Return the classifier of unsafe pictures, if the configuration names one.

    Raises:
        ConfigError: If it is not there, or damaged.
    """
    from kosmosg.construct.filters import load_judge

    chosen = config.filters.classifier
    if chosen is None:
        return None
    directory = directory_of("filters.classifier", chosen)
    return load_judge(directory, chosen, device=_device_of(config))


def _device_of(config: ConstructConfig | EditsConfig) -> "torch.device":
    import torch

    from kosmosg import devices

    return torch.device(devices.choose(config.device, devices.find()))


def _captioner(config: ConstructConfig, device: "torch.device") -> "Captioner | None":
    import torch

    from kosmosg.construct.caption import blip2, mllm_captioner

    match config.captioner:
        case None:
            return None
        case Blip2Config() as chosen:
            return blip2(
                directory_of("captioner", chosen),
                device=device,
                dtype=getattr(torch, chosen.dtype),
                max_new_tokens=chosen.max_new_tokens,
            )
        case MllmConfig() as chosen:
            return mllm_captioner(
                release.find(chosen.directory),
                max_new_tokens=chosen.max_new_tokens,
                device=device,
            )


def _finder(config: ConstructConfig, device: "torch.device") -> "EntityFinder":
    match config.entities:
        case RuleConfig():
            from kosmosg.construct.entities import rule_finder

            return rule_finder()
        case EndpointConfig() as chosen:
            from kosmosg.construct.endpoint import endpoint_finder

            return endpoint_finder(chosen)
        case LlmConfig() as chosen:
            import torch

            from kosmosg.construct.llm import llm_finder

            return llm_finder(
                directory_of("entities", chosen),
                device=device,
                dtype=getattr(torch, chosen.dtype),
                max_new_tokens=chosen.max_new_tokens,
                decoding=chosen.decoding,
                seed=config.seed,
            )


def directory_of(
    field: str, chosen: Blip2Config | LlmConfig | ClipSegConfig | ClassifierConfig
) -> Path:
    """Return where a model's files are.

    Args:
        field: Of the configuration; the message names it.
        chosen: The model's part of it.

    Raises:
        ConfigError: If they are not there; it says where they can be had and where they go.
    """
    directory = Path(chosen.directory)
    if isinstance(chosen, ClipSegConfig) and chosen.directory in release.SHIPPED:
        directory = release.find(chosen.directory) / "segmenter"
    if not (directory / "config.json").is_file():
        raise ConfigError(
            f"no {field} in {directory}: config.json is missing; fetch it with `hf download"
            f" {chosen.hub} --local-dir {chosen.directory}`, or name another directory with"
            f" {field}.directory=DIR"
        )
    if not list(directory.glob("*.safetensors")):
        raise ConfigError(
            f"the {field} in {directory} has no *.safetensors, and older formats, which can run"
            f" code, are not read: fetch a revision of {chosen.hub} that has them, or save it again"
            " with transformers' save_pretrained"
        )
    return directory


def _summed(field: str, chosen: Blip2Config | LlmConfig | ClipSegConfig | ClassifierConfig) -> str:
    return _named(chosen.directory, hashes.of_directory(directory_of(field, chosen)))


def _named(directory: str, sha256: str) -> str:
    return f"{Path(directory).name} sha256:{sha256[:16]}"
