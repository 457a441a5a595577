"""The samplers end where the release ends, and draw as many pictures as were asked for."""

from collections.abc import Callable

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from kosmosg.model.image_decoder import NOISE_SCHEDULE, scheduler
from kosmosg.verify import Golden
from kosmosg.verify.compare import difference, read_case
from kosmosg.verify.decoder import released_run, reloaded, stand_in


def test_a_sampler_that_ends_at_noise_0_is_another(golden_with: Callable[[str], Golden]) -> None:
    """It would pass by its timesteps, which are the same."""
    name = "cases/sched.dpms.5.safetensors"
    case = read_case(golden_with(name).directory, name)
    newer = DPMSolverMultistepScheduler(**NOISE_SCHEDULE)
    errors = []
    for sampler in (newer, reloaded(newer), scheduler("dpms"), reloaded(scheduler("dpms"))):
        sampler.set_timesteps(5)
        assert sampler.timesteps.tolist() == case["in.timesteps"].tolist()
        latents = released_run(
            stand_in,
            sampler,
            case["in.init_latents"],
            case["in.condition"],
            guidance_scale=case["in.guidance"].item(),
        )
        errors.append(difference(latents, case["out.latents"]))
    assert min(errors[:2]) > 1e-2
    assert max(errors[2:]) < 1e-4


@pytest.mark.parametrize("guidance_scale", [1.0, 0.0])
def test_at_guidance_1_and_below_the_release_draws_twice_and_the_pipeline_once(
    golden_with: Callable[[str], Golden], guidance_scale: float
) -> None:
    name = "cases/encode_condition.two_images.n1.neg.safetensors"
    golden = golden_with(name)
    condition = read_case(golden.directory, name)["out.condition"]
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
