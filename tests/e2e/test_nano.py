"""The story at two steps a part: from nothing to a model that generates and is judged."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel

from kosmosg.cli import main
from kosmosg.data.records import Record
from kosmosg.data.samples import to_bytes
from kosmosg.data.tars import write_shard
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld.captions import words
from kosmosg.toyworld.foundation import text_ids
from kosmosg.toyworld.nano import PARTS
from kosmosg.toyworld.streams import stage1_stream, stage2_stream, stage3_stream
from kosmosg.train.log import read_log

SMALL = ("steps=2", "optim.warmup_steps=1", "global_batch_size=4", "micro_batch=4")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace in which every part has been trained for two steps."""
    directory = tmp_path_factory.mktemp("nano")
    for part in PARTS:
        arguments = ["train", f"nano-{part}", *SMALL, "validation_records=4", "samples_every=1000"]
        assert main([*arguments, "--workspace", str(directory)]) == 0, part
    return directory


@pytest.mark.parametrize("part", ["unet", "stage2", "stage3"])
def test_a_leg_goes_on_from_what_ships(workspace: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(workspace / "nano", tmp_path / "model")
    arguments = ["train", f"nano-{part}", *SMALL, "steps=4"]  # the average is taken at the fourth
    assert main([*arguments, "--leg", "2", "--workspace", str(tmp_path)]) == 0
    folder = {"unet": "unet", "stage2": "stage2/aligner", "stage3": "aligner"}[part]
    name = "diffusion_pytorch_model.safetensors"
    files = (workspace / "nano" / folder).glob("*.safetensors")
    before = {key: value for path in files for key, value in load_file(path).items()}
    after = load_file(tmp_path / "model" / folder / name)
    moved = [(after[key] - value.float()).abs().max().item() for key, value in before.items()]
    # Steps of a short warm-up move weights a little, from where what ships had them.
    assert 0 < max(moved) < 0.02
    arguments = ["train", "nano-stage3", *SMALL, "validation_records=4", "--leg", "3"]
    assert main([*arguments, "--workspace", str(tmp_path)]) == 0  # what was written can be read


def test_text_states_end_with_a_variance_of_one(workspace: Path, tmp_path: Path) -> None:
    tower = CLIPTextModel.from_pretrained(workspace / "model" / "text_encoder")
    ids = text_ids(
        ["a creature in the snow", "two creatures at night"], Tokenizer.from_words(words())
    )
    before = tower(ids).last_hidden_state.detach()
    assert before.var().item() == pytest.approx(1, abs=0.1)
    shutil.copytree(workspace / "model", tmp_path / "model")
    arguments = ["train", "nano-unet", *SMALL, "stage.text_tower=frozen", "--leg", "2"]
    assert main([*arguments, "--workspace", str(tmp_path)]) == 0
    # What the aligner has learned to speak stays as it is.
    tower = CLIPTextModel.from_pretrained(tmp_path / "model" / "text_encoder")
    assert tower(ids).last_hidden_state.equal(before)


def test_what_ships_generates_a_picture(workspace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    prompt = ["a creature", "in the snow"]
    options = ["--model", str(workspace / "nano"), "--steps", "2", "--seed", "1", "-o", str(out)]
    assert main(["generate", *prompt, *options]) == 0
    with Image.open(out) as picture:
        assert picture.size == (64, 64)


def test_parts_draw_what_they_can_do_by_now(workspace: Path) -> None:
    drawn = sorted(path.parts[-3] for path in workspace.glob("runs/*/samples/step-00000002.png"))
    assert drawn == ["captioner", "stage1", "stage2", "stage3", "unet", "vae"]
    with Image.open(workspace / "runs/stage3/samples/step-00000002.png") as sheet:
        pictures = sheet.convert("RGB")
    # The first row: wanted, drawn, shown. A white column would be a picture that is not there.
    columns = [pictures.crop((6 + 134 * i, 36, 134 * (i + 1), 164)) for i in range(3)]
    assert all(len(column.getcolors(1 << 16)) > 50 for column in columns)


def test_what_ships_fits_the_wheel(workspace: Path) -> None:
    weights = [path.stat().st_size for path in (workspace / "nano").rglob("*.safetensors")]
    assert sum(weights) <= 46e6
    assert max(weights) <= 15e6


def test_what_ships_names_no_directory_of_this_machine(workspace: Path) -> None:
    for path in (workspace / "nano").rglob("*.json"):
        assert str(workspace) not in path.read_text(encoding="utf-8"), path


def test_what_ships_is_judged(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ("oracle", "words_only", "stage2", "stage3")
    options = ["--model", str(workspace / "nano"), "--limit", "4", "--steps", "2", "--json"]
    capsys.readouterr()
    assert main(["evaluate", "toyworld", *options, "--rows", ",".join(rows)]) == 0
    report = json.loads(capsys.readouterr().out)
    for row in rows:
        assert report[row]["n"] == 4
        assert {"shape", "body_colour", "pattern", "accessory", "place"} <= report[row].keys()


def write_shards(folder: Path, records: Iterable[Record]) -> None:
    """Write a folder for each kind of record."""
    by_kind: dict[str, list[Record]] = {}
    for record in records:
        by_kind.setdefault(type(record).__name__.lower(), []).append(record)
    for kind, own in by_kind.items():
        (folder / kind).mkdir(parents=True)
        for number in range(2):
            samples = [(record.key, to_bytes(record)) for record in own[number::2]]
            write_shard(folder / kind / f"{number}.tar", samples)


def test_stages_train_from_shards(workspace: Path, tmp_path: Path) -> None:
    shutil.copytree(workspace / "nano", tmp_path / "model")
    captions = stage2_stream(1).batch(0, 6)
    write_shards(tmp_path / "words", captions)
    write_shards(tmp_path / "pages", stage1_stream(1).batch(0, 12))
    write_shards(tmp_path / "mixed", stage3_stream(1).batch(0, 20))
    # A sample without its pictures, and one of a stage that this is not.
    bad = [("bad", {"json": to_bytes(captions[0])["json"]}), ("worse", {"txt": b""})]
    write_shard(tmp_path / "mixed" / "edit" / "2.tar", bad)
    mixed = tmp_path / "mixed"
    sources = {
        "stage1": [f"data.sources.pages.paths={tmp_path / 'pages' / 'document'}"],
        "stage2": [f"data.sources.words.paths={tmp_path / 'words' / 'caption' / '*.tar'}"],
        "stage3": [
            f"data.sources.examples.paths={mixed / 'example'}",
            "data.sources.examples.weight=2",
            f"data.sources.edits.paths={mixed / 'edit'}",
            "data.sources.edits.weight=2",
            f"data.sources.captions.paths={mixed / 'caption'}",
            "data.max_skipped=1",
            "data.workers=1",
            "data.drop=entity",
        ],
    }
    for part, changes in sources.items():
        arguments = ["train", f"nano-{part}", *SMALL, *changes, "validation_records=4"]
        more = ["steps=8", "log_every=4"] if part == "stage3" else []
        assert main([*arguments, *more, "--workspace", str(tmp_path)]) == 0, part
    packed = ["data.row=96", f"data.row_cache={tmp_path / 'rows'}", "stage.attention=document"]
    more = [f"data.sources.pages.paths={tmp_path / 'pages'}/*/*.tar", "--leg", "2"]
    arguments = ["train", "nano-stage1", *SMALL, *more, *packed, "validation_records=4"]
    assert main([*arguments, "--workspace", str(tmp_path)]) == 0
    assert len(list((tmp_path / "rows").iterdir())) == 2  # of two tars of documents
    kept = json.loads((tmp_path / "runs" / "stage3" / "config.json").read_text())
    assert kept["data"]["sources"]["edits"]["weight"] == 2
    story = json.loads((tmp_path / "runs" / "stage3" / "skips.json").read_text())
    assert sum(story["skipped"].values()) > 0
    assert set(story["skipped"]) <= {"no caption", "no target picture"}
    log = read_log(tmp_path / "runs" / "stage3")
    assert sum(story["skipped"].values()) == max(e.get("records_skipped", 0) for e in log)


def test_shards_that_are_not_there_are_named(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(workspace / "nano", tmp_path / "model")
    arguments = ["train", "nano-stage3", "data.sources.examples.paths=nowhere/*.tar"]
    assert main([*arguments, "--workspace", str(tmp_path)]) == 2
    said = "data source 'examples': nowhere/*.tar: nothing is called so; correct the pattern"
    assert capsys.readouterr().err.strip() == f"kosmosg: {said}"
    arguments = ["train", "nano-vae", "data.sources.examples.paths=nowhere"]
    assert main([*arguments, "--workspace", str(tmp_path)]) == 2
    assert "part vae draws its own pictures" in capsys.readouterr().err
