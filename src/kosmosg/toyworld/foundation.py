"""What the paper takes pretrained, made here from nothing: a VAE, a U-Net and its text tower.

Real diffusers and transformers classes at toy size; the vision tower is in vision.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from kosmosg.model.image_decoder import ImageDecoder
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld.captions import FULL, SOME, describe
from kosmosg.toyworld.render import render
from kosmosg.toyworld.scenes import Scene
from kosmosg.train.stage import Draws
from kosmosg.train.towers import own_ids


def pictures(scenes: Sequence[Scene], size: int) -> Float[Tensor, "batch 3 size size"]:
    """Return the scenes drawn, in [-1, 1]."""
    drawn, _ = render(scenes, size)
    return in_range(drawn)


def in_range(
    drawn: UInt8[np.ndarray, "batch size size 3"],
) -> Float[Tensor, "batch 3 size size"]:
    """Return drawn pictures in [-1, 1], channels first."""
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1


def build_vae() -> AutoencoderKL:
    """Return the toy VAE: four times smaller each way, 4 channels, 1.1M parameters."""
    widths = (16, 48, 80)
    # diffusers' annotations speak of tuples of one
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        block_out_channels=widths,  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


@dataclass(frozen=True, kw_only=True)
class VAEStage:
    """Autoencoding: L1, L1 of the picture's gradients (crisp edges), MSE and a light KL."""

    trainable: tuple[str, ...] = ("*",)
    size: int = 64
    kl_weight: float = 1e-5

    def collate(self, records: Sequence[Scene]) -> Tensor:
        """Draw the scenes."""
        return pictures(records, self.size)

    def weight(self, batch: Tensor) -> int:
        """Return the number of pictures."""
        return len(batch)

    def loss(
        self, model: AutoencoderKL, batch: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the losses, each a mean over a picture, summed over pictures."""
        posterior: Any = model.encode(batch, return_dict=False)[0]
        mean = posterior.mean
        noise = Draws(generator, count=len(batch)).normal(*mean.shape[1:], device=mean.device)
        restored = model.decode(mean + posterior.std * noise, return_dict=False)[0]
        error = restored.float() - batch
        across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
        edges = across.abs().mean() + down.abs().mean()
        reconstruction = error.abs().mean() + 0.5 * edges + 5 * error.square().mean()
        return {
            "reconstruction": len(batch) * reconstruction,
            "kl": self.kl_weight * posterior.kl().sum() / mean[0].numel(),
        }


def psnr(restored: Float[Tensor, "batch 3 h w"], pictures: Float[Tensor, "batch 3 h w"]) -> float:
    """Return the peak signal to noise ratio in decibels for pictures in [-1, 1] (mean over all)."""
    error = (restored.clamp(-1, 1) - pictures).square().mean().item()
    return float(10 * np.log10(4 / error))


@torch.no_grad()
def whiten(vae: AutoencoderKL, latents: Float[Tensor, "batch channels height width"]) -> None:
    """Give latents like these a mean of 0 and a variance of 1 in each channel.

    The change goes into the 1x1 convolutions on both sides of the latents, so pictures come back
    as before and no pipeline needs to know.

    Args:
        latents: Means of the posterior for many pictures.
    """
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    enter, leave = vae.quant_conv, vae.post_quant_conv
    assert enter is not None
    assert enter.bias is not None
    assert leave is not None
    assert leave.bias is not None
    leave.bias += leave.weight[:, :, 0, 0] @ mean
    leave.weight *= deviation[None, :, None, None]
    count = len(mean)
    enter.weight[:count] /= deviation[:, None, None, None]
    enter.bias[:count] = (enter.bias[:count] - mean) / deviation
    enter.bias[count:] -= 2 * deviation.log()  # these give the logarithm of the variance


TEXT_LENGTH = 40  # tokens the text tower reads, begin and end included


def build_text_encoder(vocab_size: int) -> CLIPTextModel:
    """Return the toy CLIP text tower, 3 layers of 128; end-of-text has the highest id.

    transformers pools at `argmax(input_ids)`, so any lower id would pool elsewhere.
    """
    end = vocab_size
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size + 1,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            projection_dim=128,
            bos_token_id=0,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def build_unet() -> UNet2DConditionModel:
    """Return the toy U-Net over 16x16x4 latents, 11.5M parameters."""
    widths = (64, 144, 192)
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        # diffusers' name for the number of heads
        attention_head_dim=(2, 4, 6),  # pyright: ignore[reportArgumentType]
        norm_num_groups=16,
    )


@torch.no_grad()
def scale_states(
    text_encoder: CLIPTextModel, unet: UNet2DConditionModel, ids: Int[Tensor, "batch queries"]
) -> None:
    """Give the text states of captions like these a variance of 1, and draw as before.

    A tower that learns with its U-Net may end at any scale. The change goes into the tower's last
    norm and into the U-Net's keys and values of the text, which in diffusers have no bias.
    """
    deviation = text_encoder(ids.to(text_encoder.device)).last_hidden_state.std()
    last = text_encoder.get_submodule("final_layer_norm")
    for value in last.parameters():
        value /= deviation
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.weight *= deviation


def text_ids(captions: Sequence[str], tokenizer: Tokenizer) -> Int[Tensor, "batch queries"]:
    """Return what the text tower reads: begin, words, end, and ends as padding."""
    return own_ids(captions, tokenizer, TEXT_LENGTH)


class TextToImage(nn.Module):
    """The toy world's Stable Diffusion: a text tower and a U-Net, over a finished VAE."""

    def __init__(
        self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel, vae: AutoencoderKL
    ) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.decoder = ImageDecoder(vae, unet)
        unet.requires_grad_(True)


@dataclass(frozen=True, kw_only=True)
class TextToImageStage:
    """The diffusion loss, for the U-Net and, at first, the text tower together.

    Contrast alone collapses words such as shapes; the diffusion loss keeps every word that a
    picture shows. With `text_tower` "frozen" only the U-Net goes on learning. An error where a
    creature stands counts `body_weight` times one beside it: grounds are large and learnt soon,
    shapes and patterns are small and last.
    """

    tokenizer: Tokenizer
    text_tower: Literal["trained", "frozen"]
    body_weight: float
    size: int = 64
    condition_drop: float = 0.1
    min_snr_gamma: float = 5.0

    @property
    def trainable(self) -> tuple[str, ...]:
        """Return the patterns of what learns."""
        unet = ("decoder.unet.*",)
        return (*unet, "text_encoder.*") if self.text_tower == "trained" else unet

    def collate(self, records: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the scenes, tokenise a caption of each and say where creatures stand.

        The words follow from the scene.
        """
        captions = []
        for scene in records:
            rng = np.random.default_rng([scene.seed, 1])
            detail = FULL if rng.random() < 0.75 else SOME
            dropped = rng.random() < self.condition_drop
            captions.append("" if dropped else describe(scene, rng, detail))
        drawn, masks = render(records, self.size)
        bodies = torch.from_numpy(masks).any(1, keepdim=True).float()
        return in_range(drawn), text_ids(captions, self.tokenizer), bodies

    def weight(self, batch: tuple[Tensor, Tensor, Tensor]) -> int:
        """Return the number of pictures."""
        return len(batch[0])

    def loss(
        self, model: TextToImage, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the error of the predicted noise, weighed by min-SNR, summed over pictures."""
        images, ids, bodies = batch
        draws = Draws(generator, count=len(images))
        latents = model.decoder.encode_images(images, draws.generators()).float()
        noise = draws.normal(*latents.shape[1:], device=latents.device)
        timesteps = draws.integers(1000, device=latents.device)
        noisy = model.decoder.add_noise(latents, noise, timesteps)
        states = model.text_encoder(ids).last_hidden_state
        error = model.decoder.noise_pred(noisy, timesteps, states).float() - noise
        where = 1 + (self.body_weight - 1) * F.adaptive_avg_pool2d(
            bodies, (latents.shape[2], latents.shape[3])
        )
        where = where / where.mean((1, 2, 3), keepdim=True)
        kept = model.decoder.alphas_cumprod[timesteps]
        ratio = kept / (1 - kept)
        weights = ratio.clamp(max=self.min_snr_gamma) / ratio
        return {"diffusion": (weights * (where * error.square()).mean((1, 2, 3))).sum()}
