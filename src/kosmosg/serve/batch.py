"""Many pictures in one pass of the U-Net, each with its own sampler, step and guidance.

A picture may join or leave between any two steps. What else is in a pass decides the last bits of
a float, so a served picture is that of `kosmosg generate` to the bit only where it was alone.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from kosmosg import branches
from kosmosg.branches import Branches
from kosmosg.controls import scales_of
from kosmosg.denoising import Latents, combine
from kosmosg.drawing import sampler_of
from kosmosg.pipeline import KosmosGPipeline, accepted
from kosmosg.serve.tasks import Slot, Task


@dataclass(kw_only=True, eq=False)
class Running:
    """A picture that is being drawn.

    Args:
        sampler: Its own, as a sampler remembers the steps before.
        told: The one picture's branches, the same in all steps.
        scales: Of guidance: by words and pictures together, by words, by pictures.
        step_arguments: What the sampler's step takes besides.
        index: Of the next timestep.
        clean: What the picture would be by the last step's prediction.
    """

    slot: Slot
    sampler: Any
    latents: Latents
    told: Branches
    scales: tuple[float, float, float]
    step_arguments: dict[str, Any]
    wants_preview: bool
    index: int = 0
    clean: Latents | None = None

    @property
    def num_steps(self) -> int:
        """Evaluations of the U-Net; a sampler of second order takes two a step."""
        return len(self.sampler.timesteps)

    @property
    def is_done(self) -> bool:
        """Whether all steps are made."""
        return self.index == self.num_steps


def num_rows(task: Task) -> int:
    """Return how many rows of the U-Net's pass one picture of a task takes, at most."""
    scale = task.arguments["guidance_scale"]
    text, picture = scales_of(scale, None, task.arguments.get("picture_guidance_scale"))
    return 3 if text != picture else 2 if scale > 1 else 1


@torch.no_grad()
def begin(pipe: KosmosGPipeline, slot: Slot) -> Running:
    """Return a picture's start; its task has its condition already.

    Source:
        As `KosmosGPipeline.__call__`, order of random numbers included.
    """
    task, arguments = slot.task, slot.task.arguments
    assert task.condition is not None  # the worker encodes before it draws
    sampler = copy.deepcopy(sampler_of(pipe, arguments.get("scheduler"), arguments))
    sampler.set_timesteps(arguments["num_inference_steps"], device=pipe.device)
    scale = arguments["guidance_scale"]
    text, picture = scales_of(scale, None, arguments.get("picture_guidance_scale"))
    apart = text != picture
    dtype = pipe.unet.dtype
    embeds = task.condition.prompt_embeds.to(pipe.device, dtype)
    negative = alone = None
    if apart or scale > 1:
        negative = task.condition.negative_prompt_embeds.to(pipe.device, dtype)
    if apart and task.condition.picture_prompt_embeds is not None:
        alone = task.condition.picture_prompt_embeds.to(pipe.device, dtype)
    plan = branches.given(embeds, negative, alone, num_steps=len(sampler.timesteps))
    generator = [torch.Generator().manual_seed(slot.seed)]
    factor = pipe.vae_scale_factor
    shape = (
        *(1, pipe.unet.config["in_channels"]),
        *(arguments["height"] // factor, arguments["width"] // factor),
    )
    noise = randn_tensor(shape, generator=generator, device=pipe.device, dtype=dtype)
    return Running(
        slot=slot,
        sampler=sampler,
        latents=noise * sampler.init_noise_sigma,
        told=branches.join(
            plan.segments[0],
            embeds if alone is None else torch.cat([embeds, alone]),
            negative,
            num_images_per_prompt=1,
        ),
        scales=(scale, text, picture),
        step_arguments=accepted(sampler.step, eta=0.0, generator=generator),
        wants_preview=task.partial_images > 0,
    )


@torch.no_grad()
def advance(pipe: KosmosGPipeline, running: Sequence[Running]) -> None:
    """Make one step of every picture, with one pass of the U-Net; all are of one size."""
    inputs, timesteps = [], []
    for one in running:
        timestep = one.sampler.timesteps[one.index]
        rows = one.sampler.scale_model_input(one.latents[one.told.latent_rows], timestep)
        inputs.append(rows)
        timesteps.append(timestep.to(torch.float32).expand(len(rows)))
    predicted: Tensor = pipe.unet(
        torch.cat(inputs),
        torch.cat(timesteps),
        encoder_hidden_states=torch.cat([one.told.prompt_embeds for one in running]),
        return_dict=False,
    )[0]
    parts = predicted.split([len(rows) for rows in inputs])
    for one, rows, part in zip(running, inputs, parts, strict=True):
        _step(one, rows[-1:], part)


def preview(pipe: KosmosGPipeline, latents: Latents) -> Image.Image:
    """Return the picture that latents on their way stand for."""
    with torch.no_grad():
        return pipe.decode(latents.nan_to_num(0.0, 0.0, 0.0), None, "pil").images[0]


def finish(pipe: KosmosGPipeline, one: Running) -> Any:  # noqa: ANN401 -- diffusers' output
    """Return the pipeline's output with the picture at its end.

    Raises:
        ConfigError: If its values are no numbers.
    """
    with torch.no_grad():
        return pipe.decode(one.latents, None, "pil")


def _step(one: Running, model_input: Latents, predicted: Tensor) -> None:
    guided, text, picture = one.scales
    noise_pred = predicted
    if len(predicted) > 1:
        noise_pred = combine(
            predicted,
            one.told,
            rows=1,
            guidance_scale=guided,
            text_guidance_scale=text,
            picture_guidance_scale=picture,
            guidance_rescale=0.0,
        )
    timestep = one.sampler.timesteps[one.index]
    if one.wants_preview:
        # Of every sampler: what the U-Net was shown has unit variance, whatever its latents have.
        kept = one.sampler.alphas_cumprod[int(timestep.round().clamp(0))].to(predicted.device)
        one.clean = (model_input - (1 - kept) ** 0.5 * noise_pred) / kept**0.5
    one.latents = one.sampler.step(
        noise_pred, timestep, one.latents, **one.step_arguments, return_dict=False
    )[0]
    one.index += 1
