"""`kosmosg evaluate dreambench` and `coco`, killed, stopped and shared, end as if undisturbed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kosmosg import cli
from kosmosg.evaluate.dreambench import facts
from toys.benchmarks import save_coco, save_dreambench
from toys.encoders import save_all
from toys.model import WORDS, toy_pipeline
from toys.terminal import interrupted

PATIENCE_S = 300  # on a machine whose cores are all taken
# Eight batches each, of a good part of a second.
SETTINGS = {
    "dreambench": ["--limit", "16", "--batch", "2", "--steps", "10"],
    "coco": ["--limit", "8", "--batch", "1", "--steps", "15"],
}
PICTURES = {"dreambench": 64, "coco": 8}
GOES_ON = "kosmosg: stopped by {}; the same command goes on"


@dataclass(frozen=True)
class Here:
    """A folder with a model, the evaluators' weights and both benchmarks; and whole runs."""

    folder: Path

    def words(self, benchmark: str, output: Path) -> list[str]:
        given = ["evaluate", benchmark, self.folder / benchmark, "-o", output]
        given += ["--model", self.folder / "model", "--weights", self.folder / "weights"]
        return [*map(str, given), "--device", "cpu", *SETTINGS[benchmark]]

    def whole(self, benchmark: str) -> Path:
        """Return the run that nothing befell, made when it is first asked for."""
        output = self.folder / f"whole-{benchmark}"
        if not output.exists():
            assert cli.main(self.words(benchmark, output)) == 0
        return output


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    folder = tmp_path_factory.mktemp("here")
    known = facts()
    told = " ".join([*known.object_prompts, *known.live_prompts])
    toy_pipeline(words=f"{WORDS} {' '.join(re.findall('[a-z]+', told.lower()))}").save_pretrained(
        folder / "model"
    )
    save_all(folder / "weights")
    save_dreambench(folder / "dreambench")
    save_coco(folder / "coco", pictures=8)
    return Here(folder)


@contextmanager
def started(words: list[str], repository: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a module as a program; kill it at the end if it has not ended."""
    environment = os.environ | {"PYTHONPATH": f"{repository}/src"}
    command = [sys.executable, "-m", *words]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


def drawn(output: Path) -> dict[Path, tuple[int, int]]:
    """The pictures that are there, and which file each is, written when."""
    found = {path: path.stat() for path in output.glob("pictures/**/[!.]*.png")}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


def until_some(output: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not drawn(output):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "no picture ever came"
        time.sleep(0.01)


def contents(output: Path) -> dict[str, bytes]:
    """All files of a run: pictures, settings, numbers, page, and whatever was left there."""
    files = (path for path in output.rglob("*") if path.is_file())
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in files}


def assert_same(output: Path, whole: Path, benchmark: str) -> None:
    assert len(drawn(whole)) == PICTURES[benchmark]
    ours, theirs = contents(output), contents(whole)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []


@pytest.mark.parametrize("benchmark", SETTINGS)
def test_a_killed_run_draws_what_is_missing_and_ends_as_if_undisturbed(
    benchmark: str, here: Here, repository: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    words = ["kosmosg", *here.words(benchmark, output)]
    with started(words, repository) as process:
        until_some(output, process)
        process.kill()
        process.wait()
    kept = drawn(output)
    assert 0 < len(kept) < PICTURES[benchmark]

    # As if it had died in the middle of a write, and the power had gone before the disk had all.
    torn = min(kept)
    torn.write_bytes(torn.read_bytes()[:-20])
    torn.with_name(f".{torn.name}.1.part").write_bytes(b"half")
    del kept[torn]
    with started(words, repository) as process:
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    after = drawn(output)
    assert {path: after[path] for path in kept} == kept  # none was made twice
    assert_same(output, here.whole(benchmark), benchmark)


def torchrun(words: list[str], logs: Path) -> list[str]:
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["--monitor-interval=0.1", "--log-dir", str(logs), "--redirects=3"]
    return [*command, "-m", "kosmosg", *words]


def said_by_ranks(logs: Path) -> list[str]:
    return [next(logs.glob(f"*/attempt_0/{rank}/stderr.log")).read_text() for rank in (0, 1)]


def test_two_processes_draw_a_share_each_and_end_as_one_does(
    here: Here, repository: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    words = torchrun(here.words("coco", output), tmp_path / "logs")
    with started(words, repository) as process:
        _, said = process.communicate(timeout=PATIENCE_S)
    first, second = said_by_ranks(tmp_path / "logs")
    assert process.returncode == 0, said + first + second
    assert_same(output, here.whole("coco"), "coco")
    # Each drew four of the eight pictures, and the first alone scored.
    assert [bool(re.search(r"\b4/4 \[", said)) for said in (first, second)] == [True, True]
    assert ["features" in said for said in (first, second)] == [True, False]


def test_two_processes_that_are_told_to_end_say_so_and_one_goes_on(
    here: Here, repository: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    words = here.words("dreambench", output)
    with started(torchrun(words, tmp_path / "logs"), repository) as process:
        until_some(output, process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    for said in said_by_ranks(tmp_path / "logs"):
        assert said.rstrip().endswith(GOES_ON.format("SIGTERM")), said
    kept = drawn(output)
    assert 0 < len(kept) < PICTURES["dreambench"]
    assert not list(output.rglob("*.part"))
    assert cli.main(words) == 0
    after = drawn(output)
    assert {path: after[path] for path in kept} == kept
    assert_same(output, here.whole("dreambench"), "dreambench")


@pytest.mark.parametrize(
    ("num_ranks", "seen", "least"),
    [("1", rb"\b[1-9]/8", 1), ("2", rb"other ranks", 4)],
    ids=["drawing", "waiting for another rank"],
)
def test_ctrl_c_ends_with_one_line_and_nothing_half_written(
    num_ranks: str,
    seen: bytes,
    least: int,
    here: Here,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{repository}/src")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", num_ranks)
    output = tmp_path / "run"
    stopped = interrupted(*here.words("coco", output), directory=tmp_path, seen=seen)
    assert stopped.code == 130
    # On a line of its own, unless the bar before it was just begun.
    before, said, after = stopped.shown.decode().partition(GOES_ON.format("Ctrl-C"))
    assert said
    assert not after.strip()
    lines = before.replace("\r", "\n").split("\n")
    assert not [line for line in lines if line and "picture" not in line]  # as the bars have it
    assert least <= len(drawn(output)) < 8
    assert {path.name for path in output.iterdir()} == {"run.json", "pictures"}
    assert not list(output.rglob("*.part"))
