"""The image decoder's side: stage 3's loss, the VAE's scale, whole runs of the samplers."""

import tempfile
from collections.abc import Callable, Iterator
from typing import Any, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kosmosg.errors import DataError
from kosmosg.model.image_decoder import Scheduler, SchedulerName, scheduler
from kosmosg.verify.compare import EXACT, TOLERANCE, Case, Value
from kosmosg.verify.golden import Golden

DROP_PROBABILITY = 0.1  # of the prompt, for guidance
UNet = Callable[[Tensor, Tensor, Tensor], Tensor]


def diffusion_loss(golden: Golden, case: Case) -> Iterator[Value]:
    """Yield stage 3's loss at the recorded noise, timesteps and coins.

    Source:
        NUMERICS section 6: a sum over pictures of the mean over each.
    """
    noise, timesteps = case["in.noise"], case["in.timesteps"]
    dropped = case["in.random_p"] < DROP_PROBABILITY
    prompt_embeds = torch.where(dropped[:, None, None], case["in.null"], case["in.condition"])
    noisy_latents = golden.decoder.add_noise(case["in.latents"], noise, timesteps)
    with torch.no_grad():
        noise_pred = golden.decoder.noise_pred(noisy_latents, timesteps, prompt_embeds)
    loss = (noise_pred - noise).square().mean((1, 2, 3)).sum()
    yield Value(key="out.noisy_latents", ours=noisy_latents)
    yield Value(key="out.diff_loss", ours=loss[None])


def vae_scale(golden: Golden, case: Case) -> Iterator[Value]:
    """Yield latents of pictures and pictures of latents, and that sampling scales and shifts.

    Source:
        NUMERICS sections 6 and 10.
    """
    decoder, image = golden.decoder, case["in.image"]
    with torch.no_grad():
        distribution = decoder.vae.encode(image, return_dict=False)[0]
    yield Value(key="out.latent_mean", ours=distribution.mean)
    yield Value(key="out.latent_logvar", ours=distribution.logvar)
    decoded = (decoder.decode_latents(case["in.latents"]) / 2 + 0.5).clamp(0, 1)
    yield Value(key="out.decoded_nhwc_01", ours=decoded.permute(0, 2, 3, 1))

    noise = torch.randn(distribution.mean.shape, generator=torch.Generator().manual_seed(0))
    sampled = decoder.encode_images(image, torch.Generator().manual_seed(0))
    sampled = sampled / golden.config["vae_scaling_factor"]
    mean = sampled - (distribution.logvar / 2).exp() * noise
    yield Value(key="out.latent_mean", ours=mean, how="from a scaled sample")


def sampling(golden: Golden, case: Case) -> Iterator[Value]:
    """Yield the timesteps and the end of a sampling run, by a fresh and by a saved sampler.

    `sched.*` cases have a stand-in for the U-Net; `sample.*` cases run through the pipeline too.

    Source:
        NUMERICS section 10: the release ends at t = 0, newer samplers by default at noise 0.
    """
    kind, name, *more = case.name.removeprefix("cases/").split(".")
    if name not in get_args(SchedulerName):
        raise DataError(f"{case.name} names the sampler {name!r}, which the release has not")
    steps = int(case["in.steps"]) if "in.steps" in case else int(more[0])
    unet = golden.decoder.noise_pred if kind == "sample" else stand_in
    # Random weights drive the latents to about 70, so 1e-5 is taken as part of their size.
    size = max(1.0, case["out.latents"].abs().max().item())
    fresh = scheduler(cast(SchedulerName, name))
    for how, sampler in (("", fresh), ("sampler saved and loaded", reloaded(fresh))):
        sampler.set_timesteps(steps)
        timesteps = cast(Tensor, sampler.timesteps)
        yield Value(key="in.timesteps", ours=timesteps, how=how, tolerance=EXACT)
        latents = released_run(
            unet,
            sampler,
            case["in.init_latents"],
            case["in.condition"],
            guidance_scale=case["in.guidance"].item(),
        )
        yield Value(key="out.latents", ours=latents, how=how, tolerance=TOLERANCE * size)
    if kind == "sample":
        latents = _pipeline_run(golden, case, scheduler(cast(SchedulerName, name)), steps)
        yield Value(key="out.latents", ours=latents, how="pipeline", tolerance=TOLERANCE * size)


def released_run(
    unet: UNet,
    sampler: Scheduler,
    latents: Float[Tensor, "rows channels height width"],
    condition: Float[Tensor, "all_rows queries embed"],
    *,
    guidance_scale: float,
) -> Float[Tensor, "rows channels height width"]:
    """Return the latents after the sampler's steps, its timesteps being set.

    Twice as many conditions as latents are a null half and a prompt half. With as many, each row
    goes its own way: so the release treats its doubled condition where guidance is 1 or less, and
    returns twice the pictures. The pipeline skips the null half there.
    """
    copies = len(condition) // len(latents)
    stepping: Any = sampler  # diffusers types its timesteps as int
    for timestep in stepping.timesteps:
        with torch.no_grad():
            rows = latents.repeat(copies, 1, 1, 1)
            noise_pred = unet(rows, timestep.expand(len(rows)), condition)
        if copies == 2:
            null_pred, full_pred = noise_pred.chunk(2)
            noise_pred = null_pred + guidance_scale * (full_pred - null_pred)
        latents = stepping.step(noise_pred, timestep, latents, return_dict=False)[0]
    return latents


def reloaded(sampler: Scheduler) -> Scheduler:
    """Return the sampler as its saved configuration makes it anew."""
    with tempfile.TemporaryDirectory() as directory:
        sampler.save_pretrained(directory)
        loaded = type(sampler).from_pretrained(directory, local_files_only=True)
    return cast(Scheduler, loaded)


def stand_in(
    noisy_latents: Float[Tensor, "rows channels height width"],
    timesteps: Int[Tensor, " rows"],
    prompt_embeds: Float[Tensor, "rows queries embed"],
) -> Float[Tensor, "rows channels height width"]:
    """Return what the `sched.*` cases have for a U-Net.

    The golden data's notes do not give it; fitting sched.ddim.5 did, and all ten runs confirm it.
    """
    rest = 0.2 * torch.sin(timesteps / 100) + 0.1 * prompt_embeds.mean((1, 2))
    return 0.5 * torch.tanh(noisy_latents) + rest[:, None, None, None]


def _pipeline_run(
    golden: Golden, case: Case, sampler: Scheduler, steps: int
) -> Float[Tensor, "rows channels height width"]:
    pipeline, latents, condition = golden.pipeline, case["in.init_latents"], case["in.condition"]
    guided = len(condition) == 2 * len(latents)
    negative, prompt_embeds = condition.chunk(2) if guided else (None, condition)
    height, width = (pipeline.vae_scale_factor * side for side in latents.shape[2:])
    pipeline.scheduler = sampler
    return pipeline(
        prompt_embeds=prompt_embeds,
        negative_prompt_embeds=negative,
        latents=latents,
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=case["in.guidance"].item(),
        output_type="latent",
    ).images
