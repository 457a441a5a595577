import json

import pyarrow
import pytest
from pyarrow import parquet

from kosmosg.data.readers.formats import READERS, detect
from kosmosg.data.records import Caption
from kosmosg.data.samples import to_bytes
from kosmosg.data.tars import write_shard
from kosmosg.errors import ConfigError, DataError
from toys.foreign import base64_png, img2dataset_tar, png, write, write_tar


def table(path, **row):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist([row]), path)


P = base64_png(1)
LAYOUTS = {
    "img2dataset": lambda d: img2dataset_tar(d / "00000.tar", range(1)),
    "parquet": lambda d: (img2dataset_tar(d / "0.tar", range(1)), table(d / "m.parquet", URL="a")),
    "captions-tsv": lambda d: write(d / "a.tsv", "a dog\thttp://a\n"),
    "mmc4": lambda d: write(d / "a.jsonl", {"text_list": [], "image_info": []}),
    "obelics": lambda d: table(d / "a.parquet", images=["a"], texts=["a"]),
    "instructpix2pix": lambda d: write(d / "a" / "prompt.json", {}),
    "folders": lambda d: (write(d / "target" / "a.png", png(1)), write(d / "target/a.txt", "a")),
    "text": lambda d: write(d / "deep" / "a.txt", "words"),
    "tsv-laion": lambda d: write(d / "a.tsv", f"0\ta\t{P}\t400\t400\r\n"),
    "tsv-instructpix2pix": lambda d: write(d / "a.tsv", f"a\tb\t{P}\t{P}\n"),
    "tsv-openimages": lambda d: write(d / "a.tsv", f"a\tb\t{P}\t{P}\t{P}\n"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_files_tell(tmp_path, name):
    LAYOUTS[name](tmp_path)
    assert detect(tmp_path) == name


def test_each_format_can_be_told_but_one():
    """What is read of LAION's rows for stage 2 is for the user to say."""
    assert READERS.keys() - LAYOUTS.keys() == {"tsv-laion-text"}


@pytest.mark.parametrize(
    ("lay", "name"),
    [
        (lambda d: write(d / "seeds.json", []), "instructpix2pix"),
        (lambda d: write(d / "shard-00" / "a" / "prompt.json", {}), "instructpix2pix"),
        (lambda d: write(d / "a.jsonl", {"images": [], "texts": []}), "obelics"),
        (lambda d: write(d / "a.jsonl", '\n{"text": "a"}\n'), "text"),
        (lambda d: (write(d / "a.jpg", png(1)), write(d / "a.txt", "a dog")), "folders"),
        (lambda d: (write(d / "a.jpg", png(1)), LAYOUTS["mmc4"](d)), "mmc4"),
        (lambda d: (img2dataset_tar(d / "0.tar", range(1)), LAYOUTS["mmc4"](d)), "mmc4"),
        (lambda d: write(d / "control_path_1" / "a.jpg", png(1)), "folders"),
    ],
)
def test_other_layouts_that_tell(tmp_path, lay, name):
    lay(tmp_path)
    assert detect(tmp_path) == name


def test_the_list_of_the_released_loaders_tells_by_its_first_row(tmp_path):
    write(tmp_path / "rows" / "0.tsv", f"a\tb\t{P}\t{P}\n")
    write(tmp_path / "json" / "train.json", [{"source": ["rows/0.tsv"], "weight": 1}])
    assert detect(tmp_path) == detect(tmp_path / "json" / "train.json") == "tsv-instructpix2pix"


def test_single_files_tell(tmp_path):
    LAYOUTS["mmc4"](tmp_path)
    LAYOUTS["text"](tmp_path)
    assert detect(tmp_path / "a.jsonl") == "mmc4"
    assert detect(tmp_path / "deep" / "a.txt") == "text"


@pytest.mark.parametrize(
    ("lay", "message"),
    [
        (lambda d: (LAYOUTS["text"](d), LAYOUTS["img2dataset"](d)), "img2dataset or text"),
        (lambda d: write(d / "a.xyz", "a"), "is in no format that is known"),
        (lambda d: write(d / "a.jsonl", {"a": 1}), "is in no format that is known"),
        (lambda d: write(d / "a.tsv", "a\n"), "is in no format that is known"),
        (lambda d: write(d / "json" / "train.json", []), "is in no format that is known"),
        (lambda d: write_tar(d / "a.tar", {"a.bin": b""}), "is in no format that is known"),
        (
            lambda d: write_shard(d / "a.tar", [("a", to_bytes(Caption(key="a", text="a")))]),
            "one of our own shards",
        ),
    ],
)
def test_what_does_not_tell_is_an_error(tmp_path, lay, message):
    lay(tmp_path)
    with pytest.raises(ConfigError, match=message):
        detect(tmp_path)


@pytest.mark.parametrize(
    "lay",
    [
        lambda d: write(d / "a.jsonl", "{"),
        lambda d: write(d / "a.parquet", b""),
        lambda d: write(d / "a.tar", b"x" * 600),
        lambda d: write(d / "json" / "train.json", json.dumps(7)),
    ],
)
def test_a_damaged_first_file_is_an_error(tmp_path, lay):
    lay(tmp_path)
    with pytest.raises(DataError):
        detect(tmp_path)


def test_a_path_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        detect(tmp_path / "none")
