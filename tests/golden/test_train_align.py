"""Eight updates of stage 2 with the authors' Adam, schedule and clipping, through our loop."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from kosmosg.convert import our_name
from kosmosg.sequence import Batch
from kosmosg.train.log import read_log
from kosmosg.train.loop import TrainConfig, fit
from kosmosg.train.optim import OptimConfig
from kosmosg.train.stage2_align import AlignStage, TextTower

PAD = 1


class GoldenCase:
    """A stream of nothing and a stage over the one batch of the golden case."""

    trainable = ("aligner.*",)

    def __init__(self, stage, batch):
        self._batch = batch
        self.weight, self.loss = stage.weight, stage.loss

    def batch(self, step, size):  # noqa: ARG002
        return ["golden"] * size

    def collate(self, records):  # noqa: ARG002
        return self._batch


def test_the_loop_repeats_the_authors_trajectory(
    golden, golden_json, golden_case, golden_config, golden_model, golden_text_encoder, tokenizer,
    tmp_path,
):  # fmt: skip
    expected = golden_json("train_align.json")
    case = golden_case(expected["case"])
    ids = case["in.src_tokens"]
    sequences = Batch(
        input_ids=ids,
        attention_mask=ids != PAD,
        image_mask=case["in.img_gpt_input_mask"].bool(),
        pixel_values=case["in.images"],
    )
    stage = AlignStage(
        tokenizer=tokenizer,
        num_latents=golden_config["latent_query_num"],
        image_size=golden_config["vision"]["image_size"],
        text_tower=TextTower(encoder=golden_text_encoder, ids=lambda _: case["in.clip_tokens"]),
        trainable=GoldenCase.trainable,
        padding="released",
        mllm="eval",
        reconstruction_weight=1.0,
    )
    run = GoldenCase(stage, (sequences, case["in.clip_tokens"]))
    hp = expected["hp"]
    config = TrainConfig(
        seed=0,
        steps=len(expected["log"]),
        global_batch_size=3,
        micro_batch=3,
        optim=OptimConfig(
            lr=hp["peak"],
            betas=tuple(expected["betas"]),
            eps=expected["eps"],
            weight_decay=expected["weight_decay"],
            clip_norm=hp["clip"],
            schedule="linear",
            warmup_steps=hp["warmup"],
            total_steps=hp["total"],
            eps_scale="raw",
        ),
        ema=None,
        precision="float32",
        device="cpu",
        log_every=1,
    )
    model = copy.deepcopy(golden_model)
    fit(model, run, run, config, tmp_path / "run")

    for ours, theirs in zip(read_log(tmp_path / "run"), expected["log"], strict=True):
        assert ours["step"] == theirs["update"]
        assert ours["lr"] == pytest.approx(theirs["lr"], abs=1e-9)
        assert ours["mse"] == pytest.approx(theirs["mse"], abs=1e-5)
        assert ours["reconstruction"] == pytest.approx(theirs["rec"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], abs=1e-5)
    parameters = dict(model.named_parameters())
    theirs = load_file(golden / "train_align_params.safetensors")
    for key, value in theirs.items():
        # A key's bias shifts all scores of a query alike: its gradient is rounding noise, which
        # Adam then magnifies.
        tolerance = 1e-4 if key.endswith("k_proj.bias") else 1e-5
        ours = parameters[our_name(key)].detach()
        torch.testing.assert_close(ours, value, atol=tolerance, rtol=0, msg=lambda m: f"{key}: {m}")  # noqa: B023
