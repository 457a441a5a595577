"""Runs in several processes, some of which are killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kosmosg.construct import executor
from kosmosg.construct.journal import DEADLY
from kosmosg.errors import ConfigError, DataError, KosmosGError
from toys.construction import MakeReader, construct, keys_in, leftovers, made, units_of, until


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


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
        process.communicate(timeout=60)  # workers hold the pipe as well: they must end too


def test_killed_workers_are_replaced_and_no_record_is_lost_or_doubled(
    output: Path, flags: Path
) -> None:
    """One dies at a record, once; others between records: once, and each time."""
    units = units_of(
        ["a"] * 5, ["a", "once:first", "d"], ["a", "end once:last"], ["b", "end die"], ["c"]
    )
    summary = construct(units, output, flags, workers=2)
    assert keys_in(output) == [key for unit in units if unit.name != "003" for key in unit.keys]
    assert leftovers(output) == []
    assert summary.done == 4
    assert summary.counts.skipped == {}
    assert summary.failed.keys() == {"003"}
    assert "SIGKILL" in summary.failed["003"]
    assert "(3 attempts)" in summary.failed["003"]
    assert len(made(flags)) >= 5  # five have died
    assert not any(alive(pid) for pid in made(flags))


@pytest.mark.parametrize(
    ("word", "batch_size"), [("die", 1), ("die", 3), ("decode:die", 3), ("segfault", 1)]
)
def test_a_record_that_kills_is_skipped_counted_and_named(
    output: Path, flags: Path, word: str, batch_size: int
) -> None:
    units = units_of(["a", "b", word, "c", "d"], ["e"])
    make = MakeReader(flags, batch_size=batch_size)
    summary = construct(units, output, flags, workers=1, make=make)
    assert keys_in(output) == ["000/0", "000/1", "000/3", "000/4", "001/0"]
    assert not summary.failed
    said = json.loads((output / "000.json").read_text())["counts"]
    assert said["skipped"] == summary.counts.skipped == {DEADLY: 1}
    (named,) = said["named"][DEADLY]
    assert named.startswith("record 000/2: 2 processes died while they worked on it alone; look")
    # Together with others it kills once more; what is read is on its own from the start.
    num_deaths = 2 if batch_size == 1 or word == "decode:die" else 3
    assert len(made(flags)) == num_deaths + 1
    assert leftovers(output) == []


def test_workers_that_are_killed_from_outside_cost_no_record(output: Path, flags: Path) -> None:
    """Whatever they were at: the same batch, twice."""
    units = units_of(["a", "sleep:2", "b", "c"], ["d"])

    def kill() -> None:
        for num_made in (1, 2):
            until(lambda at=num_made: len(made(flags)) == at and "000/1" in _last_line(output))
            (worker,) = [pid for pid in made(flags) if alive(pid)]
            os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    make = MakeReader(flags, batch_size=4)
    summary = construct(units, output, flags, workers=1, make=make)
    killer.join()
    assert len(made(flags)) == 3
    assert keys_in(output) == [key for unit in units for key in unit.keys]
    assert summary.counts.skipped == {}
    assert leftovers(output) == []


def _last_line(output: Path) -> str:
    try:
        lines = (output / ".000.journal").read_text().splitlines()
    except FileNotFoundError:
        return ""
    return lines[-1] if lines else ""


def test_the_limit_stops_a_run_of_records_that_kill(output: Path, flags: Path) -> None:
    units = units_of(["a"] * 98, ["a", "die", "a", "die", "a", "die"])
    with pytest.raises(DataError, match=r"^2 of 100 records are bad, .* 2 killed its worker; such"):
        construct(units, output, flags, workers=1, skips_limit=0.01)
    assert len(keys_in(output)) == 98
    assert leftovers(output) == []


def test_a_unit_of_which_no_record_comes_through_is_named(
    output: Path, flags: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not the records that are to blame."""
    monkeypatch.setattr(executor, "IN_A_ROW", 4)  # to make a worker takes seconds
    summary = construct(units_of(["die"] * 9, ["a"]), output, flags, workers=1)
    assert "SIGKILL" in summary.failed["000"]
    assert summary.failed["000"].endswith("so did 4 in a row, and no record came through")
    assert keys_in(output) == ["001/0"]
    assert len(made(flags)) == 4


def test_a_record_that_takes_the_driver_along_is_skipped_as_well(
    output: Path, repository: Path
) -> None:
    """As where the whole container is ended for its memory: the same command goes on."""
    job = (1, 3, 0, "die at 000/1")
    for _ in range(2):
        with driver(output, *job, repository=repository) as process:
            assert process.wait(120) == -signal.SIGKILL
    with driver(output, *job, repository=repository) as process:
        assert process.wait(120) == 0
    assert keys_in(output) == ["000/0", "000/2"]
    assert leftovers(output) == []


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
