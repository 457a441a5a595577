import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from kosmosg import release, sequence
from kosmosg.construct.caption import blip2, load_speaker, mllm_captioner, speaker_part
from kosmosg.errors import CheckpointError
from kosmosg.tokenizer import Tokenizer
from toys.construct import save_blip2
from toys.nano import save_toy_nano

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def blip2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip2(tmp_path_factory.mktemp("blip2"))


def picture(colour: str, size: tuple[int, int] = (20, 30)) -> Image.Image:
    return (
        Image.radial_gradient("L")
        .resize(size)
        .convert("RGB")
        .point(lambda value: value if colour == "red" else 255 - value)
    )


def test_blip2_says_of_each_picture_what_it_says_of_it_alone(blip2_dir: Path) -> None:
    captioner = blip2(blip2_dir, device=CPU, dtype=torch.float32, max_new_tokens=6)
    pictures = [picture("red"), picture("blue", (9, 40)), picture("red")]
    captions = captioner(pictures)
    assert captions == [captioner([one])[0] for one in pictures]
    assert captions[0] == captions[2] != captions[1]
    assert "<image>" not in "".join(captions)


def test_blip2_is_what_transformers_generates(blip2_dir: Path) -> None:
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    processor = Blip2Processor.from_pretrained(blip2_dir)
    model = Blip2ForConditionalGeneration.from_pretrained(blip2_dir)
    inputs = processor(images=[picture("red")], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    expected = processor.batch_decode(ids, skip_special_tokens=True)[0]
    captioner = blip2(blip2_dir, device=CPU, dtype=torch.float32, max_new_tokens=6)
    assert captioner([picture("red")]) == [" ".join(expected.split())]
    assert expected.strip()


def test_blip2_computes_in_half_precision(blip2_dir: Path) -> None:
    captioner = blip2(blip2_dir, device=CPU, dtype=torch.bfloat16, max_new_tokens=2)
    assert len(captioner([picture("red")])) == 1


def test_blip2_without_a_place_for_pictures_is_refused(tmp_path: Path) -> None:
    save_blip2(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"image_token_index"', '"was"'))
    with pytest.raises(CheckpointError, match="image_token_index"):
        blip2(tmp_path, device=CPU, dtype=torch.float32, max_new_tokens=6)


def test_our_captioner_is_generate_on_a_batch(tmp_path: Path) -> None:
    save_toy_nano(tmp_path)
    captioner = mllm_captioner(tmp_path, max_new_tokens=5)
    pictures = [picture("red"), picture("blue")]
    tokenizer = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    mllm = load_speaker(tmp_path)
    expected = []
    for one in pictures:
        encoded = sequence.encode([one], tokenizer, num_latents=2, image_size=32)
        batch = sequence.collate([encoded], pad_id=tokenizer.pad_id)
        ids = mllm.generate(batch, max_new_tokens=5, eos_id=tokenizer.eos_id)
        expected.append(tokenizer.decode(ids[0].tolist()))
    assert captioner(pictures) == expected


def test_a_captioner_speaks_before_all_others(tmp_path: Path) -> None:
    save_toy_nano(tmp_path)
    assert speaker_part(tmp_path) == "stage2/mllm"
    shutil.copytree(tmp_path / "mllm", tmp_path / "captioner")
    expected = load_speaker_of(tmp_path)
    spoken = load_speaker(tmp_path).state_dict()
    assert all(torch.equal(spoken[name], value) for name, value in expected.items())
    shutil.rmtree(tmp_path / "captioner")
    shutil.rmtree(tmp_path / "stage2")
    assert speaker_part(tmp_path) == "mllm"


def test_the_speaker_of_nano_is_its_captioner() -> None:
    assert speaker_part(release.find("nano")) == "captioner"


def load_speaker_of(directory: Path) -> dict[str, torch.Tensor]:
    from kosmosg.model.mllm import MLLM

    return MLLM.from_pretrained(directory / "mllm", local_files_only=True).float().state_dict()
