"""Units of pictures, what is known of them, and a worker that makes them into examples."""

import dataclasses
import io
import json
import os
import pickle
import shutil
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kosmosg.construct import chain
from kosmosg.construct.chain import MakeWorker, examples
from kosmosg.construct.config import ClipSegConfig, ConstructConfig, MllmConfig, RuleConfig
from kosmosg.construct.example import ONE_MASK, Source
from kosmosg.construct.executor import run
from kosmosg.construct.filters import FilterConfig
from kosmosg.construct.folder import FolderUnit, TarUnit, list_units, sources_of
from kosmosg.construct.journal import DEADLY, Journal
from kosmosg.construct.leaks import LEAK, Leaks
from kosmosg.construct.models import load, provenance_of
from kosmosg.construct.openimages import Licences, index_licences
from kosmosg.construct.phash import centre_square, phash
from kosmosg.data.skips import Skips
from kosmosg.data.tars import read_index
from kosmosg.errors import ConfigError, DataError
from kosmosg.tokenizer import Tokenizer
from toys.construct import save_own_clipseg
from toys.nano import save_toy_nano
from toys.photos import photo


def jpeg(colour: str = "red", size: tuple[int, int] = (40, 32)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "b").mkdir(parents=True)
    for name in ("c.jpg", "a 1.jpg", "b/d.jpg", "b/e.jpg", "f.jpg"):
        (folder / name).write_bytes(jpeg())
    (folder / "c.txt").write_text("a red fox\n")
    (folder / "notes.md").write_text("no picture")
    return folder


def test_a_folder_is_cut_the_same_way_each_time(pictures: Path) -> None:
    units = list_units(pictures, unit_size=2)
    assert [unit.name for unit in units] == ["000000", "000001", "000002"]
    assert [unit.names for unit in units if isinstance(unit, FolderUnit)] == [
        ("a 1.jpg", "b/d.jpg"),
        ("b/e.jpg", "c.jpg"),
        ("f.jpg",),
    ]
    assert units == list_units(pictures, unit_size=2) == pickle.loads(pickle.dumps(units))
    keys = [key for unit in units if isinstance(unit, FolderUnit) for key in unit.keys]
    assert keys[1:] == ["b/d", "b/e", "c", "f"]
    assert keys[0].startswith("a_1-")


def test_captions_beside_are_read_where_they_are_wanted(pictures: Path, journal: Journal) -> None:
    (unit,) = list_units(pictures, unit_size=9)
    for captions, expected in (("beside", "a red fox"), ("made", None)):
        skips = Skips()
        sources = list(sources_of(unit, skips, journal, source="folder", captions=captions))
        assert [source.caption for source in sources] == [None, None, None, expected, None]
        assert dict(sources[3].provenance) == {"source": "folder", "source_id": "c"}


def test_a_bad_picture_is_skipped_and_named(pictures: Path, journal: Journal) -> None:
    (pictures / "c.jpg").write_bytes(jpeg()[:100])
    (pictures / "f.jpg").unlink()
    (pictures / "f.jpg").symlink_to("nowhere")
    skips = Skips()
    (unit,) = list_units(pictures, unit_size=9)
    keys = [one.key for one in sources_of(unit, skips, journal, source="folder", captions="made")]
    assert len(keys) == 3
    assert skips.reasons == {"unreadable picture": 2}
    assert "c.jpg" in skips.named["unreadable picture"][0]


def test_tars_are_units_by_name_and_tell_what_they_know(tmp_path: Path, journal: Journal) -> None:
    told = {"caption": "a red fox", "url": "http://a/b", "status": "success", "width": 3}
    write_tar(
        tmp_path / "in/00001.tar",
        {
            "000010000.jpg": jpeg(),
            "000010000.json": json.dumps(told).encode(),
            "000010001.jpg": jpeg("blue"),
            "000010001.txt": b"a blue whale",
            "000010002.json": json.dumps({"status": "failed_to_download"}).encode(),
            "000010003.jpg": b"not a picture",
        },
    )
    write_tar(tmp_path / "in/00000.tar", {"x.png": jpeg()})
    units = list_units(tmp_path / "in", unit_size=2)
    assert [unit.name for unit in units] == ["00000", "00001"]
    assert all(isinstance(unit, TarUnit) for unit in units)
    skips = Skips()
    first, second = sources_of(units[1], skips, journal, source="openimages", captions="beside")
    assert (first.key, first.caption) == ("00001/000010000", "a red fox")
    assert dict(first.provenance) == {
        "source": "openimages",
        "source_id": "000010000",
        "url": "http://a/b",
    }
    assert second.caption == "a blue whale"
    assert skips.reasons == {"missing picture": 1, "unreadable picture": 1}


def test_half_a_tar_gives_what_is_whole(tmp_path: Path, journal: Journal) -> None:
    tar = write_tar(tmp_path / "a.tar", {f"{n}.jpg": jpeg() for n in range(4)})
    third = list(read_index(tar))[2].members["jpg"]
    tar.write_bytes(tar.read_bytes()[: third.offset + third.size // 2])
    skips = Skips()
    (unit,) = list_units(tar, unit_size=2)
    found = list(sources_of(unit, skips, journal, source="folder", captions="made"))
    assert [source.key for source in found] == ["a/0"]
    assert skips.num_skipped == 1


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "missing file"),
        ({"a.txt": b""}, "missing file"),
        ({"a.tar": b"", "b.jpg": b""}, "mixed input"),
        ({"a/b.tar": b"", "a-b.tar": b""}, "key twice"),
    ],
)
def test_an_input_that_is_none(tmp_path: Path, files: dict[str, bytes], reason: str) -> None:
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        list_units(tmp_path, unit_size=2)
    assert caught.value.reason == reason


def test_a_picture_alone_or_nothing_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    for path in (tmp_path / "a.jpg", tmp_path / "b"):
        with pytest.raises(DataError):
            list_units(path, unit_size=2)


TABLE = """ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title
0a1,train,https://f/1.jpg,https://f/1,https://cc/by/2.0/,https://f/me,"Doe, Jo",x
0a2,train,https://f/2.jpg,https://f/2,https://cc/by/2.0/,https://f/me,,y
"""


def test_licences_are_found_by_id(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE)
    (tmp_path / "u.csv").write_text("ImageID,License\n0b1,CC0\n0a2,CC0\n")
    index = index_licences([tmp_path / "t.csv", tmp_path / "u.csv"], tmp_path / "i.sqlite")
    licences = pickle.loads(pickle.dumps(Licences(index)))
    many = [f"none{number}" for number in range(1200)]
    assert licences.of(["0a1", *many, "0b1", "0a2"]) == {
        "0a1": {
            "url": "https://f/1.jpg",
            "license": "https://cc/by/2.0/",
            "author": "Doe, Jo",
        },
        "0b1": {"license": "CC0"},
        "0a2": {"license": "CC0"},
    }
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "", "ImageID\n1\n", "\xff\xfe"])
def test_a_wrong_table_leaves_no_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"t\.csv"):
        index_licences([tmp_path / "t.csv"], tmp_path / "i.sqlite")
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    with pytest.raises(ConfigError, match=r"i\.sqlite"):
        Licences(tmp_path / "i.sqlite").of(["1"])


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_toy_nano(directory)
    tokenizer = Tokenizer.from_pretrained(directory / "tokenizer")
    save_own_clipseg(directory / "segmenter", tokenizer.vocab_size)
    return directory


def config_of(model_dir: Path, **more: object) -> ConstructConfig:
    fields = {
        "captioner": MllmConfig(directory=str(model_dir), max_new_tokens=3),
        "captions": "beside",
        "size": 32,
        "batch_size": 2,
        "device": "cpu",
    }
    return ConstructConfig(
        entities=RuleConfig(),
        segmenter=ClipSegConfig(
            directory=str(model_dir / "segmenter"), dtype="float32", threshold=0.01
        ),
        **(fields | more),
    )


def test_a_worker_makes_a_units_examples_with_real_models(
    pictures: Path, model_dir: Path, journal: Journal
) -> None:
    (pictures / "b/d.txt").write_text("a blue star on a red thing")
    (pictures / "b/e.txt").write_text("it is red")
    (pictures / "f.jpg").write_bytes(b"")
    (pictures / "a 1.jpg").unlink()
    config = config_of(model_dir)
    provenance = provenance_of(config)
    make_worker = pickle.loads(
        pickle.dumps(MakeWorker(config=config, source="folder", provenance=provenance))
    )
    worker = make_worker()
    skips = Skips()
    (unit,) = list_units(pictures, unit_size=9)
    made = list(worker(unit, skips, journal))
    assert [(one.key, one.caption) for one in made] == [
        ("b/d", "a blue star on a red thing"),
        ("c", "a red fox"),
    ]
    assert [entity.mention for entity in made[0].entities] == ["blue star", "red thing"]
    assert made[0].image.size == (32, 32)
    said = made[0].provenance
    models = {"captioner", "entities", "segmenter"}
    assert said.keys() == {"source", "source_id", "kosmosg", "phash"} | models
    assert said["segmenter"].startswith("segmenter sha256:")
    assert skips.num_kept == 2
    assert skips.reasons == {"unreadable picture": 1}
    assert skips.dropped == {"no entities": 1}
    again = Skips()
    assert [one.key for one in worker(unit, again, journal)] == ["b/d", "c"]


def test_a_worker_tells_whose_a_picture_is(
    pictures: Path, model_dir: Path, tmp_path: Path, journal: Journal
) -> None:
    (tmp_path / "t.csv").write_text("ImageID,License\nc,CC0\n")
    licences = Licences(index_licences([tmp_path / "t.csv"], tmp_path / "i.sqlite"))
    make_worker = MakeWorker(
        config=config_of(model_dir, captioner=None),
        source="openimages",
        provenance={},
        licences=licences,
    )
    (unit,) = list_units(pictures, unit_size=9)
    (made,) = make_worker()(unit, Skips(), journal)
    said = {"source": "openimages", "source_id": "c", "license": "CC0"}
    assert dict(made.provenance) == {**said, "phash": f"{phash(made.image):016x}"}


def test_a_worker_leaves_out_what_rules_and_evaluation_sets_say(
    pictures: Path, model_dir: Path, journal: Journal
) -> None:
    for name, text in (
        ("b/d", "a red star"),
        ("b/e", "a red star on a red thing"),
        ("f", "a red x"),
    ):
        (pictures / f"{name}.txt").write_text(text)
    (pictures / "a 1.jpg").write_bytes(jpeg(size=(90, 20)))
    photo(1).save(pictures / "f.jpg")
    make_worker = MakeWorker(
        config=config_of(
            model_dir,
            captioner=None,
            filters=FilterConfig(max_aspect=3.0, max_caption=12),
        ),
        source="folder",
        provenance={},
        leaks=Leaks(hashes=(phash(centre_square(photo(1))),), names=("dog/00.jpg",)),
    )
    (unit,) = list_units(pictures, unit_size=9)
    skips = Skips()
    made = list(pickle.loads(pickle.dumps(make_worker))()(unit, skips, journal))
    assert [one.key for one in made] == ["b/d", "c"]
    assert skips.dropped == {"too long": 1, "caption too long": 1, LEAK: 1}
    assert skips.named[LEAK] == ["picture f is dog/00.jpg"]
    assert skips.reasons == {}


def test_provenance_changes_with_the_weights(model_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model_dir / "segmenter", tmp_path / "segmenter")
    shutil.copytree(model_dir / "tokenizer", tmp_path / "tokenizer")
    config = config_of(model_dir)
    moved = ClipSegConfig(directory=str(copy), dtype="float32")
    said = provenance_of(config)
    assert provenance_of(config_of(model_dir))["segmenter"] == said["segmenter"]
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    changed = provenance_of(dataclasses.replace(config, segmenter=moved))
    assert changed["captioner"] == said["captioner"]
    assert changed["segmenter"] != said["segmenter"]


def test_a_model_that_is_not_there_says_where_to_get_it(model_dir: Path, tmp_path: Path) -> None:
    config = config_of(model_dir)
    absent = ClipSegConfig(directory=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="hf download CIDAS/clipseg-rd64-refined --local-dir"):
        provenance_of(dataclasses.replace(config, segmenter=absent))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    (tmp_path / "old" / "pytorch_model.bin").write_text("")
    pickled = ClipSegConfig(directory=str(tmp_path / "old"))
    with pytest.raises(ConfigError, match="safetensors"):
        provenance_of(dataclasses.replace(config, segmenter=pickled))


def test_a_picture_that_breaks_a_model_costs_itself(model_dir: Path) -> None:
    def captioner(images: list[Image.Image]) -> list[str]:
        if any(image.getpixel((0, 0)) == (0, 0, 255) for image in images):
            raise RuntimeError("CUDA error")
        return ["a red fox" for _ in images]

    config = config_of(model_dir, batch_size=4)
    steps = dataclasses.replace(load(config), captioner=captioner)
    colours = ("red", "blue", "red", "green")
    batch = [
        Source(key=f"{number}", image=Image.new("RGB", (40, 32), colour))
        for number, colour in enumerate(colours)
    ]
    skips = Skips()
    made = list(examples(batch, steps, config, skips, provenance={}))
    assert [one.key for one in made] == ["0", "2", "3"]
    assert skips.reasons == {"RuntimeError": 1}
    assert "picture 1: RuntimeError: CUDA error" in skips.named["RuntimeError"][0]


def test_one_mask_for_two_things_is_a_rule_and_no_bad_picture(model_dir: Path) -> None:
    def segmenter(images: list[Image.Image], phrases: list[str]) -> list[np.ndarray]:
        assert len(images) == len(phrases)
        return [np.eye(8, dtype=np.float32).repeat(2, 0) for _ in phrases]

    config = config_of(model_dir, max_overlap=0.5)
    steps = dataclasses.replace(load(config), segmenter=segmenter)
    batch = [
        Source(key=caption.replace(" ", "-"), image=Image.new("RGB", (8, 8)), caption=caption)
        for caption in ("a red fox", "a red fox and a star", "a star")
    ]
    skips = Skips(limit=0.0)
    made = list(examples(batch, steps, config, skips, provenance={}))
    assert [one.key for one in made] == ["a-red-fox", "a-star"]
    assert skips.dropped == {ONE_MASK: 1}
    assert skips.reasons == {}
    assert skips.named[ONE_MASK][0].startswith("picture a-red-fox-and-a-star: two things of")


@dataclasses.dataclass(frozen=True)
class Deadly:
    """Makes a worker whose segmenter kills its process at the sight of a blue picture."""

    make: MakeWorker

    def __call__(self):
        steps = load(self.make.config)

        def segmenter(images: list[Image.Image], phrases: list[str]) -> list[np.ndarray]:
            if any(np.asarray(image)[0, 0, 2] > 200 for image in images):
                os.kill(os.getpid(), signal.SIGKILL)
            return steps.segmenter(images, phrases)

        with pytest.MonkeyPatch.context() as patch:
            changed = dataclasses.replace(steps, segmenter=segmenter)
            patch.setattr(chain, "load", lambda _config: changed)
            return self.make()


def test_a_picture_at_which_a_model_kills_its_process_costs_itself(
    pictures: Path, model_dir: Path, output: Path
) -> None:
    for picture in pictures.rglob("*.jpg"):
        picture.with_suffix(".txt").write_text("a red fox")
    (pictures / "b/e.jpg").write_bytes(jpeg("blue"))
    config = config_of(model_dir, captioner=None, batch_size=4)
    make = MakeWorker(config=config, source="folder", provenance={})
    units = list_units(pictures, unit_size=9)
    wanted = {"output": output, "workers": 1, "kind": "local", "skips_limit": 0.5, "config": {}}
    summary = run(units, Deadly(make), **wanted)
    (shard,) = output.glob("*.tar")
    keys = [one.key for one in read_index(shard)]
    assert keys[1:] == ["b/d", "c", "f"]
    assert keys[0].startswith("a_1-")
    assert summary.counts.skipped == {DEADLY: 1}
    assert summary.counts.named[DEADLY][0].startswith("record b/e: ")


def test_a_server_that_is_down_is_no_pictures_fault(model_dir: Path) -> None:
    def finder(captions: list[str]) -> list[list[str]]:
        raise ConfigError(f"the server does not answer of {len(captions)} captions")

    config = config_of(model_dir)
    steps = dataclasses.replace(load(config), finder=finder)
    source = Source(key="a", image=Image.new("RGB", (40, 32)), caption="a fox")
    with pytest.raises(ConfigError, match="does not answer"):
        list(examples([source], steps, config, Skips(), provenance={}))
