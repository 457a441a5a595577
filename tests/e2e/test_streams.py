"""A run that reads shards in processes: killed, interrupted, continued; no process is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kosmosg import checkpoint
from toys.tars import write_tars

TESTS = Path(__file__).parents[1]

# Runs as a program of its own, because only a process can be killed.
PROGRAM = """
import sys
from pathlib import Path
import torch
from kosmosg.data.mixture import Mixture
from kosmosg.data.shards import Shards
from kosmosg.data.skips import Skips
from kosmosg.train.loop import fit
from toys.tars import Names, names_of
from toys.training import net, train_config

folder, run_dir, told, workers, steps = sys.argv[1:6]

class Tells(Names):
    def loss(self, model, batch, generator):
        with open(told, "a") as file:
            file.write(" ".join(names_of(batch)) + "\\n")
        return {"squares": model(batch[:, :6].float() / 100).square().mean(1).sum()}

def word(key, files):
    return files["txt"].decode()

sources = {
    name: Shards(sorted(Path(folder, name).glob("*.tar")), decode=word, seed=seed, skips=Skips())
    for seed, name in enumerate("abc")
}
stream = Mixture(sources, {"a": 2, "b": 2, "c": 1}, seed=0)
config = train_config(
    steps=int(steps), global_batch_size=8, micro_batch=8, checkpoint_s=0.2, keep_checkpoints=3
)
resume = "--resume" in sys.argv
fit(net(), Tells(), stream, config, Path(run_dir), resume=resume, workers=int(workers))
"""


def start(folder: Path, name: str, *, workers: int, steps: int, resume: bool) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent / 'src'}"}
    words = [folder, folder / name, folder / f"{name}.txt", workers, steps]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, words), *(["--resume"] if resume else [])],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_checkpoint(folder: Path, process: subprocess.Popen) -> list[int]:
    """Wait for a checkpoint; return the processes that read ahead."""
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/step-*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return children(process.pid)


def children(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = status.read_text().rpartition(")")
        except OSError:  # it ended meanwhile
            continue
        if int(rest.split()[1]) == parent:
            found.append(int(status.parent.name))
    return found


def wait_until_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline, "a process was left"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    for name in "abc":
        write_tars(folder / name, [30, 20, 40], prefix=name)
    return folder


def test_a_killed_run_goes_on_with_the_very_records(folder: Path) -> None:
    process = start(folder, "killed", workers=2, steps=100_000, resume=False)
    readers = wait_for_checkpoint(folder / "killed", process)
    assert len(readers) == 2
    process.kill()
    process.communicate(timeout=120)
    wait_until_gone(readers)
    state, _ = checkpoint.latest(folder / "killed")
    told = (folder / "killed.txt").read_text().splitlines()
    assert 0 < state.step <= len(told)

    # The same configuration but for the workers; the program is stopped once it has gone on.
    process = start(folder, "killed", workers=1, steps=100_000, resume=True)
    while len((folder / "killed.txt").read_text().splitlines()) < len(told) + 40:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=120)
    lines = (folder / "killed.txt").read_text().splitlines()

    whole = start(folder, "whole", workers=0, steps=state.step + 40, resume=False)
    _, words = whole.communicate(timeout=120)
    assert whole.returncode == 0, words
    expected = (folder / "whole.txt").read_text().splitlines()
    assert len(set(expected)) == len(expected) == state.step + 40
    assert lines[: state.step] == expected[: state.step]
    assert lines[len(told) :][:40] == expected[state.step :]


def test_ctrl_c_lets_the_step_finish_and_leaves_no_process(folder: Path) -> None:
    process = start(folder, "stopped", workers=2, steps=100_000, resume=False)
    readers = wait_for_checkpoint(folder / "stopped", process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all of them get it
    _, words = process.communicate(timeout=120)
    assert process.returncode == 130, words
    assert "continue with the same command and --resume" in words
    assert "Traceback" not in words
    wait_until_gone(readers)
