"""The toy world's Stable Diffusion learns from the noise, more where creatures stand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kosmosg.toyworld import world
from kosmosg.toyworld.foundation import TextToImage, TextToImageStage, scale_states, text_ids
from kosmosg.toyworld.streams import SceneStream
from kosmosg.train.stage import Draws, micro_batch_generator


def test_an_error_on_a_creature_counts_as_often_as_its_weight_says(toy_nano_dir: Path) -> None:
    parts = world.load_foundation(toy_nano_dir)
    unet = world.load(toy_nano_dir, {"stage3"}).pipe.unet
    with torch.no_grad():  # so that the error is the noise itself
        unet.conv_out.weight.zero_()
        unet.conv_out.bias.zero_()
    model = TextToImage(parts.text_encoder, unet, parts.vae)
    stage = TextToImageStage(
        tokenizer=parts.tokenizer, text_tower="trained", body_weight=4.0, size=32
    )
    batch = stage.collate(SceneStream(seed=3).batch(0, 3))

    def loss(stage: TextToImageStage) -> float:
        return float(stage.loss(model, batch, micro_batch_generator(0, 0, 0))["diffusion"].detach())

    draws = Draws(micro_batch_generator(0, 0, 0), count=3)
    draws.generators()  # the autoencoder's
    squares = draws.normal(4, 16, 16).square().mean(1)
    times = draws.integers(1000)
    kept = model.decoder.alphas_cumprod[times]
    ratio = kept / (1 - kept)
    plain, weighed = 0.0, 0.0
    for square, body, r in zip(squares, batch[2][:, 0], ratio, strict=True):
        share = body.reshape(16, 2, 16, 2).mean((1, 3))  # of each latent that a creature covers
        snr = float(r.clamp(max=5.0) / r)
        plain += snr * float(square.mean())
        weighed += snr * float((square * (1 + 3 * share)).sum() / (1 + 3 * share).sum())
    assert loss(replace(stage, body_weight=1.0)) == pytest.approx(plain, rel=1e-4)
    assert loss(stage) == pytest.approx(weighed, rel=1e-4)
    assert abs(weighed - plain) > 1e-3 * plain


def test_states_of_variance_one_draw_what_the_others_drew(toy_nano_dir: Path) -> None:
    parts = world.load_foundation(toy_nano_dir)
    unet, text = world.load(toy_nano_dir, {"stage3"}).pipe.unet, parts.text_encoder
    with torch.no_grad():
        text.get_submodule("final_layer_norm").weight.mul_(0.3)
    ids = text_ids(["a red circle with dots", "a blue star on the beach"], parts.tokenizer)
    noisy = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))

    def drawn() -> torch.Tensor:
        return unet(noisy, 500, encoder_hidden_states=text(ids).last_hidden_state).sample

    with torch.no_grad():
        before, narrow = drawn(), text(ids).last_hidden_state.var()
        scale_states(text, unet, ids)
        assert text(ids).last_hidden_state.var().item() == pytest.approx(1, rel=1e-4)
        assert narrow < 0.5
        torch.testing.assert_close(drawn(), before, atol=1e-5, rtol=1e-5)
        unet.get_submodule(
            "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"
        ).weight.zero_()
        assert (drawn() - before).abs().max() > 1e-4  # the words do reach the picture
