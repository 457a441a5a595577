"""Other people's edits, of which rules, evaluation sets and repetitions leave some out."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from kosmosg import cli
from kosmosg.construct.phash import phash
from kosmosg.data.records import Edit
from kosmosg.data.samples import from_bytes
from kosmosg.data.tars import read_index, read_sample
from toys.photos import photo

HERE = ("--workers", "0")  # in this process: to spawn one takes seconds


def write_pairs(folder: Path, edits: Mapping[str, tuple[Image.Image, Image.Image, str]]) -> Path:
    for name in ("control", "target"):
        (folder / name).mkdir(parents=True)
    for name, (before, after, text) in edits.items():
        before.save(folder / "control" / f"{name}.png")
        after.save(folder / "target" / f"{name}.png")
        (folder / "target" / f"{name}.txt").write_text(text)
    return folder


def edits(folder: Path) -> dict[str, Edit]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as file:
            for sample in read_index(path):
                record = from_bytes(sample.key, read_sample(file, sample))
                assert isinstance(record, Edit)
                found[record.key] = record
    return found


def noted(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())["counts"]


def test_filters_look_at_every_picture_and_at_the_instruction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = photo(3, (30, 30))
    source = write_pairs(
        tmp_path / "in",
        {
            "a": (photo(1), photo(2), "make it red"),
            "b": (small, photo(4), "make it red"),
            "c": (photo(5), small, "make it red"),
            "d": (photo(6, (200, 50)), photo(7), "make it red"),
            "e": (photo(8), photo(9), "make it very red"),
        },
    )
    rules = ["filters.min_side=40", "filters.max_aspect=3", "filters.max_caption=12", *HERE]
    out = tmp_path / "out"
    assert cli.main(["construct", "pairs", str(source), "-o", str(out), *rules]) == 0
    made = edits(out)
    assert list(made) == ["a"]
    marks = made["a"].provenance["phash"].split()
    assert marks[:2] == [f"{phash(photo(number)):016x}" for number in (2, 1)]
    said = noted(out)
    assert said["dropped"] == {"too small": 2, "too long": 1, "caption too long": 1}
    assert said["named"]["too small"] == ["edit b", "edit c"]
    assert said["named"]["caption too long"] == ["edit e: 'make it very red'"]
    assert "dropped: 2 too small, such as edit b" in capsys.readouterr().err
    assert cli.main(["construct", "pairs", str(source), "-o", str(out), *rules]) == 0
    assert cli.main(["construct", "pairs", str(source), "-o", str(out), *rules[:2]]) == 2
    assert "with filters.max_caption = 12, now it is None" in capsys.readouterr().err


def test_a_source_or_a_target_of_an_evaluation_set_drops_the_edit(tmp_path: Path) -> None:
    (tmp_path / "dog").mkdir()
    photo(1).save(tmp_path / "dog/00.jpg")
    hashes, out = tmp_path / "dog.txt", tmp_path / "out"
    assert cli.main(["construct", "hashes", str(tmp_path / "dog"), "-o", str(hashes)]) == 0
    leaked = photo(1).resize((200, 150))
    source = write_pairs(
        tmp_path / "in",
        {
            "a": (leaked, photo(2), "make it red"),
            "b": (photo(3), leaked, "make it red"),
            "c": (photo(4), photo(5), "make it red"),
        },
    )
    words = ["construct", "pairs", str(source), "-o", str(out), "--evaluation-set", str(hashes)]
    assert cli.main([*words, *HERE]) == 0
    assert list(edits(out)) == ["c"]
    said = noted(out)
    assert said["dropped"] == {"in an evaluation set": 2}
    assert said["named"]["in an evaluation set"] == ["edit a is 00.jpg", "edit b is 00.jpg"]


def test_an_edit_repeats_another_if_all_of_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_pairs(
        tmp_path / "in",
        {
            "a": (photo(1), photo(2), "make it red"),
            "b": (photo(1), photo(2), "make it blue"),
            "c": (photo(3), photo(2), "make it red"),
            "d": (photo(1).resize((192, 144)), photo(2), "make it red"),
            "e": (photo(1), photo(4), "make it red"),
        },
    )
    out = tmp_path / "out"
    words = ["construct", "pairs", str(source), "-o", str(out), *HERE]
    assert cli.main(words) == 0
    assert cli.main(["construct", "dedupe", str(out), "--distance", "3"]) == 0
    assert list(edits(out)) == ["a", "b", "c", "e"]
    assert "000000:d repeats 000000:a" in capsys.readouterr().err
    said = json.loads((out / "000000.json").read_text())
    assert said["counts"]["dropped"] == {"near-duplicate": 1}
    assert cli.main(words) == 0  # goes on, and makes nothing anew
    assert list(edits(out)) == ["a", "b", "c", "e"]
    assert noted(out)["records"] == 4


def test_a_run_killed_between_a_shard_and_its_json_goes_on(tmp_path: Path) -> None:
    source = write_pairs(tmp_path / "in", {"a": (photo(1), photo(2), "make it red")})
    out = tmp_path / "out"
    words = ["construct", "pairs", str(source), "-o", str(out), *HERE]
    assert cli.main(words) == 0
    said = json.loads((out / "000000.json").read_text())
    (out / "000000.json").unlink()
    assert cli.main(["construct", "dedupe", str(out)]) == 2
    assert cli.main(words) == 0
    again = json.loads((out / "000000.json").read_text())
    assert {**again, "seconds": 0} == {**said, "seconds": 0}


def test_pairs_of_instructpix2pix_are_screened_as_well(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "0000001"
    folder.mkdir(parents=True)
    (folder / "prompt.json").write_text(json.dumps({"input": "a dog", "edit": "make it red"}))
    for seed, side in ((1, 64), (2, 32)):
        photo(seed).save(folder / f"{seed}_0.jpg")
        photo(seed + 9, (side, side)).save(folder / f"{seed}_1.jpg")
    out = tmp_path / "out"
    words = ["construct", "instructpix2pix", str(tmp_path / "in"), "-o", str(out)]
    assert cli.main([*words, "filters.min_side=40", *HERE]) == 0
    (made,) = edits(out).values()
    assert made.key.endswith("1")
    assert noted(out)["dropped"] == {"too small": 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("filters.min_sides=3", "did you mean filters.min_side?"),
        ("filters.classifier={directory: none}", "filters.classifier needs filters.max_unsafe"),
    ],
)
def test_filters_that_cannot_be(
    change: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["construct", "pairs", str(tmp_path), "-o", str(tmp_path / "o"), change]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_options_are_those_of_the_other_jobs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edits_of = {name: (photo(1), photo(2), f"make it {name}") for name in "abc"}
    source, out = write_pairs(tmp_path / "in", edits_of), tmp_path / "out"
    words = ["construct", "pairs", str(source)]
    assert cli.main([*words, "unit_size=2", "pictures=png", "--print-config"]) == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    words += ["--config", str(tmp_path / "c.yaml"), *HERE, "-o", str(out)]
    assert cli.main([*words, "--limit", "1"]) == 0
    assert list(edits(out)) == ["a", "b"]
    assert cli.main(words) == 0
    made = edits(out)
    assert list(made) == ["a", "b", "c"]
    assert made["c"].after.tobytes() == photo(2).tobytes()  # a png keeps every pixel
    assert [path.name for path in sorted(out.glob("*.tar"))] == ["000000.tar", "000001.tar"]
    assert "3 examples in 2 shards" in capsys.readouterr().err
    assert cli.main([*words[:3], "--workers", "0"]) == 2
    assert "-o SHARDS" in capsys.readouterr().err
