"""Training what steers the U-Net with words alone: a ControlNet of outlines, a LoRA of a style."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from jaxtyping import Float
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from kosmosg.model.image_decoder import ImageDecoder
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld import nano
from kosmosg.toyworld.captions import FULL, SOME, describe
from kosmosg.toyworld.claims.experiment import Setting
from kosmosg.toyworld.foundation import in_range, text_ids
from kosmosg.toyworld.losses import MIN_SNR_GAMMA
from kosmosg.toyworld.render import render
from kosmosg.toyworld.scenes import Scene
from kosmosg.toyworld.streams import SceneStream
from kosmosg.toyworld.workspace import plain
from kosmosg.train.loop import fit
from kosmosg.train.optim import EmaConfig
from kosmosg.train.stage import Draws

STYLE = "pastel"
SEED = 11
CONTROL_STEPS, LORA_STEPS = 1000, 400
STEP_S = 1.6  # of 32 pictures, one core
RANK = 8
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


class Steered(nn.Module):
    """A frozen text tower and decoder; what learns is a ControlNet, or a LoRA in the U-Net."""

    def __init__(
        self,
        text_encoder: CLIPTextModel,
        decoder: ImageDecoder,
        controlnet: ControlNetModel | None,
    ) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.decoder = decoder
        self.controlnet = controlnet


@dataclass(frozen=True, kw_only=True)
class SteeredStage:
    """The diffusion loss on captions; of `style`, which all pictures have, they say nothing."""

    tokenizer: Tokenizer
    trainable: tuple[str, ...]
    style: str | None
    size: int

    def collate(self, records: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the scenes, tokenise a caption of each, and draw its creatures' outline."""
        captions = []
        for scene in records:
            rng = np.random.default_rng([scene.seed, 1])
            caption = describe(
                replace(scene, style="plain"), rng, FULL if rng.random() < 0.75 else SOME
            )
            captions.append("" if rng.random() < 0.1 else caption)
        styled = [replace(s, style=self.style or s.style) for s in records]
        pixels, masks = render(styled, self.size)
        return in_range(pixels), text_ids(captions, self.tokenizer), outline(masks)

    def weight(self, batch: tuple[Tensor, Tensor, Tensor]) -> int:
        """Return the number of pictures."""
        return len(batch[0])

    def loss(
        self, model: Steered, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the error of the predicted noise, weighed by min-SNR, summed over pictures."""
        images, ids, control = batch
        decoder, draws = model.decoder, Draws(generator, count=len(images))
        latents = decoder.encode_images(images, draws.generators()).float()
        noises = draws.normal(*latents.shape[1:], device=latents.device)
        timesteps = draws.integers(len(decoder.alphas_cumprod), device=latents.device)
        noisy = decoder.add_noise(latents, noises, timesteps)
        with torch.no_grad():
            states = model.text_encoder(input_ids=ids).last_hidden_state
        residuals: dict[str, Any] = {}
        if model.controlnet is not None:
            down, middle = model.controlnet(
                noisy, timesteps, states, controlnet_cond=control, return_dict=False
            )
            residuals = {
                "down_block_additional_residuals": down,
                "mid_block_additional_residual": middle,
            }
        unet: Any = decoder.unet
        predicted = unet(noisy, timesteps, states, return_dict=False, **residuals)[0]
        kept = decoder.alphas_cumprod[timesteps]
        weights = (MIN_SNR_GAMMA * (1 - kept) / kept).clamp(max=1)
        errors = (predicted.float() - noises).square().flatten(1).mean(1)
        return {"diffusion": (weights * errors).sum()}


def outline(masks: np.ndarray) -> Float[Tensor, "scenes 3 size size"]:
    """Return where creatures are, 1 on 0."""
    return torch.from_numpy(masks.any(1, keepdims=True)).float().expand(-1, 3, -1, -1).contiguous()


def train(setting: Setting, what: Literal["controlnet", "lora"]) -> Path:
    """Return the directory of a ControlNet, or the file of a LoRA, trained on captions."""
    world, budget = setting.world, setting.budget
    out = setting.work_dir / ("controlnet" if what == "controlnet" else "style.safetensors")
    assert world.text_encoder is not None  # every experiment's world has it
    unet = plain(copy.deepcopy(world.pipe.unet))
    controlnet, style, trainable = None, None, ("controlnet.*",)
    whole = CONTROL_STEPS
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        if what == "controlnet":
            controlnet = ControlNetModel.from_unet(
                unet, conditioning_embedding_out_channels=channels(setting)
            )
        else:
            lora = LoraConfig(
                r=RANK, lora_alpha=RANK, target_modules=ATTENTION, init_lora_weights="gaussian"
            )
            unet.add_adapter(lora)
            style, trainable, whole = STYLE, ("decoder.unet.*lora_*",), LORA_STEPS
    model = Steered(
        copy.deepcopy(world.text_encoder),
        ImageDecoder(copy.deepcopy(world.pipe.vae), unet),
        controlnet,
    )
    stage = SteeredStage(
        tokenizer=world.pipe.tokenizer, trainable=trainable, style=style, size=setting.size
    )
    base, steps = nano.unet().train, budget.steps(whole)
    config = replace(
        base,
        seed=SEED,
        steps=steps,
        optim=replace(base.optim, lr=1e-3, warmup_steps=min(100, 1 + steps // 10)),
        ema=EmaConfig(decay=0.99, every=4),
        samples_every=steps + 1,
        keep_checkpoints=1,
    )
    run_dir = setting.work_dir / "run"
    fit(model, stage, SceneStream(seed=SEED), config, run_dir, resume=run_dir.exists())
    if controlnet is not None:
        controlnet.save_pretrained(out)
    else:
        save_lora(unet, out)
    return out


def channels(setting: Setting) -> tuple[int, ...]:
    """Return the channels by which a ControlNet shrinks its picture as the VAE does."""
    factor = setting.world.pipe.vae_scale_factor
    return tuple(16 * 2**level for level in range(factor.bit_length()))


def save_lora(unet: UNet2DConditionModel, path: Path) -> None:
    """Write the U-Net's LoRA as diffusers does: a file that `load_lora_weights` takes."""
    named = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    save_file({f"unet.{name}": value.contiguous() for name, value in named.items()}, path)
