"""`kosmosg data`: exit codes, what goes to stdout, JSON."""

import json
import subprocess
import sys

import pytest

from kosmosg.data.records import Caption
from kosmosg.data.samples import to_bytes
from toys.shards import example, one_of_each, picture, tar_of, write

JPG = to_bytes(Caption(key="c", text="t", image=picture(1)), pictures="jpg")["jpg"]


@pytest.fixture
def shards(tmp_path):
    (tmp_path / "shards").mkdir()
    write(tmp_path / "shards/a.tar", one_of_each())
    write(tmp_path / "shards/b.tar", [example("b0")])
    return tmp_path / "shards"


def test_good_shards_end_with_0_and_a_table(run, shards):
    code, out, err = run("data", "validate", shards)
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()[:-1]] == [
        ["kind", "records", "pictures", "words"],
        ["caption", "2", "1", "4"],
        ["document", "1", "1", "3"],
        ["edit", "1", "3", "7"],
        ["example", "2", "2", "14"],
    ]
    assert out.splitlines()[-1] == "2 shards, 6 good records: nothing wrong"


def test_problems_are_lines_on_stdout_and_end_with_1(run, shards):
    tar_of(shards / "c.tar", {"x.json": b"{", "000.jpg": JPG, "000.txt": b"t", "000.json": b"{}"})
    (shards / "d.tar").write_bytes((shards / "a.tar").read_bytes()[:3000])
    code, out, err = run("data", "validate", shards)
    assert (code, err) == (1, "")
    first, *_, last = out.splitlines()
    assert first.startswith(f"{shards}/c.tar: x.json, line 1, column 2: its json is damaged")
    assert f"{shards}/d.tar ends at byte 3000, where" in out
    assert f"note: {shards}/c.tar has 1 sample as img2dataset writes them" in out
    assert last == "4 shards, 7 good records: 3 problems"
    code, out, _ = run("data", "validate", shards, "--limit", "6")
    assert code == 0
    assert out.endswith("6 good records: nothing wrong\n")


def test_json_says_the_same(run, shards):
    code, out, _ = run("data", "validate", shards, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["ok"] is True
    assert report["problems"] == []
    assert report["num_records"] == {"document": 1, "caption": 2, "example": 2, "edit": 1}
    tar_of(shards / "c.tar", {"x.json": b"{"})
    code, out, _ = run("data", "validate", shards, "--json")
    report = json.loads(out)
    assert code == 1
    assert report["ok"] is False
    assert report["reasons"] == {"bad json": 1}
    (problem,) = report["problems"]
    assert problem.keys() == {"shard", "key", "member", "line", "column", "reason", "what"}
    assert (problem["member"], problem["line"], problem["column"]) == ("x.json", 1, 2)


@pytest.mark.parametrize("command", ["validate", "stats", "preview"])
def test_what_is_not_there_is_one_line(run, tmp_path, command):
    more = ["-o", tmp_path / "page.html"] if command == "preview" else []
    for path, words in ((tmp_path / "gone", "there is no"), (tmp_path, "holds no *.tar")):
        code, out, err = run("data", command, path, *more)
        assert (code, out) == (2, "")
        assert words in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "page.html").exists()


def test_a_page_is_written_whole(run, shards, tmp_path):
    page = tmp_path / "page.html"
    code, out, err = run("data", "preview", shards, "-o", page, "--limit", "3")
    assert (code, out, err) == (0, "", f"3 of 6 samples: {page}\n")
    first = page.read_text()
    assert first.count("<article>") == 3
    run("data", "preview", shards, "-o", page, "--limit", "3")
    assert page.read_text() == first
    run("data", "preview", shards, "-o", page, "--limit", "3", "--seed", "5")
    assert page.read_text() != first
    code, _, err = run("data", "preview", shards, "-o", tmp_path / "page.txt")
    assert code == 2
    assert "does not end in .html" in err


def test_stats_have_bars_and_json(run, shards):
    code, out, err = run("data", "stats", shards)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["caption", "2"],
        ["document", "1"],
        ["edit", "1"],
        ["example", "2"],
    ]
    assert lines[5] == "2 shards; 0 keys came before; 2 masks"
    start = lines.index("words in a text: 1 to 7, mean 3.111, of 9")
    assert lines[start + 1].split() == ["1", "to", "below", "5", "7", "#" * 40]
    assert lines[start + 2].split() == ["5", "to", "below", "10", "2", "#" * 11]
    code, out, _ = run("data", "stats", shards, "--json", "--limit", "5")
    counted = json.loads(out)
    assert counted["num_records"] == {"document": 1, "caption": 2, "example": 1, "edit": 1}
    assert counted["sides"]["counts"][0] == 6


def test_shards_that_hold_nothing_readable_have_stats(run, tmp_path):
    code, out, _ = run("data", "stats", tar_of(tmp_path / "s.tar", {"x.json": b"{"}))
    assert code == 0
    assert "left out" in out
    assert "bad json" in out


def test_validating_needs_no_model_library(shards):
    script = f"""
import sys
from kosmosg.cli import main
assert main(["data", "validate", {str(shards)!r}]) == 0
assert not {{"transformers", "diffusers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
