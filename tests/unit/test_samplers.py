import pytest
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

from kosmosg.errors import ConfigError
from kosmosg.model.image_decoder import NOISE_SCHEDULE, scheduler
from kosmosg.samplers import NAMES, sampler


@pytest.mark.parametrize("name", ["dpms", "ddim", "pndm"])
def test_the_released_names_are_the_released_samplers(name):
    assert sampler(name, {}, num_inference_steps=5).config == scheduler(name).config


@pytest.mark.parametrize("name", NAMES)
def test_the_noise_schedule_is_the_released_one(name):
    made = sampler(name, NOISE_SCHEDULE, num_inference_steps=5)
    assert torch.allclose(made.alphas_cumprod, scheduler("ddim").alphas_cumprod)
    assert made.num_inference_steps == 5


def test_the_models_own_schedule_is_kept():
    own = EulerDiscreteScheduler(beta_end=0.02, prediction_type="v_prediction").config
    made = sampler("unipc", own, num_inference_steps=5)
    assert (made.config.beta_end, made.config.prediction_type) == (0.02, "v_prediction")


def test_a_wrong_name_says_the_nearest_and_all():
    with pytest.raises(ConfigError, match=r"'eulr'; did you mean euler\? The names are dpms, ddim"):
        sampler("eulr", {}, num_inference_steps=5)


def test_steps_beyond_a_sampler_are_refused():
    with pytest.raises(ConfigError, match=r"lcm cannot make 51 steps \(.*\); use fewer steps"):
        sampler("lcm", NOISE_SCHEDULE, num_inference_steps=51)
