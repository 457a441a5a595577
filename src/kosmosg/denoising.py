"""The denoising loop: what each branch predicts, guided, and the sampler's step."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from jaxtyping import Float
from torch import Tensor

from kosmosg.branches import Branches
from kosmosg.controls import Fractions, steps_in
from kosmosg.guidance import guide, guide_apart, rescale

Latents = Float[Tensor, "batch channels height width"]
PromptEmbeds = Float[Tensor, "branches queries embed"]
Tensors = dict[str, Tensor]
StepCallback = Callable[[Any, int, Tensor, Tensors], Tensors]  # the pipeline comes first
Callback = StepCallback | PipelineCallback | MultiPipelineCallbacks


@runtime_checkable
class Sampling(Protocol):
    """What the loop reads of a pipeline, anew in each step: a callback may change it."""

    unet: Any
    scheduler: Any
    progress_bar: Any
    interrupt: Any
    do_classifier_free_guidance: Any
    guidance_scale: Any
    text_guidance_scale: Any
    picture_guidance_scale: Any
    cross_attention_kwargs: Any


def denoise(
    pipe: Sampling,
    latents: Latents,
    branches: Sequence[Branches],
    *,
    guidance_interval: Fractions,
    guidance_rescale: float,
    num_inference_steps: int,
    step_arguments: dict[str, Any],
    negative_prompt_embeds: PromptEmbeds | None,
    callback: Callback | None,
    callback_inputs: Sequence[str],
) -> Latents:
    """Return the latents after all steps, or as they were when interrupted.

    Args:
        branches: In the order of their steps, which are all of the schedule.
        guidance_interval: In other steps only the prompts' half is run.
        negative_prompt_embeds: For the callback's eyes; `branches` has them already.

    Source:
        Paper eq. 4; NUMERICS section 10. The order of work is StableDiffusionPipeline's.
    """
    timesteps, order = pipe.scheduler.timesteps, pipe.scheduler.order
    num_warmup_steps = len(timesteps) - num_inference_steps * order
    guided_steps = steps_in(guidance_interval, len(timesteps))
    told = {step: one for one in branches for step in one.steps}
    now, prompt_embeds = branches[0], branches[0].prompt_embeds
    with pipe.progress_bar(total=num_inference_steps) as progress_bar:
        for index, timestep in enumerate(timesteps):
            if pipe.interrupt:
                break
            if told[index] is not now:
                cut_off = len(prompt_embeds) == len(latents)  # by a callback, or never guided
                now = told[index]
                prompt_embeds = now.prompt_embeds
                prompt_embeds = prompt_embeds[-len(latents) :] if cut_off else prompt_embeds
            noise_pred = predict_noise(
                pipe,
                latents,
                timestep,
                prompt_embeds,
                now,
                guided=index in guided_steps,
                guidance_rescale=guidance_rescale,
            )
            latents = pipe.scheduler.step(
                noise_pred, timestep, latents, **step_arguments, return_dict=False
            )[0]
            if callback is not None:
                tensors = {
                    "latents": latents,
                    "prompt_embeds": prompt_embeds,
                    "negative_prompt_embeds": negative_prompt_embeds,
                }
                asked = {name: tensors[name] for name in callback_inputs}
                tensors |= callback(pipe, index, timestep, asked)  # pyright: ignore[reportArgumentType]
                latents, prompt_embeds = tensors["latents"], tensors["prompt_embeds"]
            done = index + 1
            if done == len(timesteps) or (done > num_warmup_steps and done % order == 0):
                progress_bar.update()
    return latents


def predict_noise(
    pipe: Sampling,
    latents: Latents,
    timestep: Tensor,
    prompt_embeds: PromptEmbeds,
    branches: Branches,
    *,
    guided: bool,
    guidance_rescale: float,
) -> Latents:
    """Return the prediction that the sampler follows, from one call of the U-Net.

    Args:
        prompt_embeds: Those of `branches`, or what a callback put in their place.
        guided: False runs the prompts' half alone, whatever the scales.
    """
    rows = len(latents)
    guided = guided and pipe.do_classifier_free_guidance and len(prompt_embeds) > rows
    noisy_latents = latents[branches.latent_rows] if guided else latents
    predicted = pipe.unet(
        pipe.scheduler.scale_model_input(noisy_latents, timestep),
        timestep,
        encoder_hidden_states=prompt_embeds if guided else prompt_embeds[-rows:],
        cross_attention_kwargs=pipe.cross_attention_kwargs,
        return_dict=False,
    )[0]
    if not guided:
        return predicted
    return combine(
        predicted,
        branches,
        rows=rows,
        guidance_scale=pipe.guidance_scale,
        text_guidance_scale=pipe.text_guidance_scale,
        picture_guidance_scale=pipe.picture_guidance_scale,
        guidance_rescale=guidance_rescale,
    )


def combine(
    predicted: Float[Tensor, "branches channels height width"],
    branches: Branches,
    *,
    rows: int,
    guidance_scale: float,
    text_guidance_scale: float,
    picture_guidance_scale: float,
    guidance_rescale: float,
) -> Latents:
    """Return the one prediction that those of all branches make.

    Args:
        rows: Pictures that are generated.
        guidance_scale: Where words and pictures are guided as one.
        text_guidance_scale: Where there is a branch of the pictures alone.
        picture_guidance_scale: Likewise.
    """
    null_pred, noise_pred = predicted[:rows], predicted[-rows:]
    if branches.picture_rows is None:
        guided_pred = guide(null_pred, noise_pred, guidance_scale=guidance_scale)
    else:
        guided_pred = guide_apart(
            null_pred,
            predicted[branches.picture_rows],
            noise_pred,
            text_guidance_scale=text_guidance_scale,
            picture_guidance_scale=picture_guidance_scale,
        )
    return rescale(guided_pred, noise_pred, guidance_rescale=guidance_rescale)
