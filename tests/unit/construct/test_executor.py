"""Runs in this process: what is kept, skipped, refused, done again."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kosmosg.errors import ConfigError, DataError, KosmosGError
from toys.construction import MakeReader, Words, construct, keys_in, leftovers, units_of


def test_each_unit_becomes_a_shard_and_what_there_is_to_say_of_it(
    output: Path, flags: Path
) -> None:
    units = units_of(["a", "b"], ["c"])
    summary = construct(units, output, flags)
    assert keys_in(output) == ["000/0", "000/1", "001/0"]
    assert (summary.units, summary.done, summary.counts.records) == (2, 2, 3)
    assert not summary.failed
    said = json.loads((output / "000.json").read_text())
    assert said["counts"]["records"] == 2
    assert said["config"] == {"size": 1}
    assert said["bytes"] == (output / "000.tar").stat().st_size
    assert {"kosmosg", "python", "torch"} <= said["versions"].keys()
    assert json.loads((output / "summary.json").read_text())["counts"]["records"] == 3


def test_finished_units_are_left_as_they_are(output: Path, flags: Path) -> None:
    construct(units_of(["a"]), output, flags)
    before = (output / "000.tar").stat().st_mtime_ns
    summary = construct(units_of(["a"], ["b"]), output, flags)
    assert (output / "000.tar").stat().st_mtime_ns == before
    assert (summary.done, summary.counts.records) == (2, 2)


def test_a_run_of_finished_units_makes_no_worker(output: Path, flags: Path) -> None:
    construct(units_of(["a"]), output, flags)
    summary = construct(units_of(["a"]), output, flags, make=MakeReader(flags, "config"))
    assert summary.done == 1


def test_a_shard_without_its_json_is_made_again(output: Path, flags: Path) -> None:
    """A run was killed between the two."""
    output.mkdir()
    (output / "000.tar").write_bytes(b"half a tar")
    construct(units_of(["a", "b"]), output, flags)
    assert keys_in(output) == ["000/0", "000/1"]


@pytest.mark.parametrize("damage", ["shard cut off", "no shard", "json cut off", "json of another"])
def test_a_damaged_unit_is_made_again(output: Path, flags: Path, damage: str) -> None:
    construct(units_of(["a", "b"]), output, flags)
    shard, said = output / "000.tar", output / "000.json"
    match damage:
        case "shard cut off":
            shard.write_bytes(shard.read_bytes()[:600])
        case "no shard":
            shard.unlink()
        case "json cut off":
            said.write_text(said.read_text()[:50])
        case "json of another":
            said.write_text("[]")
    assert construct(units_of(["a", "b"]), output, flags).counts.records == 2
    assert keys_in(output) == ["000/0", "000/1"]


def test_files_of_a_killed_run_are_removed(output: Path, flags: Path) -> None:
    output.mkdir()
    (output / ".000.tar.123.part").write_bytes(b"half")
    (output / ".000.json.123.part").write_bytes(b"half")
    (output / "mine.part").touch()
    construct(units_of(["a"]), output, flags)
    assert leftovers(output) == ["mine.part"]


def test_another_configuration_is_refused_by_name(output: Path, flags: Path) -> None:
    old = {"size": 512, "segmenter": {"threshold": 0.3}}
    construct(units_of(["a"]), output, flags, config=old)
    new = {"size": 512, "segmenter": {"threshold": 0.5}}
    with pytest.raises(ConfigError, match=r"segmenter\.threshold = 0\.3, now it is 0\.5"):
        construct(units_of(["a"]), output, flags, config=new)


def test_another_input_under_an_old_name_is_refused(output: Path, flags: Path) -> None:
    """A picture was added to the folder, and all pieces moved by one."""
    construct(units_of(["a"]), output, flags)
    with pytest.raises(ConfigError, match=r"000\.json was made from other input"):
        construct(units_of(["b"]), output, flags)


@pytest.mark.parametrize(
    ("word", "reason", "named"),
    [
        ("bad", "bad word", "record 000/1 is bad"),
        ("raise:poison", "ZeroDivisionError", "000/1: ZeroDivisionError: poison (construction.py"),
        ("blank key", "bad key", "key 'no key' has characters"),
    ],
)
def test_a_poisoned_record_is_skipped_counted_and_named(
    output: Path, flags: Path, word: str, reason: str, named: str
) -> None:
    summary = construct(units_of(["a", word, "b", "c"]), output, flags)
    assert keys_in(output) == ["000/0", "000/2", "000/3"]
    said = json.loads((output / "000.json").read_text())["counts"]
    assert said["skipped"] == summary.counts.skipped == {reason: 1}
    assert said["named"][reason][0].startswith(named)
    assert summary.counts.named == said["named"]


def test_too_many_poisoned_records_stop_the_job(output: Path, flags: Path) -> None:
    units = units_of(["a"] * 60 + ["bad"] * 10, ["a"] * 25 + ["bad"] * 5, ["a"])
    with pytest.raises(DataError, match=r"^15 of 100 records are bad, more than 14%: 15 bad word;"):
        construct(units, output, flags, skips_limit=0.14)
    assert len(keys_in(output)) == 85  # what was done is kept
    assert "15 of 100" in json.loads((output / "summary.json").read_text())["stopped"]
    assert construct(units, output, flags, skips_limit=0.15).done == 3


def test_an_error_that_ends_a_unit_fails_it_and_the_others_go_on(
    output: Path, flags: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = construct(units_of(["a", "leave"], ["b"]), output, flags)
    assert summary.failed == {"000": "unit 000 ends in the middle"}
    assert keys_in(output) == ["001/0"]
    said = capsys.readouterr().err
    assert "unit 000 failed: unit 000 ends in the middle" in said
    assert "1 of 2 units are done and kept" in said


def test_a_unit_that_its_worker_cannot_finish_is_tried_again(output: Path, flags: Path) -> None:
    summary = construct(units_of(["a", "stumble"], ["fall"]), output, flags)
    assert keys_in(output) == ["000/0", "000/1"]
    (said,) = summary.failed.values()
    assert said.startswith("RuntimeError: the server is gone (construction.py, line ")
    assert said.endswith("(3 attempts)")


def test_ten_failures_in_a_row_stop_the_job(output: Path, flags: Path) -> None:
    """The server is away, and each of a thousand units would find that out for itself."""
    units = units_of(["a"], *[["leave"]] * 9, ["a"], *[["fall"]] * 12)
    with pytest.raises(KosmosGError, match=r"10 units in a row failed; the last: RuntimeError"):
        construct(units, output, flags)
    assert keys_in(output) == ["000/0", "010/0"]


def test_a_second_record_of_a_key_is_skipped(output: Path, flags: Path) -> None:
    def make():
        reader = MakeReader(flags)()
        return lambda unit, skips, journal: iter(
            [*reader(unit, skips, journal), *reader(unit, skips, journal)]
        )

    summary = construct(units_of(["a", "b"]), output, flags, make=make)
    assert keys_in(output) == ["000/0", "000/1"]
    assert summary.counts.skipped == {"key twice": 2}


@pytest.mark.parametrize("name", ["summary", "a.b", "../x", ""])
def test_names_that_cannot_name_a_shard_are_refused(output: Path, flags: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a shard"):
        construct([Words(name=name, words=("a",))], output, flags)


def test_two_units_of_one_name_are_refused(output: Path, flags: Path) -> None:
    with pytest.raises(ConfigError, match="2 units are called 'a'"):
        construct([Words(name="a", words=("a",)), Words(name="a", words=("b",))], output, flags)


def test_a_directory_has_one_run_at_a_time(output: Path, flags: Path) -> None:
    def make():
        construct(units_of(["a"]), output, flags)

    with pytest.raises(ConfigError, match=r"another process writes to .*shards; wait"):
        construct(units_of(["a"]), output, flags, make=make)


_FULL = """
import resource, sys
from pathlib import Path
from toys.construction import construct, units_of
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
output = Path(sys.argv[1])
try:
    construct(units_of(["a"], ["b"] * 100), output, output.with_name("flags"))
except OSError as error:
    print(error.filename, error.strerror)
"""

_READ_ONLY = """
import os, sys
from pathlib import Path
from toys.construction import construct, units_of
if os.geteuid() == 0:
    os.setuid(65534)  # root may write anywhere
output = Path(sys.argv[1])
try:
    construct(units_of(["a"]), output / "shards", output)
except OSError as error:
    print(error.filename, error.strerror)
"""


def python(script: str, *words: str, repository: Path) -> str:
    env = os.environ | {"PYTHONPATH": f"{repository}/src:{repository}/tests"}
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_stops_the_job_and_keeps_what_is_done(
    output: Path, flags: Path, repository: Path
) -> None:
    said = python(_FULL, str(output), repository=repository)
    assert said == f"{output / '001.tar'} File too large\n"
    assert keys_in(output) == ["000/0"]
    assert leftovers(output) == []
    construct(units_of(["a"], ["b"] * 100), output, flags)
    assert len(keys_in(output)) == len(set(keys_in(output))) == 101


def test_an_output_that_may_not_be_written_to_is_one_error(repository: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        said = python(_READ_ONLY, folder, repository=repository)
    assert said == f"{folder}/shards Permission denied\n"
