from typing import cast

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from kosmosg.errors import ConfigError
from kosmosg.model.image_decoder import ImageDecoder, SchedulerName, scheduler


@pytest.fixture(scope="module")
def decoder() -> ImageDecoder:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return ImageDecoder(vae, unet).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_nothing_learns_and_the_prompt_receives_its_gradient(decoder: ImageDecoder) -> None:
    assert not any(parameter.requires_grad for parameter in decoder.parameters())
    prompt_embeds = noise(2, 5, 12).requires_grad_()
    latents = noise(2, 4, 8, 8)
    timesteps = torch.tensor([10, 900])
    decoder.noise_pred(latents, timesteps, prompt_embeds).square().sum().backward()
    assert prompt_embeds.grad is not None
    assert (prompt_embeds.grad.abs().sum((1, 2)) > 0).all()


def test_noise_grows_from_none_to_all(decoder: ImageDecoder) -> None:
    latents, grain = noise(3, 4, 8, 8), noise(3, 4, 8, 8, seed=1)
    noisy = decoder.add_noise(latents, grain, torch.tensor([0, 500, 999]))
    share = [
        float((row * one).sum() / one.square().sum()) for row, one in zip(noisy, grain, strict=True)
    ]
    assert share[0] < 0.1 < share[1] < 0.999 <= share[2] + 0.05
    kept = decoder.alphas_cumprod[[0, 999]]
    assert kept[0].item() == pytest.approx(1 - 0.00085, abs=1e-6)
    assert kept[1].item() == pytest.approx(0.00466, abs=1e-5)
    assert "alphas_cumprod" not in decoder.state_dict()


def test_one_generator_a_picture_makes_latents_independent_of_the_batch(
    decoder: ImageDecoder,
) -> None:
    pictures = noise(3, 3, 16, 16).clamp(-1, 1)

    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = decoder.encode_images(pictures, generators(5, 6, 7))
    assert together.shape == (3, 4, 8, 8)
    alone = decoder.encode_images(pictures[1:2], generators(6))
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)
    assert decoder.decode_latents(together).shape == (3, 3, 16, 16)


@pytest.mark.parametrize(("name", "steps"), [("dpms", 20), ("ddim", 20), ("pndm", 20)])
def test_each_scheduler_ends_where_the_release_ends(name: str, steps: int) -> None:
    sampler = scheduler(cast(SchedulerName, name))
    sampler.set_timesteps(steps)
    assert sampler.init_noise_sigma == 1.0
    torch.testing.assert_close(
        sampler.alphas_cumprod, scheduler("ddim").alphas_cumprod, atol=0, rtol=0
    )
    if name == "dpms":
        first = scheduler("ddim").alphas_cumprod[0]
        expected = ((1 - first) / first).sqrt().item()
        assert sampler.sigmas[-1].item() == pytest.approx(expected, abs=1e-6)


def test_an_unknown_scheduler_is_named_with_the_known_ones() -> None:
    plain = getattr(scheduler, "__wrapped__", scheduler)
    with pytest.raises(
        ConfigError, match="no scheduler named 'euler'; the names are dpms, ddim and"
    ):
        plain("euler")
