"""Runs on a small Ray cluster of this machine, of which actors are killed."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kosmosg.construct.config import EditsConfig
from kosmosg.construct.edits import MakeEditsWorker, pairs_units
from kosmosg.construct.executor import run
from kosmosg.construct.journal import DEADLY
from kosmosg.errors import ConfigError, DataError
from toys.construction import MakeReader, construct, keys_in, leftovers, made, units_of, until
from toys.foreign import png, write

pytestmark = [
    pytest.mark.timeout(300),
    # Ray announces what a later version will do, and leaves files of its own open.
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    import ray

    root = Path(__file__).parents[3]  # pytest's path is not that of Ray's processes
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": f"{root}/src:{root}/tests"}},
    )
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_killed_actors_are_replaced_and_no_record_is_lost_or_doubled(
    output: Path, flags: Path
) -> None:
    units = units_of(
        ["a", "sleep:5", "b"], ["a", "bad", "once:first", "c"], ["a"], ["b", "end die"]
    )

    def kill() -> None:
        """Kill the actor that sleeps, from outside."""
        until(lambda: list(output.glob(".000.*.part")), 120)
        name = next(output.glob(".000.*.part")).name
        os.kill(int(name.split(".")[3]), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    summary = construct(units, output, flags, workers=2, kind="ray")
    killer.join()
    assert keys_in(output) == [
        *["000/0", "000/1", "000/2"],
        *["001/0", "001/2", "001/3"],
        "002/0",
    ]
    assert leftovers(output) == []
    assert summary.counts.skipped == {"bad word": 1}
    assert summary.failed.keys() == {"003"}
    assert "ActorDiedError" in summary.failed["003"]
    assert len(made(flags)) >= 5


@pytest.mark.usefixtures("cluster")
def test_a_record_that_kills_its_actor_is_skipped_counted_and_named(
    output: Path, flags: Path
) -> None:
    units = units_of(["a", "b", "die", "c"], ["a", "decode:segfault"])
    make = MakeReader(flags, batch_size=3)
    summary = construct(units, output, flags, workers=2, kind="ray", make=make)
    assert keys_in(output) == ["000/0", "000/1", "000/3", "001/0"]
    assert not summary.failed
    assert summary.counts.skipped == {DEADLY: 2}
    said = json.loads((output / "000.json").read_text())["counts"]
    assert said["named"][DEADLY][0].startswith("record 000/2: 2 processes died")
    assert leftovers(output) == []


@pytest.mark.usefixtures("cluster")
def test_actors_make_what_processes_make(output: Path, flags: Path, tmp_path: Path) -> None:
    units = units_of(["a", "b"], ["c"], ["d"])
    construct(units, output, flags, workers=2, kind="ray")
    construct(units, tmp_path / "here", flags)
    for shard in sorted(output.glob("*.tar")):
        assert shard.read_bytes() == (tmp_path / "here" / shard.name).read_bytes()
    assert len(made(flags)) == 2 + 1  # once in each actor


@pytest.mark.usefixtures("cluster")
def test_actors_make_edits_too(output: Path, tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        write(tmp_path / "in/target" / f"{name}.png", png(number))
        write(tmp_path / "in/target" / f"{name}.txt", f"make it {name}")
        write(tmp_path / "in/control" / f"{name}.png", png(number + 10))
    units = pairs_units(tmp_path / "in", unit_size=2)
    make = MakeEditsWorker(config=EditsConfig())
    wanted = {"skips_limit": 0.0, "config": {}, "pictures": "png"}
    run(units, make, output=output, workers=2, kind="ray", **wanted)
    run(units, make, output=tmp_path / "here", workers=0, kind="local", **wanted)
    assert keys_in(output) == ["a", "b", "c"]
    for shard in sorted(output.glob("*.tar")):
        assert shard.read_bytes() == (tmp_path / "here" / shard.name).read_bytes()


@pytest.mark.usefixtures("cluster")
def test_the_limit_stops_units_in_their_middle(output: Path, flags: Path) -> None:
    units = units_of([*["bad"] * 120, *["sleep:0.5"] * 600])
    with pytest.raises(DataError, match=r"120 of 12\d records are bad"):
        construct(units, output, flags, workers=1, kind="ray")
    assert leftovers(output) == []


@pytest.mark.usefixtures("cluster")
def test_what_makes_no_actor_stops_the_job(output: Path, flags: Path) -> None:
    make = MakeReader(flags, "config")
    with pytest.raises(ConfigError, match=r"no model in models/blip2; put it there"):
        construct(units_of(["a"]), output, flags, workers=1, kind="ray", make=make)
    with pytest.raises(ConfigError, match=r"no machine of the Ray cluster has .* 8 GPUs"):
        construct(units_of(["a"]), output, flags, workers=1, kind="ray", gpus=8.0)


def test_without_ray_the_extra_is_named(
    output: Path, flags: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'kosmosg\[construct\]'"):
        construct(units_of(["a"]), output, flags, workers=1, kind="ray")


def test_actors_are_at_least_one(output: Path, flags: Path) -> None:
    with pytest.raises(ConfigError, match="workers is 0; give at least 1"):
        construct(units_of(["a"]), output, flags, workers=0, kind="ray")
