"""The authors' own files, in every layout they come in, to a directory, and back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPTextModel

from kosmosg import KosmosGPipeline
from kosmosg.convert import Architecture, convert, to_original
from kosmosg.convert.pickled import load
from kosmosg.model.image_decoder import ImageDecoder
from kosmosg.model.kosmosg import KosmosG
from kosmosg.sequence import Batch
from kosmosg.tokenizer import Tokenizer
from kosmosg.train.optim import OptimConfig
from kosmosg.train.run import Parts, RunConfig, run
from kosmosg.train.stage2_align import AlignConfig, AlignStage, CaptionGroup, TextTower
from kosmosg.train.trainconfig import TrainConfig
from toys.stages import Captions

FINAL = ["checkpoint_tiny", "checkpoint_tiny_args", "checkpoint_tiny_omegaconf"]
HALF, STAGE_2 = "checkpoint_tiny_fp16", "checkpoint_tiny_align"
PAD = 1
# float16 keeps 11 bits of a weight, a relative error of 2^-12, which the three stacks of layers
# grow to some thousandths of a condition whose elements are about 1.
HALF_TOLERANCE = 2e-2


@pytest.fixture(scope="module")
def architecture(golden_config: dict[str, Any]) -> Architecture:
    vision, aligner = golden_config["vision"], golden_config["aligner"]
    return Architecture(
        vision_heads=vision["width"] // vision["head_width"],
        aligner_heads=aligner["heads"],
        unet=golden_config["unet_full"],
        vae=golden_config["vae_full"],
        text_encoder=golden_config["text_full"] | {"bos_token_id": 0, "eos_token_id": 2},
    )


@pytest.fixture(scope="module")
def converted(
    golden: Path,
    golden_config: dict[str, Any],
    architecture: Architecture,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """Convert a golden file, once; that of stage 2 stands on the U-Net of the first."""
    folder = tmp_path_factory.mktemp("converted")
    letters = "abcdefghij"
    words = [f"w{one}{other}" for one in letters for other in letters]
    tokenizer = Tokenizer.from_words(words[: golden_config["dict_size"] - 1])
    assert tokenizer.vocab_size == golden_config["vocab_size"]
    assert tokenizer.image_id == golden_config["image"]
    tokenizer.save_pretrained(folder / "tokenizer")

    def make(name: str) -> Path:
        out = folder / name
        if not out.exists():
            options: dict[str, Any] = {}
            if name == STAGE_2:
                options = {"base": str(make(FINAL[0])), "keep_training_parts": True}
            convert(
                golden / f"{name}.pt",
                out,
                tokenizer=folder / "tokenizer",
                architecture=architecture,
                **options,
            )
        return out

    return make


def conditions(pipe: KosmosGPipeline, case: dict[str, Tensor]) -> Tensor:
    def embeds(ids: Tensor, slots: Tensor | None, images: Tensor | None) -> Tensor:
        return pipe.aligner(pipe.mllm(ids, ids != PAD, slots, images), ids != PAD)

    with torch.no_grad():
        slots = case["in.img_gpt_input_mask"].bool()
        negative = embeds(case["in.negative_tokens"], None, None)
        return torch.cat([negative, embeds(case["in.src_tokens"], slots, case["in.images"])])


@pytest.mark.parametrize("name", [*FINAL, STAGE_2, HALF])
def test_a_converted_model_gives_the_released_conditions(
    name: str, converted: Callable[[str], Path], golden_case: Callable[[str], dict[str, Tensor]]
) -> None:
    """This proves the heads, which no shape shows."""
    pipe = KosmosGPipeline.from_pretrained(converted(name))
    for end in ("empty", "neg"):
        case = golden_case(f"encode_condition.two_images.n1.{end}")
        found = conditions(pipe, case)
        tolerance = HALF_TOLERANCE if name == HALF else 1e-5
        torch.testing.assert_close(found, case["out.condition"], atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", FINAL)
def test_every_weight_is_the_released_one(
    name: str,
    converted: Callable[[str], Path],
    golden_model: KosmosG,
    golden_decoder: ImageDecoder,
) -> None:
    pipe = KosmosGPipeline.from_pretrained(converted(name))
    for part, expected in (
        (pipe.mllm, golden_model.mllm),
        (pipe.aligner.encoder, golden_model.aligner.encoder),
        (pipe.unet, golden_decoder.unet),
        (pipe.vae, golden_decoder.vae),
    ):
        state = part.state_dict()
        for key, value in expected.state_dict().items():
            assert torch.equal(state[key], value), key


@pytest.mark.parametrize("name", [*FINAL, HALF, STAGE_2])
def test_the_way_back_gives_the_same_tensors(
    name: str, converted: Callable[[str], Path], golden: Path, tmp_path: Path
) -> None:
    to_original(converted(name), tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)["model"]
    theirs = {key: one.read() for key, one in load(golden / f"{name}.pt")["model"].items()}
    assert back.keys() == theirs.keys()
    for key, value in theirs.items():
        assert back[key].dtype == value.dtype, key
        assert torch.equal(back[key], value), key


@pytest.mark.parametrize("name", [FINAL[0], STAGE_2])
def test_the_way_back_has_the_authors_sections(
    name: str, converted: Callable[[str], Path], golden: Path, tmp_path: Path
) -> None:
    """Every option that is written is one of theirs, with its value; not all of them are."""
    to_original(converted(name), tmp_path / "back.pt")
    back, theirs = load(tmp_path / "back.pt"), load(golden / f"{name}.pt")
    assert list(back) == list(theirs)
    assert back["cfg"].keys() == theirs["cfg"].keys()
    for section, expected in theirs["cfg"].items():
        found = back["cfg"][section]
        if isinstance(expected, dict):
            assert found.items() <= expected.items(), section
            assert "_name" in found, section
        else:
            assert found == expected, section
    for history in (back["optimizer_history"], theirs["optimizer_history"]):
        history[0].pop("num_updates")  # ours does not say how long it was trained
    for part in ("args", "criterion", "optimizer_history", "task_state", "extra_state"):
        assert back[part] == theirs[part], part


def test_the_authors_files_are_read_as_torch_reads_them(golden: Path) -> None:
    for name in (FINAL[0], HALF, STAGE_2):
        ours = load(golden / f"{name}.pt")
        theirs = torch.load(golden / f"{name}.pt", weights_only=True)
        assert ours["cfg"] == theirs["cfg"]
        assert ours["model"].keys() == theirs["model"].keys()
        for key, value in theirs["model"].items():
            assert torch.equal(ours["model"][key].read(), value), key


def parts(directory: Path) -> tuple[KosmosG, TextTower, Tokenizer]:
    pipe = KosmosGPipeline.from_pretrained(directory)
    encoder = CLIPTextModel.from_pretrained(directory / "text_encoder", dtype=torch.float32)
    queries = pipe.aligner.config["num_queries"]

    def ids(texts: list[str]) -> Tensor:
        rows = [pipe.tokenizer.encode(text)[:queries] for text in texts]
        return torch.tensor([row + [PAD] * (queries - len(row)) for row in rows])

    return KosmosG(pipe.mllm, pipe.aligner), TextTower(encoder=encoder, ids=ids), pipe.tokenizer


@pytest.mark.parametrize("case_name", ["two_images", "padded_batch3"])
def test_stage_2_from_converted_weights_has_the_released_losses(
    case_name: str,
    converted: Callable[[str], Path],
    golden_case: Callable[[str], dict[str, Tensor]],
) -> None:
    model, tower, tokenizer = parts(converted(STAGE_2))
    case = golden_case(f"align.{case_name}.cliptext")
    ids = case["in.src_tokens"]
    batch = Batch(
        input_ids=ids,
        attention_mask=ids != PAD,
        image_mask=case["in.img_gpt_input_mask"].bool(),
        pixel_values=case.get("in.images"),
    )
    stage = AlignStage(
        tokenizer=tokenizer,
        num_latents=model.mllm.config["num_latents"],
        image_size=model.mllm.config["image_size"],
        text_tower=tower,
        trainable=("aligner.*",),
        padding="released",
        mllm="eval",
        reconstruction_weight=1.0,
    )
    ids = case["in.clip_tokens"]
    captions = CaptionGroup(sequences=batch, text_ids=ids, places=torch.arange(len(ids)))
    losses = stage.loss(model, (captions,), torch.Generator())
    assert losses["mse"].item() / len(ids) == pytest.approx(case["out.mse_loss"].item(), abs=1e-5)
    found = losses["reconstruction"].item() / len(ids)
    assert found == pytest.approx(case["out.rec_loss"].item(), abs=1e-5)


def test_training_goes_on_from_converted_weights(
    converted: Callable[[str], Path], tmp_path: Path
) -> None:
    model, tower, tokenizer = parts(converted(STAGE_2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = RunConfig(
        stage=AlignConfig(padding="released", mllm="eval"),
        train=TrainConfig(
            seed=0,
            steps=1,
            global_batch_size=2,
            micro_batch=2,
            optim=OptimConfig(lr=1e-3, clip_norm=2.0, schedule="cosine", warmup_steps=0),
            ema=None,
            precision="float32",
            device="cpu",
            log_every=1,
        ),
    )
    run(
        config,
        Parts(model=model, tokenizer=tokenizer, stream=Captions(), text_tower=tower),
        tmp_path / "run",
    )
    after = model.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert {name.split(".")[0] for name in moved} == {"aligner"}
    assert any(name.startswith("aligner.decoder.") for name in moved)
    assert any(name.startswith("aligner.encoder.") for name in moved)
