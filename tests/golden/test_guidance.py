"""At guidance 1 and below the release draws twice the pictures, the pipeline those asked for."""

from collections.abc import Callable

import pytest
import torch

from kosmosg.model.image_decoder import scheduler
from kosmosg.verify import Golden
from kosmosg.verify.compare import read_case
from kosmosg.verify.decoder import released_run


@pytest.mark.parametrize("guidance_scale", [1.0, 0.0])
def test_the_pipeline_gives_the_half_that_the_release_has_more(
    golden_with: Callable[[str], Golden], guidance_scale: float
) -> None:
    golden = golden_with("cases/encode_condition.two_images.n1.neg.safetensors")
    case = read_case(golden.directory, "cases/encode_condition.two_images.n1.neg.safetensors")
    condition = case["out.condition"]
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    sampler = scheduler("ddim")
    sampler.set_timesteps(3)
    doubled = released_run(
        golden.decoder.noise_pred, sampler, latents, condition, guidance_scale=guidance_scale
    )
    rows = []
    pipeline = golden.pipeline
    pipeline.scheduler = scheduler("ddim")
    hook = pipeline.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    ours = pipeline(
        prompt_embeds=condition[1:],
        negative_prompt_embeds=condition[:1],
        latents=latents[:1],
        height=16,
        width=16,
        num_inference_steps=3,
        guidance_scale=guidance_scale,
        output_type="latent",
    ).images
    hook.remove()
    assert rows == [1] * 3
    assert len(doubled) == 2
    torch.testing.assert_close(ours, doubled[1:], atol=1e-4, rtol=0)
    assert not torch.allclose(ours, doubled[:1], atol=1e-2)
