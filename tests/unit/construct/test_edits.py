"""Units of other people's edits, and the worker that reads and screens them."""

import json
import os
import pickle
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from kosmosg.construct import screen
from kosmosg.construct.config import EditsConfig
from kosmosg.construct.edits import MakeEditsWorker, pairs_units, prompts_units
from kosmosg.construct.executor import run
from kosmosg.construct.filters import FilterConfig
from kosmosg.construct.journal import DEADLY, Journal
from kosmosg.data.readers.folders import read_folders
from kosmosg.data.readers.instructpix2pix import read_instructpix2pix
from kosmosg.data.skips import Skips
from kosmosg.data.tars import read_index
from kosmosg.errors import ConfigError, DataError
from toys.foreign import picture, plain, png, write


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Four folders of two pairs each, in an order of their own, and two entries that are none."""
    root = tmp_path / "in"
    listed: list[object] = []
    for name in "dbca":
        write(root / name / "prompt.json", {"input": "a horse", "edit": "make it a zebra"})
        for seed in (7, 5):
            write(root / name / f"{seed}_0.jpg", png(seed))
            write(root / name / f"{seed}_1.jpg", png(seed + 1))
        listed.append([name, [str(7), 5]])
    write(root / "seeds.json", [listed[0], 7, *listed[1:], ["../x", ["1"]]])
    return root


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    for number, name in enumerate("abcde"):
        write(root / "target" / f"{name}.png", png(number))
        write(root / "target" / f"{name}.txt", f"make it {name}")
        write(root / "control" / f"{name}.png", png(number + 10))
    return root


def test_folders_are_cut_the_same_way_each_time_and_keep_what_is_wrong(prompts: Path) -> None:
    units = prompts_units(prompts, unit_size=3)
    assert [unit.name for unit in units] == ["000000", "000001"]
    assert [unit.folders for unit in units] == [
        (("d", ("7", "5")), ("b", ("7", "5"))),
        (("c", ("7", "5")), ("a", ("7", "5"))),
    ]
    assert [[error.reason for error in unit.bad] for unit in units] == [
        ["bad entry"],
        ["path outside"],
    ]
    again = pickle.loads(pickle.dumps(prompts_units(prompts, unit_size=3)))
    assert repr(units) == repr(again)  # a done unit is known by this


def test_a_worker_makes_what_the_readers_read(prompts: Path, journal: Journal) -> None:
    (prompts / "b" / "5_1.jpg").unlink()
    (prompts / "c" / "prompt.json").write_text("{")
    worker = pickle.loads(pickle.dumps(MakeEditsWorker(config=EditsConfig())))()
    skips, read = Skips(), Skips()
    made = [
        record
        for unit in prompts_units(prompts, unit_size=3)
        for record in worker(unit, skips, journal)
    ]
    expected = list(read_instructpix2pix(prompts, skips=read))
    assert [one.key for one in made] == ["d/7", "d/5", "b/7", "a/7", "a/5"]
    assert [plain(one.after) for one in made] == [plain(one.after) for one in expected]
    assert (
        skips.reasons
        == read.reasons
        == {
            "bad entry": 1,
            "missing picture": 1,
            "bad json": 1,
            "path outside": 1,
        }
    )


def test_pairs_are_cut_by_name_and_made_as_they_are_read(pairs: Path, journal: Journal) -> None:
    (pairs / "control" / "d.png").unlink()
    units = pairs_units(pairs, unit_size=2)
    assert [[one.stem for one in unit.files] for unit in units] == [["a", "b"], ["c", "d"], ["e"]]
    assert units == pickle.loads(pickle.dumps(pairs_units(pairs, unit_size=2)))
    worker, skips, read = MakeEditsWorker(config=EditsConfig())(), Skips(), Skips()
    made = [record for unit in units for record in worker(unit, skips, journal)]
    expected = list(read_folders(pairs, skips=read))
    assert [(one.key, plain(one.before)) for one in made] == [
        (one.key, plain(one.before)) for one in expected
    ]
    assert [one.key for one in made] == ["a", "b", "c", "e"]
    assert skips.reasons == read.reasons == {"missing control": 1}


def test_captioned_pictures_are_units_too(tmp_path: Path, journal: Journal) -> None:
    write(tmp_path / "in" / "x" / "a.png", png(1))
    write(tmp_path / "in" / "x" / "a.txt", "a horse")
    write(tmp_path / "in" / "b.png", png(2))
    (unit,) = pairs_units(tmp_path / "in", unit_size=9)
    skips = Skips()
    (made,) = MakeEditsWorker(config=EditsConfig())()(unit, skips, journal)
    assert (made.key, made.text, plain(made.image)) == ("x/a", "a horse", plain(picture(1)))
    assert "b.png has no b.txt beside it" in skips.named["no caption"][0]


def test_rules_leave_out(pairs: Path, journal: Journal) -> None:
    write(pairs / "control" / "b.png", png(1, (3, 9)))
    config = EditsConfig(filters=FilterConfig(min_side=5))
    (unit,) = pairs_units(pairs, unit_size=9)
    skips = Skips()
    made = list(MakeEditsWorker(config=config)()(unit, skips, journal))
    assert [one.key for one in made] == ["a", "c", "d", "e"]
    assert skips.dropped == {"too small": 1}
    assert skips.named["too small"] == ["edit b"]


@pytest.mark.parametrize("make", [prompts_units, pairs_units])
def test_an_input_without_pairs_is_refused(make, tmp_path: Path) -> None:
    for name in ("target", "control"):
        (tmp_path / name).mkdir()
    (tmp_path / "seeds.json").write_text("[]")
    with pytest.raises(DataError, match="holds no pairs; name a folder that does"):
        make(tmp_path, unit_size=2)


def test_a_unit_has_something_in_it() -> None:
    with pytest.raises(ConfigError, match="unit_size is 0"):
        EditsConfig(unit_size=0)


@dataclass(frozen=True)
class Deadly:
    """Makes a worker whose process dies at the sight of a blue picture."""

    make: MakeEditsWorker

    def __call__(self):
        def look(image: Image.Image) -> int:
            if image.getpixel((0, 0)) == (0, 0, 255):
                os.kill(os.getpid(), signal.SIGKILL)
            return 1

        screen.phash = look  # in a process that has nothing else to do
        return self.make()


@pytest.mark.parametrize("kind", ["prompts", "pairs"])
def test_an_edit_that_kills_its_process_costs_itself(
    kind: str, output: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(kind)
    units = {"prompts": prompts_units, "pairs": pairs_units}[kind](source, unit_size=9)
    poison, key = {
        "prompts": ("b/5_1.jpg", "b/5"),
        "pairs": ("target/c.png", "c"),
    }[kind]
    Image.new("RGB", (8, 8), "blue").save(source / poison, "PNG")
    make = Deadly(MakeEditsWorker(config=EditsConfig()))
    wanted = {"output": output, "workers": 1, "kind": "local", "skips_limit": 0.5, "config": {}}
    summary = run(units, make, **wanted)
    assert summary.counts.skipped[DEADLY] == 1
    assert summary.counts.named[DEADLY][0].startswith(f"record {key}: 2 processes died")
    (shard,) = output.glob("*.tar")
    keys = [one.key for one in read_index(shard)]
    assert key not in keys
    assert len(keys) == len(set(keys)) == {"prompts": 7, "pairs": 4}[kind]
    assert json.loads((output / "summary.json").read_text())["counts"]["records"] == len(keys)
