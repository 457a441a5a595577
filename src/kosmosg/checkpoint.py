"""The only reader and writer of training state: safetensors and JSON, whole or not there, checked.

A checkpoint is a directory: safetensors files, one for each process that wrote (docs/adr/0016), the
configuration, the step, and a manifest of sha256 sums that is written last. With a process group
every rank calls the same function; without one, the only process.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from kosmosg.errors import CheckpointError

FORMAT_VERSION = 2
_MANIFEST = "manifest.json"
_STATE = "state.json"
_PREFIX = "step-"
_TENSORS = "*.safetensors"

Group = dist.ProcessGroup | None
Result = TypeVar("Result")


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

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors as a checkpoint names them, `<kind>/<name>`."""
        return {
            f"{kind}/{name}": value
            for kind in _KINDS
            for name, value in getattr(self, kind).items()
        }


_KINDS = ("weights", "average", "optimizer")


# ----------------------------------------------------------------------------------------- writing


def save_training_state(
    run_dir: Path,
    state: TrainingState,
    *,
    config: object,
    keep: int,
    keep_every: int | None = None,
    group: Group = None,
) -> Path:
    """Write the state under `run_dir/checkpoints`; return its directory.

    It appears complete or not at all. The last `keep` stay, and those of each `keep_every` steps.

    Raises:
        CheckpointError: If it cannot be written, for one a full disk; what stood before stays.
    """
    target = step_directory(run_dir, state.step)
    temporary = target.with_name(f".{target.name}.tmp")
    rank = 0 if group is None else dist.get_rank(group)

    def begin() -> None:
        for left in target.parent.glob(f".{_PREFIX}*"):  # by processes killed while writing
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)

    def finish(sums: Mapping[str, str]) -> None:
        numbers = {"step": state.step, "numbers": dict(state.numbers), "torch": torch.__version__}
        small = {"config.json": _json(config), _STATE: _json(numbers)}
        for name, data in small.items():
            _write_synced(temporary / name, data)
        own = {name: hashlib.sha256(data).hexdigest() for name, data in small.items()}
        manifest = {"format_version": FORMAT_VERSION, "sha256": {**sums, **own}}
        _write_synced(temporary / _MANIFEST, _json(manifest))
        _sync_directory(temporary)
        _replace(temporary, target)
        _sync_directory(target.parent)

    try:
        _together(group, begin if rank == 0 else _nothing)
        everybody = _together(group, lambda: _write_tensors(state, temporary, rank, group))
        sums = {name: one for part in everybody for name, one in part.items()}
        _together(group, lambda: finish(sums) if rank == 0 else None)
    except OSError as error:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"cannot write {target}: {error.strerror or error}; make room or choose another"
            " directory, then continue (what was saved before is intact)"
        ) from error
    if rank == 0:
        _remove_stale(run_dir, target, keep=keep, keep_every=keep_every)
    return target


def _nothing() -> None:
    pass


def _together(group: Group, act: Callable[[], Result]) -> list[Result]:
    """Return what each rank's `act` returned; an OSError of one is raised by all."""
    result: Result | OSError
    try:
        result = act()
    except OSError as error:
        result = error
    everybody = [result]
    if group is not None:
        everybody = [result] * dist.get_world_size(group)
        dist.all_gather_object(everybody, result, group=group)
    for one in everybody:
        if isinstance(one, OSError):
            raise one
    return [one for one in everybody if not isinstance(one, OSError)]


def _write_tensors(
    state: TrainingState, directory: Path, rank: int, group: Group
) -> dict[str, str]:
    """Write this process's part; return its files' sums."""
    if group is None:
        _write_synced(directory / "shard-00001.safetensors", _pack(state.tensors()))
    else:
        _write_shards(state.tensors(), directory, group)
    return {path.name: _sum(path) for path in directory.glob(f"shard-{rank + 1:05d}{_TENSORS}")}


def _write_shards(tensors: dict[str, Tensor], directory: Path, group: dist.ProcessGroup) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    # Safetensors, with where each piece belongs as JSON in the files' heads: no pickle.
    writer = dcp.HuggingFaceStorageWriter(str(directory), save_distributed=True)
    try:
        dcp.save(tensors, storage_writer=writer, process_group=group)
    except CheckpointException as failed:
        error = next(iter(failed.failures.values()))[0]
        raise error if isinstance(error, OSError) else OSError(str(error)) from failed


def _remove_stale(run_dir: Path, target: Path, *, keep: int, keep_every: int | None) -> None:
    steps = _steps(run_dir)
    newest = steps.index(target) + 1
    older = [
        path
        for path in steps[: max(0, newest - keep)]
        if keep_every is None or int(path.name.removeprefix(_PREFIX)) % keep_every
    ]
    # Beyond this step lie only damaged ones, which resuming passed over.
    for stale in [*older, *steps[newest:]]:
        shutil.rmtree(stale, ignore_errors=True)


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    aside = target.with_name(f".{target.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.rename(aside)
    temporary.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    # Cloned, because safetensors refuses tensors that share memory.
    return safetensors.torch.save(
        {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    )


# ----------------------------------------------------------------------------------------- reading


def newest(run_dir: Path, *, group: Group = None) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that is whole, and why each newer one was passed over.

    The ranks check a share of the files each.
    """
    refused = []
    rank, num_ranks = (
        (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    )
    for path in reversed(_together(group, lambda: _steps(run_dir))[0]):
        problems = _together(group, lambda path=path: _problem(path, rank, num_ranks))
        found = [problem for problem in problems if problem]
        if not found:
            return path, refused
        refused.append(found[0])
    return None, refused


def read_numbers(path: Path) -> tuple[int, dict[str, Any]]:
    """Return a checkpoint's step, and what else is no tensor.

    Raises:
        CheckpointError: If they are not there.
    """
    try:
        found = json.loads((path / _STATE).read_bytes())
        return found["step"], found["numbers"]
    except (OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} lacks {error}: it is not a training checkpoint") from error


def read_layout(path: Path) -> dict[str, Tensor]:
    """Return a checkpoint's tensors, without their contents, as it names them.

    Raises:
        CheckpointError: If a file is no safetensors file.
    """
    import torch.distributed.checkpoint as dcp

    try:
        found = dcp.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} holds what is not a safetensors file: {error}") from error
    layout = {}
    for name, one in found.items():
        assert isinstance(one, dcp.TensorStorageMetadata)  # the files hold nothing else
        layout[name] = torch.empty(one.size, dtype=one.properties.dtype, device="meta")
    return layout


def read_into(path: Path, tensors: Mapping[str, Tensor], *, group: Group = None) -> None:
    """Fill tensors, sharded or not, with a checkpoint's, strictly: the same names and shapes.

    Args:
        path: From `newest`, or checked otherwise.
        tensors: By the names of `TrainingState.tensors`.

    Raises:
        CheckpointError: If names are missing or unexpected, or a shape differs.
    """
    import torch.distributed.checkpoint as dcp

    theirs = read_layout(path)
    missing = [name for name in tensors if name not in theirs]
    unexpected = [name for name in theirs if name not in tensors]
    if missing or unexpected:
        raise CheckpointError(
            f"{path} does not fit the run: missing {_some(missing)}; unexpected {_some(unexpected)}"
        )
    for name, value in tensors.items():
        if theirs[name].shape != value.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(theirs[name].shape)}, the run expects"
                f" {tuple(value.shape)}"
            )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.load(
            dict(tensors),
            storage_reader=dcp.HuggingFaceStorageReader(str(path)),
            process_group=group,
            no_dist=group is None,
        )


def load_training_state(path: Path) -> TrainingState:
    """Return the training state in one checkpoint directory, whoever wrote it, in whole tensors.

    Raises:
        CheckpointError: If it is incomplete, damaged or another version's.
    """
    problem = _problem(path, 0, 1)
    if problem:
        raise CheckpointError(problem)
    step, numbers = read_numbers(path)
    tensors = {name: torch.empty_like(one, device="cpu") for name, one in read_layout(path).items()}
    read_into(path, tensors)
    kinds: dict[str, dict[str, Tensor]] = {kind: {} for kind in _KINDS}
    for name, value in tensors.items():
        kind, _, inner = name.partition("/")
        kinds[kind][inner] = value
    return TrainingState(step=step, numbers=numbers, **kinds)


def latest(run_dir: Path) -> tuple[TrainingState | None, list[str]]:
    """Return the newest training state that is whole, and why each newer one was passed over."""
    path, refused = newest(run_dir)
    return None if path is None else load_training_state(path), refused


def step_directory(run_dir: Path, step: int) -> Path:
    """Return where a run keeps its state after so many steps."""
    return run_dir / "checkpoints" / f"{_PREFIX}{step:08d}"


def _steps(run_dir: Path) -> list[Path]:
    return sorted(step_directory(run_dir, 0).parent.glob(f"{_PREFIX}*"))


def _problem(path: Path, rank: int, num_ranks: int) -> str | None:
    """Return what is wrong with this rank's share of a checkpoint's files."""
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        version, sums = manifest["format_version"], dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path} has no readable {_MANIFEST}: it is not a complete checkpoint; use another"
    if version != FORMAT_VERSION:
        return (
            f"{path} has format version {version}, this program reads version {FORMAT_VERSION};"
            " continue with the release of kosmosg that wrote it, or start a new run"
        )
    for name in sorted(sums)[rank::num_ranks]:
        try:
            found = _sum(path / name)
        except OSError as error:
            return f"{path / name} cannot be read: {error.strerror}"
        if found != sums[name]:
            return f"{path / name} is damaged: its sha256 is not the manifest's"
    return None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) + more) or "nothing"
