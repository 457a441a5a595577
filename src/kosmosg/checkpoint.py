"""The only reader and writer of weights: safetensors and JSON, atomic, checked, versioned."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from kosmosg.errors import CheckpointError

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
_STATE = "state.json"
_PREFIX = "step-"


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """All that a resumed run needs besides its configuration, its data and its frozen weights.

    `weights` are the trained parameters and the buffers, `average` their moving average (empty
    without one), `optimizer` its tensors by name, `numbers` plain JSON values.
    """

    step: int
    weights: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    numbers: Mapping[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------- directories, written all or not


def write_directory(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a directory that appears complete or not at all, with a manifest of sha256 sums.

    Raises:
        CheckpointError: If it cannot be written, for one a full disk; what stood before stays.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        sums = {}
        for name, data in files.items():
            sums[name] = hashlib.sha256(data).hexdigest()
            _write_synced(temporary / name, data)
        manifest = {"format_version": FORMAT_VERSION, "sha256": sums}
        _write_synced(temporary / _MANIFEST, _json(manifest))
        _sync_directory(temporary)
        _replace(temporary, target)
        _sync_directory(target.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"cannot write {target}: {error.strerror or error}; make room or choose another"
            " directory, then continue (what was saved before is intact)"
        ) from error


def read_directory(path: Path) -> dict[str, bytes]:
    """Return the files of a directory that `write_directory` wrote, after checking their sums.

    Raises:
        CheckpointError: If a file is missing or damaged, or the format is another version's.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        version, sums = manifest["format_version"], dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} has no readable {_MANIFEST}: it is not a complete checkpoint; use another one"
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this program reads version {FORMAT_VERSION};"
            " use the release of kosmosg that wrote it"
        )
    files = {}
    for name, expected in sums.items():
        try:
            files[name] = (path / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path / name} cannot be read: {error.strerror}") from error
        if hashlib.sha256(files[name]).hexdigest() != expected:
            raise CheckpointError(f"{path / name} is damaged: its sha256 is not the manifest's")
    return files


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(temporary: Path, target: Path) -> None:
    # A directory cannot be renamed over a full one: the old one steps aside, then goes.
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.rename(aside)
    temporary.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


# ---------------------------------------------------------------------------------- training state


def save_training_state(run_dir: Path, state: TrainingState, *, config: object, keep: int) -> Path:
    """Write the state under `run_dir/checkpoints`, keep the last `keep`; return its directory.

    Raises:
        CheckpointError: If it cannot be written; earlier checkpoints stay as they were.
    """
    numbers = {
        "step": state.step,
        "numbers": dict(state.numbers),
        "torch": torch.__version__,
    }
    target = step_directory(run_dir, state.step)
    for left in target.parent.glob(f".{_PREFIX}*"):  # by a process that was killed while writing
        shutil.rmtree(left, ignore_errors=True)
    write_directory(
        target,
        {
            "weights.safetensors": _pack(state.weights),
            "average.safetensors": _pack(state.average),
            "optimizer.safetensors": _pack(state.optimizer),
            "config.json": _json(config),
            _STATE: _json(numbers),
        },
    )
    steps = _steps(run_dir)
    newest = steps.index(target) + 1
    # Beyond this step lie only damaged ones, which resuming passed over.
    for stale in [*steps[: max(0, newest - keep)], *steps[newest:]]:
        shutil.rmtree(stale, ignore_errors=True)
    return target


def load_training_state(path: Path) -> TrainingState:
    """Return the training state in one checkpoint directory.

    Raises:
        CheckpointError: If it is incomplete, damaged or another version's.
    """
    files = read_directory(path)
    try:
        numbers = json.loads(files[_STATE])
        return TrainingState(
            step=numbers["step"],
            weights=_unpack(files["weights.safetensors"], path),
            average=_unpack(files["average.safetensors"], path),
            optimizer=_unpack(files["optimizer.safetensors"], path),
            numbers=numbers["numbers"],
        )
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error}: it is not a training checkpoint") from error


def latest(run_dir: Path) -> tuple[TrainingState | None, list[str]]:
    """Return the newest training state that is whole, and why each newer one was passed over."""
    refused = []
    for path in reversed(_steps(run_dir)):
        try:
            return load_training_state(path), refused
        except CheckpointError as error:
            refused.append(str(error))
    return None, refused


def step_directory(run_dir: Path, step: int) -> Path:
    """Return where a run keeps its state after so many steps."""
    return run_dir / "checkpoints" / f"{_PREFIX}{step:08d}"


def _steps(run_dir: Path) -> list[Path]:
    return sorted(step_directory(run_dir, 0).parent.glob(f"{_PREFIX}*"))


# ----------------------------------------------------------------------------------------- weights


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Put tensors into a model, strictly: the same names, the same shapes.

    Args:
        model: What receives them; tied tensors need only one of their names.
        tensors: Every parameter and buffer, by its name in the model.
        source: What the error calls them, such as the file they were read from.

    Raises:
        CheckpointError: If names are missing or unexpected, or a shape differs.
    """
    own = model.state_dict()
    given = {own[name].data_ptr() for name in tensors if name in own}
    missing = [n for n, value in own.items() if n not in tensors and value.data_ptr() not in given]
    unexpected = [name for name in tensors if name not in own]
    if missing or unexpected:
        raise CheckpointError(
            f"{source} does not fit {type(model).__name__}: missing {_some(missing)};"
            f" unexpected {_some(unexpected)}"
        )
    for name, value in tensors.items():
        if own[name].shape != value.shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(value.shape)},"
                f" {type(model).__name__} expects {tuple(own[name].shape)}"
            )
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) + more) or "nothing"


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    # Cloned, because safetensors refuses tensors that share memory.
    return safetensors.torch.save(
        {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    )


def _unpack(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
