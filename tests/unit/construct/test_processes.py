"""Runs in several processes, some of which are killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kosmosg.errors import ConfigError, DataError, KosmosGError
from toys.construction import MakeReader, construct, keys_in, leftovers, made, units_of


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def until(what, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


@contextmanager
def driver(output: Path, *job: object, repository: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a job in a process of its own, as toys.construction says; kill it at the end."""
    env = os.environ | {"PYTHONPATH": f"{repository}/src:{repository}/tests"}
    command = [sys.executable, "-m", "toys.construction", str(output), *map(str, job)]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_killed_workers_are_replaced_and_no_record_is_lost_or_doubled(
    output: Path, flags: Path
) -> None:
    """One dies between two records, once; another each time that it meets one record."""
    units = units_of(
        ["a"] * 5, ["a", "b", "c", "once:first", "d"], ["a"], ["b", "die"], ["a"] * 5, ["c"]
    )
    summary = construct(units, output, flags, workers=2)
    whole = [key for unit in units if unit.name != "003" for key in unit.keys]
    assert keys_in(output) == whole
    assert leftovers(output) == []
    assert summary.done == 5
    assert summary.failed.keys() == {"003"}
    assert "SIGKILL" in summary.failed["003"]
    assert "(3 attempts)" in summary.failed["003"]
    assert len(made(flags)) >= 4  # four have died
    assert not any(alive(pid) for pid in made(flags))


def test_workers_that_cannot_be_made_stop_the_job(output: Path, flags: Path) -> None:
    with pytest.raises(ConfigError, match=r"no model in models/blip2; put it there"):
        construct(units_of(["a"]), output, flags, workers=1, make=MakeReader(flags, "config"))
    with pytest.raises(KosmosGError, match=r"a worker cannot be made: ZeroDivisionError: x"):
        construct(units_of(["a"]), output, flags, workers=1, make=MakeReader(flags, "raise:x"))


def test_workers_that_die_while_they_are_made_stop_the_job(output: Path, flags: Path) -> None:
    with pytest.raises(KosmosGError, match=r"3 workers in a row died while they were made"):
        construct(units_of(["a"]), output, flags, workers=1, make=MakeReader(flags, "die"))


def test_the_limit_stops_units_in_their_middle(output: Path, flags: Path) -> None:
    units = units_of([*["bad"] * 120, *["sleep:0.5"] * 600])
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"120 of 12\d records are bad"):
        construct(units, output, flags, workers=1)
    assert time.monotonic() - begun < 100  # the unit would take 300 s
    assert leftovers(output) == []


def test_after_a_kill_of_the_driver_the_same_command_goes_on(
    output: Path, flags: Path, repository: Path
) -> None:
    job = (4, 6, 2, "sleep:0.2")
    with driver(output, *job, repository=repository) as process:
        until(lambda: len(list(output.glob("*.json"))) >= 1)
        until(lambda: len(leftovers(output)) >= 1)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {path: path.stat().st_mtime_ns for path in output.glob("0*.json")}
    assert 1 <= len(kept) < 4
    # The workers notice and end; the next run waits for them, if need be.
    with driver(output, *job, repository=repository) as process:
        assert process.wait(120) == 0
    assert not any(alive(pid) for pid in made(flags))
    units = units_of(*[["sleep:0.2"] * 6] * 4)
    assert keys_in(output) == [key for unit in units for key in unit.keys]
    assert leftovers(output) == []
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # none was done twice


def test_orphans_end_in_the_middle_of_a_record(output: Path, flags: Path, repository: Path) -> None:
    with driver(output, 1, 1, 1, "sleep:600", repository=repository) as process:
        until(lambda: leftovers(output))
        (worker,) = made(flags)
        process.send_signal(signal.SIGKILL)
    until(lambda: not alive(worker), 20)


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(
    output: Path, flags: Path, repository: Path
) -> None:
    with driver(output, 3, 4, 1, "sleep:0.3", repository=repository) as process:
        until(lambda: len(list(output.glob("*.json"))) >= 1)
        until(lambda: leftovers(output))
        for pid in [*made(flags), process.pid]:  # a terminal sends it to all
            os.kill(pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT or process.returncode == 130
    assert "1 of 3 units are done and kept in" in said
    assert "the same command goes on" in said
    assert said.count("Traceback") == 1  # the driver's own, of this script without a command line
    assert leftovers(output) == []
    assert keys_in(output) == ["000/0", "000/1", "000/2", "000/3"]
    assert not any(alive(pid) for pid in made(flags))
