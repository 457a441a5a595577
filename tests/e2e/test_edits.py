"""`kosmosg construct instructpix2pix` and `pairs`, of which workers and the driver are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from kosmosg import cli
from kosmosg.data.tars import read_index
from toys.photos import photo

SIDE = 512  # a unit takes most of a second, so that a kill comes in its middle
PATIENCE_S = 300  # on a machine whose cores are all taken
PER_UNIT, NUM_UNITS = 4, 4


def write_prompts(root: Path) -> list[str]:
    """Folders of two pairs each, so that a folder is not a record."""
    keys = []
    for number, (before, after) in enumerate(pictures(PER_UNIT * NUM_UNITS // 2)):
        folder = root / f"{number:03d}"
        folder.mkdir(parents=True)
        (folder / "prompt.json").write_text(json.dumps({"input": "a dog", "edit": "make it red"}))
        for seed in (1, 2):
            before.save(folder / f"{seed}_0.jpg")
            after.save(folder / f"{seed}_1.jpg")
            keys.append(f"{number:03d}/{seed}")
    return keys


def write_pairs(root: Path) -> list[str]:
    keys = [f"{number:03d}" for number in range(PER_UNIT * NUM_UNITS)]
    for name in ("target", "control"):
        (root / name).mkdir(parents=True)
    for key, (before, after) in zip(keys, pictures(len(keys)), strict=True):
        before.save(root / "control" / f"{key}.jpg")
        after.save(root / "target" / f"{key}.jpg")
        (root / "target" / f"{key}.txt").write_text(f"make it {key}")
    return keys


def pictures(count: int) -> list[tuple[Image.Image, Image.Image]]:
    whole = photo(1, (SIDE + 16, SIDE))
    boxes = [(shift % 16, 0, shift % 16 + SIDE, SIDE) for shift in range(count + 1)]
    shown = [whole.crop(box) for box in boxes]
    return list(pairwise(shown))


@contextmanager
def started(words: list[str], repository: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a command; kill it at the end, and wait for its workers, who hold its pipe."""
    environment = os.environ | {"PYTHONPATH": f"{repository}/src"}
    command = [sys.executable, "-m", "kosmosg", *words]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


def until(what: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def at_work(output: Path) -> dict[int, str]:
    """The processes that write a shard, and the journal's last line of each one's unit."""
    found = {}
    for part in output.glob(".*.tar.*.part"):
        _, unit, _, pid, _ = part.name.split(".")
        try:
            lines = (output / f".{unit}.journal").read_text().splitlines()
        except FileNotFoundError:
            continue
        if lines and '"at": []' not in lines[-1] and alive(int(pid)):
            found[int(pid)] = lines[-1]
    return found


def done(output: Path) -> list[Path]:
    return sorted(output.glob("[0-9]*.json"))


@pytest.mark.parametrize(
    ("command", "write", "unit_size"),
    [
        ("instructpix2pix", write_prompts, PER_UNIT // 2),  # of folders
        ("pairs", write_pairs, PER_UNIT),
    ],
)
def test_after_kills_of_a_worker_and_of_the_driver_every_edit_is_there_once(
    command: str,
    write: Callable[[Path], list[str]],
    unit_size: int,
    tmp_path: Path,
    repository: Path,
) -> None:
    keys, output = write(tmp_path / "in"), tmp_path / "out"
    words = ["construct", command, str(tmp_path / "in"), f"unit_size={unit_size}", "pictures=png"]
    run = [*words, "-o", str(output), "--workers", "2"]

    with started(run, repository) as process:
        until(lambda: at_work(output), process)
        killed = next(iter(at_work(output)))
        os.kill(killed, signal.SIGKILL)
        until(lambda: done(output) and at_work(output), process)
        workers = list(at_work(output))
        process.kill()
    kept = {path: path.stat().st_mtime_ns for path in done(output)}
    assert killed not in workers
    assert 1 <= len(kept) < NUM_UNITS

    with started(run, repository) as process:
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    assert f"{len(keys)} examples in {NUM_UNITS} shards" in said
    assert "left out" not in said
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # none was made twice
    shards = sorted(output.glob("*.tar"))
    assert [one.key for shard in shards for one in read_index(shard)] == keys
    assert [path.name for path in output.iterdir() if path.suffix in (".part", ".journal")] == []
    assert not any(map(alive, workers))

    # What never was interrupted, in one process, is the same to the byte.
    whole = tmp_path / "whole"
    assert cli.main([*words, "-o", str(whole), "--workers", "0", "--limit", "2"]) == 0
    assert [path.name for path in sorted(whole.glob("*.tar"))] == ["000000.tar", "000001.tar"]
    for path in sorted(whole.glob("*.tar")):
        assert path.read_bytes() == (output / path.name).read_bytes()
