"""The pipeline as a whole repeats the released sampling runs."""

from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor

from kosmosg.model.image_decoder import ImageDecoder, SchedulerName, scheduler
from kosmosg.model.kosmosg import KosmosG
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.tokenizer import Tokenizer


@pytest.fixture
def pipe(
    golden_model: KosmosG, golden_decoder: ImageDecoder, tokenizer: Tokenizer
) -> KosmosGPipeline:
    pipe = KosmosGPipeline(
        mllm=golden_model.mllm,
        aligner=golden_model.aligner,
        unet=golden_decoder.unet,
        vae=golden_decoder.vae,
        scheduler=scheduler("dpms"),
        tokenizer=tokenizer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", ["dpms", "ddim", "pndm"])
@pytest.mark.parametrize("run", ["4.g3.0", "6.g1.0", "10.g7.5"])
def test_sampling_equals_the_released_run(
    pipe: KosmosGPipeline,
    golden_case: Callable[[str], dict[str, Tensor]],
    name: str,
    run: str,
) -> None:
    case = golden_case(f"sample.{name}.{run}")
    guided = len(case["in.condition"]) == 2 * len(case["in.init_latents"])
    rows = case["in.condition"].chunk(2) if guided else [None, case["in.condition"]]
    height, width = (pipe.vae_scale_factor * side for side in case["in.init_latents"].shape[2:])
    pipe.scheduler = scheduler(cast(SchedulerName, name))
    latents = pipe(
        prompt_embeds=rows[1],
        negative_prompt_embeds=rows[0],
        latents=case["in.init_latents"],
        height=height,
        width=width,
        num_inference_steps=case["in.steps"].item(),
        guidance_scale=case["in.guidance"].item(),
        output_type="latent",
    ).images
    # Random weights drive the latents to about 70, so 1e-5 is taken as part of their size.
    size = case["out.latents"].abs().max().item()
    torch.testing.assert_close(latents, case["out.latents"], atol=1e-5 * size, rtol=0)


def test_without_a_negative_prompt_the_released_null_condition_is_used(
    pipe: KosmosGPipeline, golden_case: Callable[[str], dict[str, Tensor]]
) -> None:
    case = golden_case("encode_condition.padded_batch3.n2.empty")
    null, full = case["out.condition"].chunk(2)
    with torch.no_grad():
        _, negative = pipe.encode_prompt(prompt_embeds=full)
    torch.testing.assert_close(negative, null, atol=1e-5, rtol=0)
