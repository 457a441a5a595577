"""The frozen image decoder of Stable Diffusion: VAE, U-Net, noise schedule."""

from typing import Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float, Int
from torch import Tensor, nn

from kosmosg.errors import ConfigError

SchedulerName = Literal["dpms", "ddim", "pndm"]
Scheduler = DPMSolverMultistepScheduler | DDIMScheduler | PNDMScheduler
Latents = Float[Tensor, "batch latent_channels latent_height latent_width"]

NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
}


def scheduler(name: SchedulerName) -> Scheduler:
    """Return a sampler of the released model, in diffusers' own class.

    Args:
        name: "dpms" is DPM-Solver++ of second order whose last step ends at t = 0, as released;
            diffusers' own default would end at noise 0.

    Raises:
        ConfigError: If there is no sampler of that name.

    Source:
        NUMERICS section 10.
    """
    match name:
        case "dpms":
            return DPMSolverMultistepScheduler(**NOISE_SCHEDULE, final_sigmas_type="sigma_min")
        case "ddim":
            return DDIMScheduler(**NOISE_SCHEDULE, clip_sample=False, set_alpha_to_one=False)
        case "pndm":
            return PNDMScheduler(**NOISE_SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False)
    raise ConfigError(f"no scheduler named {name!r}; the names are dpms, ddim and pndm")


class ImageDecoder(nn.Module):
    """Stable Diffusion without its text encoder: nothing in it learns, gradients pass through.

    Source:
        Paper section 2.2; NUMERICS section 6 (stage 3).
    """

    alphas_cumprod: Tensor

    def __init__(self, vae: AutoencoderKL, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.vae = vae
        self.unet = unet
        self.register_buffer("alphas_cumprod", scheduler("ddim").alphas_cumprod, persistent=False)
        self.requires_grad_(False)

    @torch.no_grad()
    def encode_images(
        self,
        target_images: Float[Tensor, "batch 3 height width"],
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Latents:
        """Return scaled latents, sampled with `generator` (a list: one a picture)."""
        return self.sample_latents(*self.posterior(target_images), generator)

    @torch.no_grad()
    def posterior(
        self, target_images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Latents, Latents]:
        """Return mean and deviation of the latents, unscaled."""
        distribution = self.vae.encode(target_images.to(self.vae.dtype), return_dict=False)[0]
        return distribution.mean, distribution.std

    def sample_latents(
        self,
        mean: Latents,
        std: Latents,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Latents:
        """Return scaled latents of this distribution, drawn as diffusers does."""
        noise = randn_tensor(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return (mean + std * noise) * self.vae.config["scaling_factor"]

    @torch.no_grad()
    def decode_latents(self, latents: Latents) -> Float[Tensor, "batch 3 height width"]:
        """Return the pictures of scaled latents, about -1 to 1."""
        return self.vae.decode(latents / self.vae.config["scaling_factor"], return_dict=False)[0]

    def add_noise(
        self, latents: Latents, noise: Latents, timesteps: Int[Tensor, " batch"]
    ) -> Latents:
        """Return latents as they look at `timesteps` (0 to 999) of the noise schedule."""
        kept = self.alphas_cumprod[timesteps][:, None, None, None].to(latents.dtype)
        return kept.sqrt() * latents + (1 - kept).sqrt() * noise

    def noise_pred(
        self,
        noisy_latents: Latents,
        timesteps: Int[Tensor, " batch"],
        prompt_embeds: Float[Tensor, "batch queries embed"],
    ) -> Latents:
        """Return the U-Net's guess of the noise; the prompt embeds receive its gradient."""
        dtype = self.unet.dtype  # frozen, it may be bfloat16 beside a model in float32
        return self.unet(
            noisy_latents.to(dtype), timesteps, prompt_embeds.to(dtype), return_dict=False
        )[0]
