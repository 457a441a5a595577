"""A model's directory, as `save_pretrained` writes it and `from_pretrained` expects it."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from kosmosg import config
from kosmosg.errors import CheckpointError, ConfigError

FORMAT_VERSION = 1
GENERATION_FILE = "generation_config.json"
INDEX_FILE = "model_index.json"
SHIPPED = ("nano",)
_WEIGHTS = "diffusion_pytorch_model"
_WEIGHT_NAME = re.compile(
    rf"{_WEIGHTS}(\.(?P<variant>[^.-]+))?(-\d+-of-\d+)?\.safetensors"
    r"(\.index(\.(?P<indexed>[^.]+))?\.json)?"
)
_PACKAGE = Path(str(files("kosmosg")))
PARTS = ("mllm", "aligner", "unet", "vae")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """What a model generates with where the caller says nothing.

    Args:
        format_version: The layout of the model's directory.
        scheduler: The sampler; a name that `scheduler` knows, or the class kept in scheduler/.
        num_inference_steps: Steps of the sampler.
        guidance_scale: Strength of guidance; 1 and below means none.
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
        max_pictures: The most pictures a prompt may have.
        trained_pictures: The most pictures that a prompt had in stage 3; None where nobody knows,
            as for the released model.

    Source:
        The defaults are those of the released demo (NUMERICS section 10).
    """

    format_version: int = FORMAT_VERSION
    scheduler: str = "dpms"
    num_inference_steps: int = 50
    guidance_scale: float = 6.0
    height: int = 512
    width: int = 512
    max_pictures: int = 8
    trained_pictures: int | None = None


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What decides how long a prompt becomes, and how long it may be."""

    num_latents: int
    image_size: int
    max_length: int


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the directory of a shipped model (`nano`; write `./nano` for one of yours) or a path.

    Raises:
        CheckpointError: If there is no such directory.
    """
    if name_or_path in SHIPPED:
        directory = _PACKAGE / str(name_or_path)
        if not directory.is_dir():
            raise CheckpointError(f"{directory} is missing; {remedy(directory)}")
        return directory
    directory = Path(name_or_path)
    if not directory.is_dir():
        raise CheckpointError(
            f"no model at {directory}: it is not a directory; "
            f"give one that save_pretrained wrote, or the name of the shipped model, {SHIPPED[0]}"
        )
    return directory


def read_generation_config(directory: Path) -> GenerationConfig:
    """Return the model's generation defaults, after checking the version of its directory.

    Raises:
        CheckpointError: If the directory is no model of ours, or one of another version.
    """
    path = directory / GENERATION_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{directory} is no Kosmos-G model: {GENERATION_FILE} is missing; {remedy(directory)}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; restore the file") from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{directory} has format version {version}; this kosmosg reads version "
            f"{FORMAT_VERSION}: install the kosmosg that wrote it, or save it again with this one"
        )
    try:
        return config.from_dict(GenerationConfig, data)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def check_files(directory: Path, parts: Sequence[str], *, variant: str | None = None) -> None:
    """Pass a directory that has every file it needs.

    Args:
        directory: The model's.
        parts: Those that will be loaded from it.
        variant: Of the weights, such as `fp16`; parts without it may have the plain weights.

    Raises:
        CheckpointError: Naming the first missing file and what to do.
    """
    for path in (directory / INDEX_FILE, directory / "scheduler" / "scheduler_config.json"):
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; {remedy(directory)}")
    for part in parts:
        check_part(directory, part, variant=variant)


def absent_parts(directory: Path) -> set[str]:
    """Return the parts that the model was saved without.

    Raises:
        CheckpointError: If the directory's index is there but cannot be read.
    """
    return {name for name in PARTS if _indexed(directory, name) is None}


def has_part(directory: Path, part: str) -> bool:
    """Return whether the model was saved with a part that most are without.

    Raises:
        CheckpointError: If the directory's index is there but cannot be read.
    """
    return bool(_indexed(directory, part))


def _indexed(directory: Path, name: str) -> str | None:
    """Return which library a part is of: None if it was saved without, "" if nothing is said."""
    path = directory / INDEX_FILE
    if not path.is_file():
        return ""  # check_files says so
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return index.get(name, [""])[0]
    except (
        *(OSError, ValueError, RecursionError),
        *(TypeError, AttributeError, LookupError),
    ) as error:
        raise CheckpointError(f"cannot read {path}: {error}; restore the file") from None


def check_part(directory: Path, part: str, *, variant: str | None = None) -> None:
    """Pass a part that has its configuration and weights.

    Raises:
        CheckpointError: Naming the missing file and what to do.
    """
    path = directory / part / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; {remedy(directory)}")
    if not weight_files(directory / part, variant=variant):
        path = directory / part / f"{_WEIGHTS}.safetensors"
        raise CheckpointError(f"the weights {path} are missing; {remedy(directory)}")


def weight_files(folder: Path, *, variant: str | None = None) -> list[Path]:
    """Return the files of one part's weights: of the variant if there are such, else the plain."""
    found = [path for path in sorted(folder.glob("*.safetensors")) if _variant(path) is not None]
    return [path for path in found if variant and _variant(path) == variant] or [
        path for path in found if not _variant(path)
    ]


def read_sizes(directory: Path) -> Sizes:
    """Return what a model's configuration says about the sequences it reads.

    Raises:
        CheckpointError: If a configuration is missing or damaged.
    """
    mllm, aligner = (read_part_config(directory, part) for part in ("mllm", "aligner"))
    try:
        return Sizes(
            num_latents=mllm["num_latents"],
            image_size=mllm["image_size"],
            max_length=aligner["max_positions"] - 2,  # AlignerNet's table starts two rows in
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"config.json of mllm or aligner in {directory} lacks {error}; {remedy(directory)}"
        ) from None


def read_part_config(directory: Path, part: str) -> dict[str, Any]:
    """Return the config.json of one part.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    path = directory / part / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; {remedy(directory)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; {remedy(directory)}") from None


def check_weights(
    directory: Path, keys: Mapping[str, Iterable[str]], *, variant: str | None = None
) -> None:
    """Pass parts whose files hold exactly the keys of their state.

    diffusers only logs a key that is missing or unexpected, and leaves the missing ones random.

    Args:
        directory: The model's.
        keys: Of the state of each part, by the part's name.
        variant: Of the weights that were loaded.

    Raises:
        CheckpointError: Naming the part and the keys.
    """
    for name, expected in keys.items():
        stored: set[str] = set()
        for path in weight_files(directory / name, variant=variant):
            try:
                with safe_open(path, framework="pt") as file:
                    stored |= set(file.keys())
            except SafetensorError as error:
                raise CheckpointError(f"{path} is damaged: {error}; {remedy(directory)}") from None
        own = set(expected)
        if stored != own:
            raise CheckpointError(
                f"the weights of {directory / name} do not fit its config.json: "
                f"missing {_some(own - stored)}, unexpected {_some(stored - own)}; "
                f"{remedy(directory)}"
            )


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give an empty directory to save a model into, whose files then move to `target`.

    Moving needs no room on the disk, so that a full one is noticed while `target` is untouched.
    Weights there under names that the new ones lack would be read instead of them: they go.

    Raises:
        OSError: If a file cannot be moved.
    """
    target = target.resolve()
    passing = target / f".{os.getpid()}.part"  # inside, so that it is the same disk
    made = passing / target.name  # diffusers names a repository after it
    try:
        made.mkdir(parents=True)
        yield made
        paths = [path.relative_to(made) for path in made.rglob("*") if path.is_file()]
        for path in sorted(paths, key=lambda path: path.name == INDEX_FILE):
            (target / path).parent.mkdir(exist_ok=True)
            (made / path).replace(target / path)
        for stale in _outdated(target, paths):
            stale.unlink()
    finally:
        shutil.rmtree(passing, ignore_errors=True)
        with suppress(OSError):  # not empty, then: as it should be
            target.rmdir()


def _outdated(target: Path, paths: Sequence[Path]) -> list[Path]:
    """Return the weights of the same part and variant as one of `paths`, but not among them."""
    fresh = {(path.parent, _variant(path)) for path in paths if _variant(path) is not None}
    there = [
        path.relative_to(target) for folder, _ in fresh for path in (target / folder).iterdir()
    ]
    return [
        target / path for path in set(there) - set(paths) if (path.parent, _variant(path)) in fresh
    ]


def _variant(path: Path) -> str | None:
    """Return the variant that a file of weights (or of their index) belongs to, "" for none."""
    match = _WEIGHT_NAME.fullmatch(path.name)
    return None if match is None else match["variant"] or match["indexed"] or ""


def remedy(directory: Path) -> str:
    """Return what to do about a model whose files are not as they should be."""
    if directory.parent == _PACKAGE:
        return "reinstall kosmosg (the model is part of the package)"
    return "copy the whole directory again, or save it again with save_pretrained"


def _some(names: set[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(sorted(names)[:3]) + more) or "none"
