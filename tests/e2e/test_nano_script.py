"""`scripts/nano` stopped, as a scheduler stops it, and typed again."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """The script in a checkout of its own, already set up with the Python that runs this."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    shutil.copy(repository / "scripts/nano", tmp_path / "scripts/nano")
    for name, body in {
        "scripts/setup": "true",
        ".venv/bin/python": f'exec {sys.executable} "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def start(checkout: Path) -> subprocess.Popen[str]:
    words = ["judge", "clip", "--workspace", "W", "steps=300", "optim.warmup_steps=1"]
    return subprocess.Popen(
        [checkout / "scripts/nano", *words, "global_batch_size=4", "micro_batch=4", "log_every=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def steps(run_dir: Path) -> int:
    """Return how many lines the run has logged."""
    log = run_dir / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def terminate_training(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Send SIGTERM to the Python of the script's session, not to the script."""
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"train" in words and os.getsid(int(entry.name)) == process.pid:
                os.kill(int(entry.name), signal.SIGTERM)
        except (OSError, ValueError):  # not a process, or no more
            continue
    return process.communicate(timeout=120)


def test_a_stopped_part_is_not_taken_for_a_finished_one(checkout: Path) -> None:
    runs, model = checkout / "W/runs", checkout / "W/model"
    process = start(checkout)
    wait_for(process, lambda: steps(runs / "judge") > 3)
    made, told = terminate_training(process)
    assert process.returncode == 0, told
    assert made == ""
    assert not (model / "judge").exists()
    assert not (runs / "clip").exists(), "the next part began without this one"
    saved = max(int(path.name[5:]) for path in runs.glob("judge/checkpoints/step-*"))
    assert 0 < saved < 300

    process = start(checkout)
    wait_for(process, lambda: steps(runs / "clip") > 0)
    made, told = terminate_training(process)
    assert process.returncode == 0, told
    assert made.split() == ["W/model"]
    assert (model / "judge").exists()
    assert f"{saved}/300" in told, told[-2000:]
