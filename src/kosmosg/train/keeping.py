"""Checkpoints while training goes on: copied at once, written in a thread, one at a time."""

import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from kosmosg import checkpoint
from kosmosg.errors import CheckpointError
from kosmosg.train.distributed import Ranks


@dataclass
class Keeper:
    """Writes a run's checkpoints; each rank has one and asks for the same.

    What could not be written is raised by `wait`, and by `save`, which waits first.
    """

    run_dir: Path
    ranks: Ranks
    config: Mapping[str, Any]
    keep: int
    keep_every: int | None
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    )
    _writing: Future[Path] | None = None
    _cpu_mesh: DeviceMesh | None = None

    def save(self, state: checkpoint.TrainingState) -> None:
        """Copy the state and begin to write it.

        Raises:
            CheckpointError: If the one before could not be written.
        """
        self.wait()
        kinds = {
            kind: {name: self._copied(value) for name, value in getattr(state, kind).items()}
            for kind in ("weights", "average", "optimizer")
        }
        self._writing = self._thread.submit(
            checkpoint.save_training_state,
            self.run_dir,
            replace(state, **kinds),
            config=self.config,
            keep=self.keep,
            keep_every=self.keep_every,
            group=self.ranks.writers,
        )

    @property
    def failed(self) -> bool:
        """Return whether something could not be written, as `wait` will say."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def wait(self) -> None:
        """Wait until what was begun is written.

        Raises:
            CheckpointError: If it could not be.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Finish what was begun, whatever ended the run; a failure of that is told, not raised."""
        try:
            self.wait()
        except (CheckpointError, RuntimeError) as error:  # the latter where another rank is gone
            sys.stderr.write(f"{error}\n")
        finally:
            self._thread.shutdown()

    def _copied(self, value: Tensor) -> Tensor:
        """Return a copy in main memory, which training does not change."""
        if not isinstance(value, DTensor):
            return value.detach().to("cpu", copy=True)
        mesh = value.device_mesh
        if mesh.device_type != "cpu":
            if self._cpu_mesh is None:
                names = mesh.mesh_dim_names
                self._cpu_mesh = init_device_mesh("cpu", tuple(mesh.shape), mesh_dim_names=names)
            mesh = self._cpu_mesh
        part = value.to_local().detach().to("cpu", copy=True)
        return DTensor.from_local(
            part, mesh, value.placements, shape=value.shape, stride=value.stride()
        )


def restore(
    run_dir: Path,
    ranks: Ranks,
    room: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
) -> tuple[int, Mapping[str, Any]] | None:
    """Fill a run's tensors from its newest whole checkpoint; return its step and numbers.

    Args:
        room: From the names and shapes in the checkpoint to the tensors to fill.

    Raises:
        CheckpointError: If there are checkpoints and none can be used.
    """
    path, refused = checkpoint.newest(run_dir, group=ranks.writers)
    if ranks.is_first:
        for reason in refused:
            sys.stderr.write(f"passed over: {reason}\n")
    if path is None and refused:
        raise CheckpointError(
            f"no checkpoint in {run_dir} can be used; the newest: {refused[0]}; put a"
            " whole one back, or start a new run in another directory"
        )
    if path is None:
        return None
    found = checkpoint.read_numbers(path)
    checkpoint.read_into(path, room(checkpoint.read_layout(path)), group=ranks.writers)
    return found
