"""What tests of the pipeline do again and again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from kosmosg.pipeline import KosmosGPipeline


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents_of(pipe: KosmosGPipeline, prompt: Any, **arguments: Any) -> torch.Tensor:
    """The latents of a call in which the picture number i of all has the seed i."""
    embeds = arguments.get("prompt_embeds")
    batch = isinstance(prompt, list) and isinstance(prompt[0], list)
    count = len(prompt) if batch else 1 if embeds is None else len(embeds)
    count *= arguments.get("num_images_per_prompt", 1)
    arguments = {"generator": [seeded(index) for index in range(count)]} | arguments
    return pipe(prompt, output_type="latent", **arguments).images


@contextmanager
def unet_rows(pipe: KosmosGPipeline) -> Iterator[list[int]]:
    """The rows of each call of the U-Net, one after another."""
    rows: list[int] = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    try:
        yield rows
    finally:
        handle.remove()


def stable_diffusion(pipe: KosmosGPipeline, kind: Any = StableDiffusionPipeline) -> Any:
    """Diffusers' pipeline with the same U-Net, VAE and sampler, and without a text encoder."""
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    stable = kind(
        vae=pipe.vae,
        unet=pipe.unet,
        scheduler=pipe.scheduler,
        requires_safety_checker=False,
        **absent,
    )
    stable.set_progress_bar_config(disable=True)
    return stable
