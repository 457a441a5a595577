from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTokenizer, ViTModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.evaluate.features import clip, dino, find_weights, inception
from toys.encoders import save_all

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_all(tmp_path_factory.mktemp("encoders") / "weights")


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (90, 60), (41, 77)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]


def test_clips_features_of_pictures_are_transformers_own(weights: Path) -> None:
    directory = find_weights("clip-b32", weights)
    model = CLIPModel.from_pretrained(directory).eval()
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    with torch.no_grad():
        inputs = processor(pictures(), return_tensors="pt")
        expected = model.visual_projection(model.vision_model(**inputs).pooler_output)
    encoder = clip(directory, device=CPU)
    assert torch.allclose(encoder.pictures(pictures()), expected, atol=1e-5)
    assert encoder.name == "clip-vit-base-patch32"
    assert "shorter side 32 bicubic with antialias" in encoder.view


def test_clips_features_of_texts_are_transformers_own_and_long_ones_keep_their_end(
    weights: Path,
) -> None:
    directory = find_weights("clip-b32", weights)
    model = CLIPModel.from_pretrained(directory).eval()
    tokenizer = CLIPTokenizer.from_pretrained(directory)
    encoder = clip(directory, device=CPU)
    assert encoder.texts is not None
    texts = ["a red dog", "a dog on the beach in the jungle on the beach in the jungle"]
    found = encoder.texts(texts)
    for text, row in zip(texts, found, strict=True):
        ids = tokenizer(text).input_ids
        if len(ids) > 8:
            ids = [*ids[:7], ids[-1]]
        with torch.no_grad():
            pooled = model.text_model(input_ids=torch.tensor([ids])).pooler_output
            expected = model.text_projection(pooled)[0]
        assert torch.allclose(row, expected, atol=1e-5)


def test_dinos_features_are_transformers_own(weights: Path) -> None:
    directory = find_weights("dino", weights)
    model = ViTModel.from_pretrained(directory, add_pooling_layer=False).eval()
    # Resized to 64, of which the middle 56 are seen: 256 and 224 at toy size.
    square = [picture.resize((64, 64)) for picture in pictures()]
    processor = ViTImageProcessorPil(
        do_resize=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    middles = [picture.crop((4, 4, 60, 60)) for picture in square]
    with torch.no_grad():
        inputs = processor(middles, return_tensors="pt")
        expected = model(**inputs).last_hidden_state[:, 0]
    assert torch.allclose(dino(directory, device=CPU).pictures(square), expected, atol=1e-5)


def test_a_picture_far_from_square_is_cut_in_its_middle(weights: Path) -> None:
    encoder = dino(find_weights("dino", weights), device=CPU)
    rng = np.random.default_rng(1)
    wide = rng.integers(0, 256, (64, 160, 3), np.uint8)
    middle = Image.fromarray(wide[:, 48:112])
    assert torch.allclose(encoder.pictures([Image.fromarray(wide)]), encoder.pictures([middle]))


def test_what_inception_sees_depends_on_the_filter(weights: Path) -> None:
    path = find_weights("inception", weights)
    aliased, smooth = (
        inception(path, resize=resize, device=CPU) for resize in ("tensorflow", "antialiased")
    )
    flat = [Image.new("RGB", (600, 450), (200, 30, 90))]
    assert torch.allclose(aliased.pictures(flat), smooth.pictures(flat), atol=1e-4)
    rough = [pictures()[0].resize((900, 900), Image.Resampling.NEAREST)]
    assert not torch.allclose(aliased.pictures(rough), smooth.pictures(rough), rtol=1e-3)
    assert aliased.sha256 == smooth.sha256
    assert aliased.view != smooth.view


def test_missing_weights_are_named_with_their_source_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KOSMOSG_WEIGHTS_DIR", raising=False)
    with pytest.raises(ConfigError, match="--weights DIR, or set KOSMOSG_WEIGHTS_DIR"):
        find_weights("dino", None)
    monkeypatch.setenv("KOSMOSG_WEIGHTS_DIR", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"dino-vits16 is missing; get https://huggingface"):
        find_weights("dino", None)
    (tmp_path / "dino-vits16").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot load .*dino-vits16: .*config.json"):
        dino(find_weights("dino", None), device=CPU)


def test_inceptions_weights_are_taken_as_they_are_published(weights: Path, tmp_path: Path) -> None:
    converted = find_weights("inception", weights)
    with pytest.raises(CheckpointError, match=r"6726825d\.pth is missing; get https://github"):
        find_weights("inception", tmp_path)
    published = {**load_file(converted), "fc.weight": torch.zeros(8, 2048)}
    torch.save(published, tmp_path / "weights-inception-2015-12-05-6726825d.pth")
    path = find_weights("inception", tmp_path)
    one, other = (inception(p, resize="antialiased", device=CPU) for p in (path, converted))
    assert torch.equal(one.pictures(pictures()), other.pictures(pictures()))


def test_weights_of_another_network_are_refused(weights: Path) -> None:
    other = find_weights("dino", weights) / "model.safetensors"
    with pytest.raises(CheckpointError, match="does not fit FID's Inception: "):
        inception(other, resize="tensorflow", device=CPU)
