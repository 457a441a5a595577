import json
import signal
import subprocess
import sys
import time

import pytest

from kosmosg.construct.output import hold
from kosmosg.data.records import Caption
from kosmosg.data.samples import from_bytes
from kosmosg.data.tars import read_index, read_sample
from toys.foreign import img2dataset_tar, picture, plain, png, write, write_tar


def records(directory):
    found = []
    for shard in sorted(directory.glob("*.tar")):
        with shard.open("rb") as file:
            found += [from_bytes(s.key, read_sample(file, s)) for s in read_index(shard)]
    return found


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def tars(tmp_path):
    for shard in range(3):
        img2dataset_tar(tmp_path / "in" / f"{shard:05d}.tar", range(4 * shard, 4 * shard + 4))
    write_tar(tmp_path / "in" / "00003.tar", {"bad.jpg": b"", "bad.txt": b"a"})
    return tmp_path / "in"


def test_records_come_back_from_the_shards(run, tars, tmp_path):
    out = tmp_path / "out"
    code, printed, notes = run(
        "data", "convert", "auto", tars, "-o", out, "--per-shard", 5, "--pictures", "png"
    )
    assert (code, printed) == (0, f"{out}\n")
    assert notes.startswith("12 records in 3 shards\nleft out: 1 unreadable picture, such as ")
    names = ["img2dataset-000000.tar", "img2dataset-000001.tar", "img2dataset-000002.tar"]
    assert sorted(path.name for path in out.glob("[!.]*")) == [*names, "stats.json"]
    assert [len(list(read_index(out / name))) for name in names] == [5, 5, 2]
    found = records(out)
    assert [record.key for record in found] == [f"{i // 4:05d}/{i:09d}" for i in range(12)]
    provenance = {"url": "http://a.example/7.jpg", "original_width": "70", "original_height": "50"}
    assert plain(found[7]) == plain(
        Caption(
            key="00001/000000007",
            text="caption 7",
            image=picture(7),
            provenance={**provenance, "sha256": f"{7:064x}"},
        )
    )
    stats = json.loads((out / "stats.json").read_text())
    assert (stats["records"], stats["shards"], stats["done"]) == (12, 3, True)
    assert stats["skipped"] == {"unreadable picture": 1}
    assert "00003.tar: sample 'bad'" in stats["named"]["unreadable picture"][0]


def test_shards_that_are_there_are_kept_and_the_others_made_the_same(run, tars, tmp_path):
    words = ("data", "convert", "img2dataset", tars, "-o", tmp_path / "out", "--per-shard", "5")
    assert run(*words)[0] == 0
    whole = contents(tmp_path / "out")
    kept = tmp_path / "out" / "img2dataset-000001.tar"
    before = kept.stat().st_mtime_ns
    (tmp_path / "out" / "img2dataset-000000.tar").unlink()
    (tmp_path / "out" / "img2dataset-000002.tar").unlink()
    assert run(*words)[0] == 0
    assert contents(tmp_path / "out") == whole
    assert kept.stat().st_mtime_ns == before


def test_a_killed_run_goes_on(tmp_path, run):
    numbers = range(100, 400)
    for number in numbers:
        write(tmp_path / "texts" / f"{number}.txt", f"text {number}")
    out = tmp_path / "out"
    words = ["data", "convert", "text", str(tmp_path / "texts"), "-o", str(out), "--per-shard", "1"]
    process = subprocess.Popen([sys.executable, "-m", "kosmosg", *words])
    third = out / "text-000002.tar"
    while not third.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(out.glob("text-*.tar"))) < len(numbers)
    assert not json.loads((out / "stats.json").read_text())["done"]
    write(out / ".text-000003.tar.1.part", b"half")
    made = third.stat().st_mtime_ns
    assert run(*words)[0] == 0
    assert [record.parts[0] for record in records(out)] == [f"text {number}" for number in numbers]
    assert third.stat().st_mtime_ns == made
    assert json.loads((out / "stats.json").read_text())["done"]
    assert not list(out.glob("*.part"))


def test_a_directory_of_another_run_is_refused(run, tars, tmp_path):
    words = ("data", "convert", "img2dataset", tars, "-o", tmp_path / "out")
    assert run(*words)[0] == 0
    code, _, error = run(*words, "--per-shard", "5")
    assert code == 2
    assert "out was begun with per_shard=1000, not with per_shard=5; give the same" in error
    img2dataset_tar(tars / "00000.tar", range(2))
    code, _, error = run(*words)
    assert code == 2
    assert "img2dataset-000000.tar holds other records" in error


def test_a_first_try_that_gave_no_shard_binds_nobody(run, tars, tmp_path):
    words = ("-o", tmp_path / "out")
    assert run("data", "convert", "folders", tars, *words)[0] == 2
    assert run("data", "convert", "img2dataset", tars, *words)[0] == 0
    assert len(records(tmp_path / "out")) == 12


def test_two_runs_in_one_directory_do_not_meet(run, tars, tmp_path):
    out = tmp_path / "out"
    with hold(out):
        part = out / ".img2dataset-000000.tar.1.part"  # what the first is writing
        part.write_bytes(b"")
        code, _, error = run("data", "convert", "img2dataset", tars, "-o", out)
        assert part.exists()
    assert code == 2
    assert f"another process writes to {out}; wait for it" in error
    assert run("data", "convert", "img2dataset", tars, "-o", out)[0] == 0
    assert not part.exists()


def test_too_many_bad_records_stop_it_and_the_stats_say_which(run, tmp_path):
    members = {f"{i:03d}.jpg": png(1) if i < 85 else b"" for i in range(200)}
    members |= {f"{i:03d}.txt": b"a" for i in range(200)}
    write_tar(tmp_path / "in" / "0.tar", dict(sorted(members.items())))
    words = ("data", "convert", "auto", tmp_path / "in", "-o", tmp_path / "out")
    code, printed, error = run(*words)
    assert (code, printed) == (2, "")
    assert "15 of 100 records were left out, more than 10%" in error
    assert json.loads((tmp_path / "out" / "stats.json").read_text())["done"] is False
    assert run(*words, "--bad", "0.9")[0] == 0
    assert len(records(tmp_path / "out")) == 85


def test_limit_and_documents(run, tmp_path):
    write(tmp_path / "a.txt", "one\n\ntwo\n\nthree\n")
    words = ("data", "convert", "text", tmp_path / "a.txt", "--documents", "paragraph")
    assert run(*words, "--limit", "2", "-o", tmp_path / "out")[0] == 0
    assert [record.parts for record in records(tmp_path / "out")] == [("one",), ("two",)]


def test_photographs_are_written_as_jpeg(run, tars, tmp_path):
    assert run("data", "convert", "auto", tars, "-o", tmp_path / "out")[0] == 0
    sample = next(read_index(tmp_path / "out" / "img2dataset-000000.tar"))
    assert set(sample.members) == {"jpg", "json"}


def test_names_of_strangers_move_no_cursor(run, tmp_path):
    write_tar(tmp_path / "in" / "\x1b[2J\n.tar", {"a.jpg": b"", "a.txt": b"a", "b.txt": b"b"})
    code, _, notes = run("data", "convert", "auto", tmp_path / "in", "-o", tmp_path / "out")
    assert code == 0
    assert "\x1b" not in notes
    assert r"/in/\x1b[2J\n.tar: sample 'a'" in notes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("img2data", "in", "-o", "out"), "did you mean img2dataset?"),
        (("xyz", "in", "-o", "out"), "the formats are img2dataset, parquet"),
        (("auto", "none", "-o", "out"), "none does not exist"),
        (("auto", "in", "-o", "in/out"), "in/out is inside in; write to a directory beside it"),
        (("auto", "in", "-o", "in"), "in is inside in"),
        (("auto", "in", "-o", "file"), "file is a file"),
        (("auto", "in", "-o", "out", "--documents", "line"), "--documents is of text"),
        (("mmc4", "in", "-o", "out"), r"in holds no .jsonl"),
        (("auto", "bad", "-o", "out"), "bad gave no record; left out: 1 unreadable picture"),
        (("auto", "in", "-o", "other"), "other/stats.json is not of this command"),
    ],
)
@pytest.mark.usefixtures("tars")
def test_what_cannot_work_is_said_in_one_line(run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "file", "")
    write(tmp_path / "other" / "stats.json", "[]")
    write_tar(tmp_path / "bad" / "0.tar", {"a.jpg": b"", "a.txt": b"a"})
    code, printed, error = run("data", "convert", *words)
    assert (code, printed) == (2, "")
    assert message in error
    assert "Traceback" not in error
