"""docs/sds.md: its code is equation 9, equation 10 fails as it says, its figures are right."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from kosmosg.convert.sizes import UNET
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.image_decoder import scheduler
from kosmosg.sequence import collate, encode
from kosmosg.train.run import Parts, make_stage
from kosmosg.train.stage import Draws, micro_batch_generator
from kosmosg.train.stage3_instruct import InstructConfig
from kosmosg.train.tally import Tally
from kosmosg.train.weighting import loss_weights
from toys.stages import Captions, composed, toys

COUNT = 2


@pytest.fixture(scope="module")
def code(repository: Path) -> list[str]:
    page = (repository / "docs/sds.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)


def begun():
    """A stage 3 and its records; what it will draw; the same each time."""
    toy = toys()
    config = InstructConfig(trainable=("aligner.encoder.*",), condition_drop=0.0)
    parts = Parts(
        model=toy.model,
        tokenizer=toy.tokenizer,
        stream=Captions(),
        image_decoder=toy.image_decoder,
    )
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(COUNT, 4, 16, 16, generator=generator)
    records = [
        dataclasses.replace(record, latents=own)
        for record, own in zip(composed().batch(0, COUNT), latents, strict=True)
    ]
    stage = make_stage(config, parts)
    draws = Draws(micro_batch_generator(0, 0, 0), count=COUNT)
    timesteps = draws.integers(1000)
    draws.coin(0.0)
    noise = draws.normal(4, 16, 16)
    return toy, stage, records, latents, noise, timesteps


def encoded(toy, records):
    sizes = {name: toy.model.mllm.config[name] for name in ("num_latents", "image_size")}
    prompts = [encode(record.prompt, toy.tokenizer, **sizes) for record in records]
    return toy.model.encode(collate(prompts, pad_id=toy.tokenizer.pad_id))


def test_equation_9_leaves_the_gradients_that_the_stage_does(code: list[str]) -> None:
    toy, stage, records, latents, noise, timesteps = begun()
    model = toy.model.eval()
    batch = stage.collate(records)
    stage.loss(model, batch, micro_batch_generator(0, 0, 0))["diffusion"].backward()
    names = ("aligner.encoder.queries", "mllm.layers.0.ffn.fc1.weight", "mllm.resampler.latents")
    expected = {name: model.get_parameter(name).grad.clone() for name in names}
    model.zero_grad()

    namespace: dict = {}
    exec(code[0], namespace)
    prompt_embeds = encoded(toy, records)
    direction = namespace["equation_9"](toy.image_decoder, latents, noise, timesteps, prompt_embeds)
    assert direction.shape == prompt_embeds.shape
    prompt_embeds.backward(direction)
    for name in names:
        assert expected[name].abs().sum() > 0
        torch.testing.assert_close(
            model.get_parameter(name).grad, expected[name], rtol=1e-4, atol=1e-7
        )
    assert all(p.grad is None for p in toy.image_decoder.parameters())


def test_equation_10_is_not_defined(code: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    toy, _, records, latents, noise, timesteps = begun()
    prompt_embeds = encoded(toy, records)
    noisy = toy.image_decoder.add_noise(latents, noise, timesteps)
    residual = toy.image_decoder.noise_pred(noisy, timesteps, prompt_embeds).detach() - noise
    exec(code[1], {"prompt_embeds": prompt_embeds, "residual": residual})
    assert "Mismatch in shape" in capsys.readouterr().out
    assert residual.shape != prompt_embeds.shape


def test_the_figures_of_the_page_are_those_of_the_full_size(repository: Path) -> None:
    page = (repository / "docs/sds.md").read_text(encoding="utf-8").replace("×", "x")  # noqa: RUF001
    with torch.device("meta"):
        unet, aligner = UNet2DConditionModel.from_config(UNET), AlignerNet()
    unet.requires_grad_(False)
    residual = UNET["sample_size"] ** 2 * unet.config["in_channels"]
    condition = aligner.encoder.queries.numel()
    assert condition == 77 * unet.config["cross_attention_dim"]
    assert f"4 x 64 x 64 = {residual:,} numbers" in page
    assert f"{residual:,} x {condition:,}" in page
    with Tally([unet]) as tally:
        noise = torch.zeros(1, 4, 64, 64, device="meta")
        embeds = torch.zeros(1, 77, 768, device="meta", requires_grad=True)
        guess = unet(noise, torch.zeros(1, device="meta"), embeds, return_dict=False)[0]
        forward = tally.flops
        guess.sum().backward()
    backward = f"{(tally.flops - forward) / 1e12:.2f}".lstrip("0")
    said = f"takes {backward} TFLOP a picture, beside {forward / 1e12:.2f}".replace(" 0.", " .")
    assert said in page.replace("\n", " ")
    largest = loss_weights("snr", scheduler("ddim").alphas_cumprod, min_snr_gamma=None).max()
    assert f"count up to {largest:.0f} times the mean" in page.replace("\n", " ")
