import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from kosmosg import cli
from kosmosg.data.records import Edit, Example
from kosmosg.data.samples import from_bytes
from kosmosg.data.tars import read_index, read_sample
from kosmosg.tokenizer import Tokenizer
from toys.construct import save_own_clipseg
from toys.nano import save_toy_nano
from toys.photos import photo


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_toy_nano(directory)
    tokenizer = Tokenizer.from_pretrained(directory / "tokenizer")
    save_own_clipseg(directory / "segmenter", tokenizer.vocab_size)
    return directory


@pytest.fixture
def changes(model_dir: Path) -> list[str]:
    return [
        f"captioner.directory={model_dir}",
        f"segmenter.directory={model_dir / 'segmenter'}",
        "segmenter.threshold=0.01",
        "captions=beside",
        "size=32",
        "unit_size=2",
    ]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (40, 32), "red").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a red star {number}")
    return folder


def examples(folder: Path) -> dict[str, Example]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as file:
            for sample in read_index(path):
                record = from_bytes(sample.key, read_sample(file, sample))
                assert isinstance(record, Example)
                found[f"{path.stem} {record.key}"] = record
    return found


def test_a_folder_becomes_shards(
    pictures: Path, changes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["construct", "folder", str(pictures), *changes, "--recipe", "nano", "--workers", "0"]
    assert cli.main([*words, "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    made = examples(tmp_path / "out")
    assert list(made) == ["000000 0", "000000 1", "000001 2", "000001 3", "000002 4"]
    assert made["000001 3"].caption == "a red star 3"
    assert made["000001 3"].provenance["source"] == "folder"


def test_limit_makes_the_first_shards_and_a_second_run_the_rest(
    pictures: Path, changes: list[str], tmp_path: Path
) -> None:
    words = ["construct", "folder", str(pictures), *changes, "--recipe", "nano", "--workers", "0"]
    out = tmp_path / "out"
    assert cli.main([*words, "-o", str(out), "--limit", "1"]) == 0
    assert list(examples(out)) == ["000000 0", "000000 1"]
    assert cli.main([*words, "-o", str(out)]) == 0
    assert len(examples(out)) == 5


def test_open_images_say_whose_they_are(pictures: Path, changes: list[str], tmp_path: Path) -> None:
    table = tmp_path / "ids.csv"
    table.write_text("ImageID,OriginalURL,License,Author\n3,https://f/3,CC BY,Jo\n")
    words = [
        "construct",
        "openimages",
        str(pictures),
        *changes,
        "--recipe",
        "nano",
        "--workers",
        "0",
    ]
    assert cli.main([*words, "-o", str(tmp_path / "out"), "--table", str(table)]) == 0
    said = examples(tmp_path / "out")["000001 3"].provenance
    assert (said["license"], said["author"], said["source_id"]) == ("CC BY", "Jo", "3")


def test_a_printed_configuration_can_be_given_back(
    pictures: Path, changes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["construct", "folder", str(pictures), *changes, "--recipe", "nano", "--workers", "0"]
    assert cli.main([*words, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["size"] == 32
    path = tmp_path / "c.yaml"
    path.write_text(printed)
    again = [
        "construct",
        "folder",
        str(pictures),
        "--config",
        str(path),
        "--limit",
        "1",
        "--workers",
        "0",
    ]
    assert cli.main([*again, "-o", str(tmp_path / "out")]) == 0
    assert len(examples(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--recipe", "nano"], "-o SHARDS"),
        (["-o", "out", "--recipe", "papers"], "the recipes are paper, as-released, nano"),
        (["-o", "out"], "hf download Salesforce/blip2-opt-6.7b"),
        (["-o", "out", "batchsize=3"], "did you mean batch_size?"),
    ],
)
def test_what_is_missing_is_one_line(
    words: list[str],
    says: str,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["construct", "folder", str(pictures), *words]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_shard_says_what_was_left_out(pictures: Path, changes: list[str], tmp_path: Path) -> None:
    (pictures / "0.txt").write_text("it is red")
    words = ["construct", "folder", str(pictures), *changes, "--recipe", "nano", "--workers", "0"]
    assert cli.main([*words, "-o", str(tmp_path / "out"), "--limit", "1"]) == 0
    stats = json.loads((tmp_path / "out" / "000000.json").read_text())
    counts = stats["counts"]
    assert (counts["records"], counts["dropped"]) == (1, {"no entities": 1})


def test_names_of_strangers_move_no_cursor(
    pictures: Path, changes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "\x1b[2J.jpg").write_bytes(b"x")
    words = ["construct", "folder", str(pictures), *changes, "--recipe", "nano", "--workers", "0"]
    assert cli.main([*words, "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "left out: 1 unreadable picture" in said
    assert "\x1b[2J" not in said
    assert r"\x1b[2J.jpg" in said


def test_another_model_does_not_go_on_in_the_same_folder(
    pictures: Path, changes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["construct", "folder", str(pictures), *changes, "--recipe", "nano", "--workers", "0"]
    out = ["-o", str(tmp_path / "out")]
    assert cli.main([*words, *out, "--limit", "1"]) == 0
    assert cli.main([*words, *out, "segmenter.threshold=0.02"]) == 2
    assert "segmenter.threshold = 0.01, now it is 0.02" in capsys.readouterr().err
    assert cli.main([*words, *out, "device=auto"]) == 0


def test_in_a_process_of_its_own_and_too_many_bad_pictures(
    pictures: Path, changes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "3.png").write_bytes(b"no picture")
    words = ["construct", "folder", str(pictures), *changes, "--recipe", "nano"]
    assert cli.main([*words, "-o", str(tmp_path / "out")]) == 0
    assert list(examples(tmp_path / "out")) == ["000000 0", "000000 1", "000001 2", "000002 4"]
    err = capsys.readouterr().err
    assert "4 examples in 3 shards" in err
    assert "left out: 1 unreadable picture, such as" in err
    assert "3.png" in err


def test_all_that_a_run_says_is_ours(
    pictures: Path, changes: list[str], tmp_path: Path, repository: Path
) -> None:
    """Workers load libraries and bars of their own, and end with the run."""
    words = ["construct", "folder", str(pictures), *changes, "--recipe", "nano", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "kosmosg", *words, "-o", str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": f"{repository}/src"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip()]
    assert lines[-1] == "5 examples in 3 shards"
    assert [line for line in lines[:-1] if not line.startswith("out: ")] == []


def test_pairs_are_read_as_data_convert_reads_them(tmp_path: Path) -> None:
    for folder in ("target", "control_1", "control_2"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / "in" / folder / "a.png")
    (tmp_path / "in" / "target" / "a.txt").write_text("make it red")
    out = tmp_path / "out"
    words = ["construct", "pairs", str(tmp_path / "in"), "-o", str(out), "--workers", "0"]
    assert cli.main(words) == 0
    (shard,) = out.glob("*.tar")
    with shard.open("rb") as file:
        (sample,) = read_index(shard)
        record = from_bytes(sample.key, read_sample(file, sample))
    assert isinstance(record, Edit)
    assert record.instruction == "make it red"
    assert len(record.before) == 2


def test_shards_do_not_go_into_the_input(
    pictures: Path, changes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["construct", "folder", str(pictures), *changes, "--recipe", "nano", "--workers", "0"]
    assert cli.main([*words, "-o", str(pictures / "out")]) == 2
    assert "beside it" in capsys.readouterr().err


def test_pictures_of_an_evaluation_set_become_no_examples(
    pictures: Path, changes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dog").mkdir()
    photo(1).save(tmp_path / "dog/00.jpg")
    photo(1).resize((200, 150)).save(pictures / "3.png")
    hashes, out = tmp_path / "dog.txt", tmp_path / "out"
    assert cli.main(["construct", "hashes", str(tmp_path / "dog"), "-o", str(hashes)]) == 0
    words = ["construct", "folder", str(pictures), *changes, "--recipe", "nano", "--workers", "0"]
    assert cli.main([*words, "-o", str(out), "--evaluation-set", str(hashes)]) == 0
    assert list(examples(out)) == ["000000 0", "000000 1", "000001 2", "000002 4"]
    said = capsys.readouterr()
    assert "dropped: 1 in an evaluation set, such as picture 3 is 00.jpg" in said.err
    assert cli.main([*words, "-o", str(out)]) == 2
    assert "evaluation_sets = " in capsys.readouterr().err


def test_near_duplicates_are_dropped(
    pictures: Path, changes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["construct", "folder", str(pictures), *changes, "--recipe", "nano", "--workers", "0"]
    assert cli.main([*words, "-o", str(out)]) == 0
    assert cli.main(["construct", "dedupe", str(out)]) == 0
    assert list(examples(out)) == ["000000 0"]  # all five are red
    said = capsys.readouterr().err
    assert "000001:2 repeats 000000:0" in said
    assert "4 dropped, 1 stay" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hashes", "none", "-o", "x.txt"], "none"),
        (["hashes", ".", "-o", "x.txt"], "holds no pictures"),
        (["hashes", ".", "-o", "x.png"], "does not end in .txt"),
        (["dedupe", "."], "holds no shards"),
        (["dedupe", ".", "--distance", "4"], "--distance"),
    ],
)
def test_screening_that_cannot_be(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["construct", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
