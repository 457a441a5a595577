"""Rules: what each leaves out, and that none does unless it is set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from kosmosg.construct.filters import (
    ClassifierConfig,
    FilterConfig,
    load_judge,
    refuse_caption,
    refuse_picture,
)
from kosmosg.construct.screen import passing_records
from kosmosg.data.records import Edit
from kosmosg.data.skips import Skips
from kosmosg.errors import ConfigError

WIDE = Image.new("RGB", (40, 10))


@pytest.mark.parametrize(
    ("config", "said", "reason"),
    [
        ({}, {"punsafe": "1", "nsfw": "NSFW"}, None),
        ({"min_side": 10}, {}, None),
        ({"min_side": 11}, {}, "too small"),
        ({"max_aspect": 4.0}, {}, None),
        ({"max_aspect": 3.9}, {}, "too long"),
        ({"unsafe_labels": ("NSFW", "unsure")}, {"nsfw": "UNSURE"}, "labelled unsafe"),
        ({"unsafe_labels": ("NSFW",)}, {"nsfw": "UNSURE"}, None),
        ({"unsafe_labels": ("NSFW",)}, {}, None),
        ({"max_unsafe": 0.5}, {"punsafe": "0.5"}, None),
        ({"max_unsafe": 0.5}, {"punsafe": "0.51"}, "unsafe"),
        ({"max_unsafe": 0.5}, {}, "no safety score"),
        ({"max_unsafe": 0.5}, {"punsafe": "nan"}, "no safety score"),
        ({"max_unsafe": 0.5}, {"punsafe": "no"}, "no safety score"),
    ],
)
def test_pictures(config: dict, said: dict[str, str], reason: str | None) -> None:
    assert refuse_picture(WIDE, said, FilterConfig(**config), None) == reason


@pytest.mark.parametrize(("score", "reason"), [(0.4, None), (0.6, "unsafe")])
def test_a_judge_scores_what_has_no_score(score: float, reason: str | None) -> None:
    config = FilterConfig(max_unsafe=0.5)
    assert refuse_picture(WIDE, {}, config, lambda _: [score]) == reason
    assert refuse_picture(WIDE, {"punsafe": "0.1"}, config, lambda _: [score]) is None


def test_of_an_edit_the_judge_sees_every_picture() -> None:
    def judge(images: Sequence[Image.Image]) -> list[float]:
        return [float(np.asarray(image).mean() / 255) for image in images]

    black, white = (Image.new("RGB", (8, 8), name) for name in ("black", "white"))
    edits = [
        Edit(key=key, caption="", before=before, instruction="go", after=after)
        for key, before, after in (
            ("a", (black, black), black),
            ("b", (black, white), black),
            ("c", (black, black), white),
        )
    ]
    skips = Skips()
    taken = passing_records(edits, FilterConfig(max_unsafe=0.5), judge, skips)
    assert [edit.key for edit in taken] == ["a"]
    assert skips.named == {"unsafe": ["edit b", "edit c"]}


def test_captions() -> None:
    config = FilterConfig(min_caption=3, max_caption=5)
    reasons = [refuse_caption(caption, config) for caption in ("ab", "abc", "abcde", "abcdef")]
    assert reasons == ["caption too short", None, None, "caption too long"]
    assert refuse_caption("", FilterConfig()) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_aspect": 0.5},
        {"min_caption": 9, "max_caption": 3},
        {"max_unsafe": 2.0},
        {"classifier": ClassifierConfig(directory="x")},
    ],
)
def test_rules_that_make_no_sense(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        FilterConfig(**wrong)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        id2label={0: "normal", 1: "NSFW"},
        label2id={"normal": 0, "NSFW": 1},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTForImageClassification(config)
        torch.nn.init.normal_(model.classifier.weight)
        model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_a_classifier_of_transformers_judges(classifier: Path) -> None:
    device = torch.device("cpu")
    pictures = [Image.new("RGB", (20, 30), colour) for colour in ("red", "white")]
    judge = load_judge(classifier, ClassifierConfig(directory="", unsafe=("nsfw",)), device=device)
    every = ClassifierConfig(directory="", unsafe=("nsfw", "normal"))
    scores = judge(pictures)
    model = ViTForImageClassification.from_pretrained(classifier).eval()
    look = ViTImageProcessorPil.from_pretrained(classifier)
    with torch.no_grad():
        logits = model(**look(images=pictures, return_tensors="pt")).logits
    assert scores == pytest.approx(logits.softmax(-1)[:, 1].tolist(), abs=1e-6)
    assert scores[0] != pytest.approx(scores[1], abs=1e-3)
    assert load_judge(classifier, every, device=device)(pictures) == pytest.approx([1, 1])


def test_a_classifier_without_the_class_names_those_it_has(classifier: Path) -> None:
    config = ClassifierConfig(directory="", unsafe=("porn",))
    with pytest.raises(ConfigError, match="knows normal, nsfw, not porn"):
        load_judge(classifier, config, device=torch.device("cpu"))


def test_a_damaged_classifier_is_one_line(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((classifier / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"damaged!")
    with pytest.raises(ConfigError, match=r"fetch Falconsai/nsfw_image_detection again"):
        load_judge(tmp_path, ClassifierConfig(directory=""), device=torch.device("cpu"))
