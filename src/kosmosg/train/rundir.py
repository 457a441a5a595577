"""A run's place in the world: its directory, and the signals that ask it to stop."""

import fcntl
import json
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from kosmosg.errors import ConfigError

CONFIG_NAME = "config.json"
SHARDS_NAME = "shards"  # of a user's folder, made before the run begins

# What there is of a run before its first checkpoint.
TRACES = frozenset(
    {CONFIG_NAME, "log.jsonl", "skips.json", "tensorboard", "samples", "checkpoints"}
)
# What a resumed run may change: but for rounding, none of these changes the weights that come out.
# `on_bad_loss` does, from where the run goes on: changing it is what the error advises.
FREE_FIELDS = frozenset(
    {
        *("device", "checkpoint_s", "keep_checkpoints", "log_every", "samples_every"),
        *("validate_every", "workers", "max_skipped", "keep_every", "data_timeout_s"),
        *("on_bad_loss", "recompute", "compiled", "shard_ranks", "frozen_parts", "gathered"),
    }
)


@contextmanager
def open_run_dir(run_dir: Path, config: Mapping[str, Any], *, resume: bool) -> Iterator[None]:
    """Hold the run directory for one run with this configuration.

    What a run left behind that ended before it saved anything is removed.

    Raises:
        ConfigError: If another process trains there, if it holds something to go on from and
            `resume` is False, or if it was begun with another configuration.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process is training in {run_dir}; wait for it or use another run_dir"
            ) from error
        path = run_dir / CONFIG_NAME
        if resume and path.exists():
            require_same(run_dir, config)
        elif resume:
            sys.stderr.write(f"nothing to continue in {run_dir}: a new run begins there\n")
        else:
            _make_empty(run_dir)
        path.write_text(json.dumps(config, indent=1) + "\n")
        yield


def is_held(run_dir: Path) -> bool:
    """Return whether a process is training there."""
    try:
        with (run_dir / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back as the file is closed
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _make_empty(run_dir: Path) -> None:
    found = {path.name for path in run_dir.iterdir()} - {".lock", SHARDS_NAME}
    saved = [path for path in run_dir.glob("checkpoints/*") if not path.name.startswith(".")]
    ours = {name for name in found if name in TRACES or name.startswith("bad-step-")}
    if CONFIG_NAME in found and found == ours and not saved:
        for name in found:
            path = run_dir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif found:
        raise ConfigError(
            f"run_dir {run_dir} already holds {min(found)!r}; add --resume to continue that"
            " run, remove it, or choose an empty directory"
        )


def require_same(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Pass a configuration with which the run there may go on.

    Raises:
        ConfigError: If it was begun with another.
    """
    old, new = leaves(json.loads((run_dir / CONFIG_NAME).read_text())), leaves(config)
    for path in sorted(old.keys() | new.keys(), key=_importance):
        if path.rpartition(".")[2] in FREE_FIELDS or old.get(path) == new.get(path):
            continue
        raise ConfigError(
            f"{run_dir} was begun with {path} = {old.get(path, 'nothing')!r}, now it is"
            f" {new.get(path, 'nothing')!r}; resume with the same configuration or start a new run"
        )


def _importance(path: str) -> tuple[bool, str]:
    """Put what a run is before what is in it: another recipe differs in much, and in this first."""
    return path.rpartition(".")[2] not in ("part", "kind"), path


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested configuration by their paths."""
    found = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


@contextmanager
def signals_received() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of acting on them; a second one acts."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, action in before.items():
            signal.signal(number, action)

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        restore()
