import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from kosmosg.data.records import Caption
from kosmosg.data.sources import DataConfig, SourceConfig
from kosmosg.train.readiness import missing, sizes
from kosmosg.train.stage1_language import LanguageConfig
from kosmosg.train.stage2_align import AlignConfig
from kosmosg.train.stage3_instruct import InstructConfig
from kosmosg.train.start import ModelConfig
from toys.shards import write

LANGUAGE = LanguageConfig(trainable=("*",))
ALIGN = AlignConfig(padding="masked", mllm="eval")
INSTRUCT = InstructConfig(trainable=("*",))


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    (tmp_path / "tars").mkdir()
    write(tmp_path / "tars" / "0.tar", [Caption(key="c", text="a cat")])
    return DataConfig(sources={"captions": SourceConfig(paths=str(tmp_path / "tars"))})


def test_a_whole_model_and_data_lack_nothing(toy_dir: Path, data: DataConfig) -> None:
    assert missing(INSTRUCT, init=str(toy_dir), data=data, model=ModelConfig()) == []


def test_held_out_tars_are_looked_for_too(toy_dir: Path, data: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, why in (("no/where", "no such file"), (str(tmp_path / "empty"), "has no *.tar")):
        held = dataclasses.replace(data, validation={"held": SourceConfig(paths=path)})
        (line,) = missing(INSTRUCT, init=str(toy_dir), data=held, model=ModelConfig())
        assert why in line
        assert line.endswith(": data.validation.held.paths=FOLDER")


def test_a_new_model_needs_clip_and_a_tokenizer(tmp_path: Path, data: DataConfig) -> None:
    lines = missing(LANGUAGE, init=None, data=data, model=ModelConfig(clip="no/clip"))
    assert lines == [
        "CLIP's vision tower is not at no/clip; name its directory: model.clip=DIR",
        "a tokenizer is not named; name its directory: model.tokenizer=DIR",
    ]
    there = ModelConfig(clip=str(tmp_path), tokenizer=str(tmp_path))
    assert missing(LANGUAGE, init=None, data=data, model=there) == []


def test_each_missing_thing_is_a_line_with_its_remedy(toy_dir: Path, tmp_path: Path) -> None:
    part = tmp_path / "after-stage1"
    shutil.copytree(toy_dir, part)
    for name in ("aligner", "unet", "tokenizer"):
        shutil.rmtree(part / name)
    next((part / "mllm").glob("*.safetensors")).unlink()
    gone = DataConfig(sources={"a": SourceConfig(paths="no/where")})
    lines = missing(INSTRUCT, init=str(part), data=gone, model=ModelConfig(base="no/base"))
    expected = [
        "data source 'a': no/where: .* data.sources.a.paths=FOLDER",
        "a tokenizer is not named; .*model.tokenizer=DIR",
        "the weights .*mllm.* are missing; .*model.new=.mllm.",
        "aligner/config.json is missing; .*model.new=.aligner.",
        f"unet is not at {part}/unet or no/base/unet; .*model.base=DIR",
    ]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert "\n" not in line
        assert re.search(pattern, line), line


def test_what_is_made_new_is_not_missed(toy_dir: Path, tmp_path: Path, data: DataConfig) -> None:
    part = tmp_path / "after-stage1"
    shutil.copytree(toy_dir, part, ignore=shutil.ignore_patterns("aligner"))
    made = ModelConfig(new=("aligner",))
    assert missing(INSTRUCT, init=str(part), data=data, model=made) == []
    assert missing(INSTRUCT, init="no/model", data=None, model=made)[:2] == [
        "no data is named; name a folder or tars: data.sources.NAME.paths=FOLDER",
        "no model at no/model to start from; name the directory of one: init=DIR",
    ]


def test_stage_2_needs_the_text_tower_of_the_base(
    toy_dir: Path, tmp_path: Path, data: DataConfig
) -> None:
    (line,) = missing(ALIGN, init=str(toy_dir), data=data, model=ModelConfig())
    assert f"text_encoder is not at {toy_dir}/text_encoder; name a directory of Stable" in line
    (tmp_path / "base" / "text_encoder").mkdir(parents=True)
    (tmp_path / "base" / "text_encoder" / "config.json").write_text("{}")
    there = ModelConfig(base=str(tmp_path / "base"))
    assert missing(ALIGN, init=str(toy_dir), data=data, model=there) == []


def test_sizes_are_those_of_what_is_there(toy_dir: Path) -> None:
    found = sizes(init=str(toy_dir), model=ModelConfig(aligner={"dropout": 0.5}))
    assert found.mllm["hidden_size"] == 32
    assert found.aligner["num_queries"] == 6
    assert found.aligner["dropout"] == 0.5
    assert found.unet["cross_attention_dim"] == 16
    assert found.text_encoder["hidden_size"] == 768  # the release's: the toy has none
    released = sizes(init=None, model=ModelConfig(mllm={"num_hidden_layers": 2}))
    assert released.mllm == {"num_hidden_layers": 2}
    fresh = sizes(init=str(toy_dir), model=ModelConfig(new=("aligner",)))
    assert fresh.aligner == {}
