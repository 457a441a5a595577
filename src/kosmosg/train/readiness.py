"""Whether a run can begin: what is missing, and the sizes of what is there. No weights are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kosmosg import release
from kosmosg.data.converted import check_format, own_folder
from kosmosg.data.sources import DataConfig, SourceConfig, find_tars
from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.train.run import StageConfig
from kosmosg.train.shapes import Sizes
from kosmosg.train.stage1_language import LanguageConfig
from kosmosg.train.stage3_instruct import InstructConfig
from kosmosg.train.start import ModelConfig


def missing(
    stage: StageConfig, *, init: str | None, data: DataConfig | None, model: ModelConfig
) -> list[str]:
    """Return what `start` would not find, one line each with what to do; nothing: all is there."""
    return [
        *missing_data(data),
        *_missing_model(stage, init, model),
        *_missing_beside(stage, init, model),
    ]


def missing_data(data: DataConfig | None, *, field: str = "data") -> list[str]:
    """Return which records would not be found, held-out ones too; `field` is their place."""
    if data is None or not data.sources:
        return [f"no data is named; name a folder or tars: {field}.sources.NAME.paths=FOLDER"]
    return [
        *_missing_sources(data.sources, f"{field}.sources", may_be_own=True),
        *_missing_sources(data.validation, f"{field}.validation", may_be_own=False),
    ]


def _missing_sources(
    sources: Mapping[str, SourceConfig], field: str, *, may_be_own: bool
) -> list[str]:
    """Return a line for each source that is not there; it `may_be_own`, a user's own folder."""
    lines = []
    for name, source in sources.items():
        try:
            own = {path: own_folder(path) for path in source.each_path() if may_be_own}
            folders = [folder for folder in own.values() if folder is not None]
            for folder in folders:
                check_format(folder, name)
            tars = [path for path in source.each_path() if own.get(path) is None]
            if tars or not folders:
                find_tars(tars, name=name)
        except ConfigError as error:
            lines.append(f"{error}: {field}.{name}.paths=FOLDER")
    return lines


def _missing_model(stage: StageConfig, init: str | None, model: ModelConfig) -> list[str]:
    if init is None:
        clip = _absent("CLIP's vision tower", model.clip, "model.clip")
        return [*clip, *_absent("a tokenizer", model.tokenizer, "model.tokenizer")]
    folder = _folder(init)
    if not folder.is_dir():
        return [f"no model at {init} to start from; name the directory of one: init=DIR"]
    lines = []
    if not (folder / "tokenizer").is_dir():
        lines += _absent("a tokenizer", model.tokenizer, "model.tokenizer")
    needed = ("mllm", "aligner") if isinstance(stage, InstructConfig) else ("mllm",)
    for part in needed:
        if part in model.new:
            continue
        try:
            release.check_part(folder, part)
        except CheckpointError as error:
            lines.append(f"{error}; or make a new part: model.new=[{part}]")
    return lines


def _missing_beside(stage: StageConfig, init: str | None, model: ModelConfig) -> list[str]:
    """Look for what stands frozen beside the model; a Stable Diffusion may be one file."""
    lines = []
    for part in _beside(stage):
        folders = _folders(init, model)
        if any(folder.is_file() or _has(folder, part) for folder in folders):
            continue
        where = " or ".join(str(folder / part) for folder in folders) or "anything named"
        lines.append(
            f"Stable Diffusion's {part} is not at {where}; name a directory of Stable Diffusion"
            " 1.5: model.base=DIR"
        )
    return lines


def _beside(stage: StageConfig) -> tuple[str, ...]:
    match stage:
        case LanguageConfig():
            return ()
        case InstructConfig():
            return "unet", "vae"
    return ("text_encoder",)


def _absent(what: str, path: str | None, field: str) -> list[str]:
    if path is None:
        return [f"{what} is not named; name its directory: {field}=DIR"]
    if Path(path).expanduser().is_dir():
        return []
    return [f"{what} is not at {path}; name its directory: {field}=DIR"]


def sizes(*, init: str | None, model: ModelConfig) -> Sizes:
    """Return the sizes of all parts: of those that are there their own, else the release's.

    Raises:
        CheckpointError: If a configuration that is there is damaged.
    """
    frozen = {name: _config(name, init, model) for name in ("unet", "vae", "text_encoder")}
    return Sizes(
        mllm={**_config("mllm", init, model), **model.mllm},
        aligner={**_config("aligner", init, model), **model.aligner},
        **{name: value for name, value in frozen.items() if value},
    )


def _config(part: str, init: str | None, model: ModelConfig) -> dict[str, Any]:
    """Return the first configuration of a part that is there, or nothing."""
    for folder in [] if part in model.new else _folders(init, model):
        if _has(folder, part):
            found = release.read_part_config(folder, part)
            return {name: value for name, value in found.items() if not name.startswith("_")}
    return {}


def _folders(init: str | None, model: ModelConfig) -> list[Path]:
    return [_folder(name) for name in (init, model.base) if name is not None]


def _folder(name: str) -> Path:
    return release.find(name) if name in release.SHIPPED else Path(name).expanduser()


def _has(folder: Path, part: str) -> bool:
    return (folder / part / "config.json").is_file()
