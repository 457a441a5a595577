"""docs/data.md: what it shows makes good shards; examples/shards are what the toy world gives."""

import json
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kosmosg import images
from kosmosg.data import samples, tars
from kosmosg.data.looking import kind_of, texts_of, walk
from kosmosg.data.records import Caption, Document, Edit, Entity, Example
from kosmosg.data.samples import from_bytes, to_bytes
from kosmosg.data.validate import Report, validate
from kosmosg.toyworld.scenes import COLOURS, SHAPES, is_held_out
from toys.shards import comparable, example, picture, tar_of, write

KINDS = ("documents", "captions", "examples", "edits")


def blocks(repository: Path, language: str) -> list[str]:
    page = (repository / "docs/data.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.S | re.M)


def checked(path: Path) -> Report:
    report = Report()
    assert [str(problem) for problem in validate([path], report)] == []
    return report


def test_the_shard_of_the_page_is_all_right(repository, tmp_path, monkeypatch):
    shutil.copytree(repository / "docs/images", tmp_path / "docs/images")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(repository, "python")
    exec(compile(code, "docs/data.md", "exec"), {})
    assert checked(Path("shards/mine-000.tar")).num_records == {"example": 1}


def test_the_json_of_the_page_is_all_right(repository, tmp_path):
    (said,) = blocks(repository, "json")
    files = to_bytes(Caption(key="0001", text="", image=picture(1)), pictures="jpg")
    tar = tar_of(tmp_path / "s.tar", {"0001.jpg": files["jpg"], "0001.json": said.encode()})
    report = checked(tar)
    assert (report.num_records, report.num_pictures) == ({"caption": 1}, {"caption": 1})
    assert report.num_files_unused == 0


def test_the_messages_of_the_page_are_those_that_come(repository, tmp_path):
    files = {f"000012.{name}": data for name, data in to_bytes(example("000012")).items()}
    fields = json.loads(files["000012.json"])
    fields["entities"][1]["start"] = "2"
    files["000012.json"] = json.dumps(fields).encode()
    torn = {f"000031.{name}": data for name, data in to_bytes(example("000031")).items()}
    torn["000031.0.mask.png"] = torn["000031.0.mask.png"][:45]
    tar_of(tmp_path / "b.tar", files | torn)
    write(tmp_path / "c.tar", [Caption(key="000007", text="t", image=picture(1, (99, 99)))])
    (tmp_path / "c.tar").write_bytes((tmp_path / "c.tar").read_bytes()[:1000])

    def shape(line: str) -> str:
        return re.sub(r"\.(png|jpg)", "", re.sub(r"\d+", "N", line.partition("/")[2]))

    found = validate([tmp_path / "b.tar", tmp_path / "c.tar"], Report())
    came = [shape(f"shards/{str(one).removeprefix(f'{tmp_path}/')}") for one in found]
    (shown,) = blocks(repository, "text")
    assert [shape(line) for line in shown.splitlines()] == came


def test_names_and_limits_of_the_page_are_those_of_the_code(repository):
    page = (repository / "docs/data.md").read_text()
    for limit in (
        f"a file {tars.MAX_MEMBER_BYTES // 2**20} MiB",
        f"a picture {images.MAX_PIXELS // 10**6} million pixels",
        f"{images.MAX_ASPECT} times as long as wide",
        f"a `json` {samples.MAX_JSON_BYTES // 2**20} MiB",
        f"{samples.MAX_TEXT_LENGTH:,} characters",
        f"{samples.MAX_PARTS:,} parts or entities",
        f"{tars.MAX_SAMPLE_FILES:,} files in a sample",
        f"`format_version` is {samples.FORMAT_VERSION}.",
        f"quality {samples.JPEG_QUALITY}",
    ):
        assert limit in page.replace("\n", " "), limit
    rows = {row[0]: row[2] for row in re.findall(r"^\| `(\w+)` \|([^|]*)\|([^|]*)\|", page, re.M)}
    for record in (Document, Caption, Example, Edit):
        for field in record.__dataclass_fields__.keys() - {"key", "provenance"}:
            assert f"`{field}`" in rows[record.__name__.lower()], field
    for field in Entity.__dataclass_fields__:
        assert f"`{field}`" in rows["example"]


@pytest.fixture(scope="module")
def make(repository):
    return runpy.run_path(str(repository / "examples/shards/make.py"))


@pytest.mark.parametrize("name", KINDS)
def test_the_example_shards_are_what_the_toy_world_gives(name, make, repository):
    """Texts to the letter; pixels but for the last bits of sines, which differ from machine to
    machine."""
    path = repository / f"examples/shards/{name}.tar"
    assert path.stat().st_size <= 200_000
    kept = [from_bytes(key, files) for _, key, files in walk([path])]
    drawn = make["records"](name)
    assert [(one.key, texts_of(one), one.provenance) for one in kept] == [
        (one.key, texts_of(one), one.provenance) for one in drawn
    ]
    for one, other in zip(kept, drawn, strict=True):
        pictures = list(zip(pixels(comparable(one)), pixels(comparable(other)), strict=True))
        assert len(pictures) >= (name != "documents")
        for ours, again in pictures:
            assert np.abs(ours - again).max() <= 4
    report = checked(path)
    assert report.num_records == {kind_of(drawn[0]): len(drawn)}
    assert all(one.provenance["source"] == "toyworld" for one in kept)


def pixels(value):
    """Yield the pictures of a comparable record."""
    if isinstance(value, tuple):
        size, mode, data = value
        yield np.asarray(Image.frombytes(mode, size, data).convert("RGB"), int)
    for one in value if isinstance(value, list) else ():
        yield from pixels(one)


def test_the_example_shards_have_masks_and_name_nothing_held_out(repository):
    colours, shapes = "|".join(COLOURS), "|".join(SHAPES)
    words = re.compile(rf"({colours}) ({shapes}) with (?:white|black) (\w+)")
    masks = named = 0
    for name in KINDS:
        for _, key, files in walk([repository / f"examples/shards/{name}.tar"]):
            record = from_bytes(key, files)
            if isinstance(record, Example):
                masks += sum(entity.mask is not None for entity in record.entities)
            for text in texts_of(record):
                for colour, shape, pattern in words.findall(text):
                    named += 1
                    assert not is_held_out(shape, colour, pattern), text
    assert masks >= 12
    assert named >= 20
