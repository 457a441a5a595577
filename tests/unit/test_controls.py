"""Controls without training: each does what it says, and its neutral value does nothing."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from hypothesis import given
from hypothesis import strategies as st

from kosmosg.controls import scales_of, steps_in, weights_of, windows_of
from kosmosg.drawing import Drawing, encode_for
from kosmosg.errors import ConfigError, PromptError
from kosmosg.model.image_decoder import scheduler
from kosmosg.note import Picture
from kosmosg.pipeline import KosmosGPipeline
from toys.model import EMBED_DIM, NUM_QUERIES, toy_picture, toy_pipeline
from toys.sampling import latents_of, seeded, stable_diffusion, unet_rows

CAT, DOG = toy_picture(1), toy_picture(2, (64, 30))
BOTH = ["a", CAT, "and", DOG, "on the snow"]
RAGGED = [["a red cat"], BOTH, [CAT, DOG], ["a photo of", DOG]]
APART = {"text_guidance_scale": 2.0, "picture_guidance_scale": 5.0}


@pytest.fixture(scope="module")
def pipe() -> KosmosGPipeline:
    return listening()


def listening() -> KosmosGPipeline:
    """A pipeline whose untrained U-Net hears its condition well, so that a wrong one shows."""
    pipe = toy_pipeline()
    with torch.no_grad():
        for name, weight in pipe.unet.named_parameters():
            if "attn2.to_v" in name or "attn2.to_out" in name:
                weight.mul_(8)
    return pipe


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Assert equality to 1e-5 of the largest: latents of an untrained U-Net reach 30."""
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def embeds(seed: int, rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, NUM_QUERIES, EMBED_DIM, generator=seeded(seed))


# ------------------------------------------------------------------------------------- neutral


@pytest.mark.parametrize(
    "neutral",
    [
        {"text_guidance_scale": 3.0, "picture_guidance_scale": 3.0},
        {"text_guidance_scale": 3.0},  # the other is the model's own, which is 3
        {"guidance_interval": (0.0, 1.0)},
        {"guidance_rescale": 0.0},
        {"picture_weights": [[], [1.0, 1], [1, 1], [1.0]]},
        {"picture_windows": [[], [(0.0, 1.0)] * 2, [(0, 1)] * 2, [(0.0, 1.0)]]},
    ],
    ids=lambda neutral: "-".join(neutral),
)
def test_a_neutral_value_changes_no_bit(pipe, neutral):
    assert torch.equal(latents_of(pipe, RAGGED, **neutral), latents_of(pipe, RAGGED))


@pytest.mark.parametrize(
    "control",
    [
        APART,
        {"guidance_interval": (0.0, 0.5)},
        {"guidance_rescale": 0.7},
        {"picture_weights": [0.5, 1.0]},
        {"picture_windows": [(0.0, 0.5), (0.0, 1.0)]},
    ],
    ids=lambda control: "-".join(control),
)
def test_another_value_changes_the_picture(pipe, control):
    plain, changed = latents_of(pipe, BOTH), latents_of(pipe, BOTH, **control)
    assert (changed - plain).norm() / plain.norm() > 1e-4


@pytest.mark.parametrize(
    "controls",
    [
        APART,
        {"picture_weights": [[], [0.5, 2.0], [0, 1.0], [0.0]]},
        {"picture_windows": [[], [(0, 0.3), (0, 1)], [(0.4, 1), (0.6, 1)], [(0.0, 0.5)]]},
        APART | {"picture_windows": [[], [(0, 0.3), (0, 1)], [(0.4, 1), (0.6, 1)], [(0, 0.5)]]},
    ],
    ids=["guidance", "weights", "windows", "guidance-and-windows"],
)
def test_a_ragged_batch_equals_one_by_one(pipe, controls):
    together = latents_of(pipe, RAGGED, num_images_per_prompt=2, **controls)
    for index, prompt in enumerate(RAGGED):
        own = {name: [v[index]] if isinstance(v, list) else v for name, v in controls.items()}
        generator = [seeded(2 * index), seeded(2 * index + 1)]
        alone = latents_of(pipe, [prompt], num_images_per_prompt=2, generator=generator, **own)
        assert_close(together[2 * index : 2 * index + 2], alone)


# -------------------------------------------------------------------- text and picture guidance


def test_the_two_scales_are_the_formula():
    """One step of DDIM is linear in the prediction, so branches can be added up by hand."""
    one = listening()
    one.scheduler = scheduler("ddim")
    noise = torch.randn(1, 4, 16, 16, generator=seeded())
    with torch.no_grad():
        full, null = one.encode_prompt([BOTH])
        alone, _ = one.encode_prompt([[CAT, DOG]])
        one.scheduler.set_timesteps(1)
        time = one.scheduler.timesteps[0]
        e_full, e_alone, e_null = (
            one.unet(noise, time, encoder_hidden_states=told).sample for told in (full, alone, null)
        )
        guided = e_null + 5.0 * (e_alone - e_null) + 2.0 * (e_full - e_alone)
        expected = one.scheduler.step(guided, time, noise).prev_sample
    made = one(BOTH, num_inference_steps=1, latents=noise, output_type="latent", **APART).images
    assert_close(made, expected)


def test_without_pictures_only_the_texts_scale_counts_and_without_words_the_pictures(pipe):
    for prompt, scale in ((["a red cat"], 2.0), ([CAT, " ", DOG], 5.0)):
        with unet_rows(pipe) as rows:
            apart = latents_of(pipe, prompt, **APART)
        assert torch.equal(apart, latents_of(pipe, prompt, guidance_scale=scale))
        assert set(rows) == {2}


def test_only_rows_with_words_and_pictures_take_a_third_branch(pipe):
    with unet_rows(pipe) as rows:
        latents_of(pipe, RAGGED, num_images_per_prompt=2, **APART)
    assert rows == [8 + 4 + 8] * 3


def test_given_conditions_take_the_pictures_condition_too(pipe):
    with torch.no_grad():
        full, null = pipe.encode_prompt([BOTH])
        alone, _ = pipe.encode_prompt([[CAT, DOG]])
    conditions = {"prompt_embeds": full, "negative_prompt_embeds": null}
    read = latents_of(pipe, BOTH, **APART)
    handed = latents_of(pipe, None, picture_prompt_embeds=alone, **conditions, **APART)
    assert_close(handed, read)
    with pytest.raises(ConfigError, match="give picture_prompt_embeds too"):
        pipe(**conditions, **APART)


@pytest.mark.parametrize(
    ("prompt", "weights"),
    [(["a red cat"], None), ([CAT, DOG], None), (["a", CAT], [0.0]), (BOTH, [0.5, 0.0])],
)
def test_conditions_encoded_beforehand_take_the_branches_and_bits_of_the_prompt(
    pipe, prompt, weights
):
    """What `--offload` draws with; `replay` draws the prompt."""
    parts = [
        part if isinstance(part, str) else Picture(path=Path("x.png"), image=part, sha256="")
        for part in prompt
    ]
    arguments = {"negative_prompt": "a hat", "picture_weights": weights, **APART}
    encoded = encode_for(pipe, Drawing(prompt=parts, seeds=[3], arguments=arguments))
    conditions = {
        name: getattr(encoded, name)
        for name in ("prompt_embeds", "negative_prompt_embeds", "picture_prompt_embeds")
    }
    with unet_rows(pipe) as rows:
        read = latents_of(pipe, prompt, **arguments)
        handed = latents_of(pipe, None, **conditions, **APART)
    assert torch.equal(read, handed)
    assert rows[:3] == rows[3:]


def test_scales_that_differ_guide_whatever_they_are(pipe):
    with unet_rows(pipe) as rows:
        latents_of(pipe, BOTH, text_guidance_scale=1.0, picture_guidance_scale=0.0)
        latents_of(pipe, BOTH, text_guidance_scale=1.0, picture_guidance_scale=1.0)
    assert rows == [3] * 3 + [1] * 3


def test_a_callback_may_cut_guidance_off(pipe):
    windows = [(0.0, 1.0), (0.0, 0.75)]
    with unet_rows(pipe) as rows:
        pipe(
            BOTH,
            num_inference_steps=4,
            picture_windows=windows,
            callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.5),
            **APART,
        )
    assert rows == [3, 3, 3, 1]


# ------------------------------------------------------------------------- interval and rescale


def test_outside_the_interval_only_the_prompts_half_is_run(pipe):
    with unet_rows(pipe) as rows:
        latents_of(pipe, BOTH, num_inference_steps=10, guidance_interval=(0.2, 0.7))
        latents_of(pipe, BOTH, num_inference_steps=4, guidance_interval=(0.5, 1.0), **APART)
    assert rows == [1] * 2 + [2] * 5 + [1] * 3 + [1] * 2 + [3] * 2


def test_interval_is_guidance_that_a_callback_switches_off(pipe):
    def off(pipe, index, _time, tensors):
        if index == 1:
            pipe._guidance_scale = 1.0
        return tensors

    arguments = {"num_inference_steps": 4, "generator": seeded(), "output_type": "latent"}
    switched = pipe(BOTH, callback_on_step_end=off, **arguments).images
    window = latents_of(pipe, BOTH, num_inference_steps=4, guidance_interval=(0, 0.5))
    assert torch.equal(window, switched)


def test_rescaling_is_that_of_stable_diffusion(pipe):
    arguments = {
        "prompt_embeds": embeds(1),
        "negative_prompt_embeds": embeds(2),
        "num_inference_steps": 4,
        "guidance_scale": 9.0,
        "guidance_rescale": 0.7,
        "output_type": "latent",
    }
    ours = pipe(**arguments, generator=seeded()).images
    size = {"height": pipe.generation_config.height, "width": pipe.generation_config.width}
    theirs = stable_diffusion(pipe)(**arguments, **size, generator=seeded()).images
    assert torch.equal(ours, theirs)


# --------------------------------------------------------------------------- weights and windows


def test_weight_0_is_the_prompt_without_the_picture(pipe):
    assert torch.equal(
        latents_of(pipe, BOTH, picture_weights=[1.0, 0.0]),
        latents_of(pipe, [["a", CAT, "and", "on the snow"]]),
    )
    assert torch.equal(
        pipe.encode_prompt([[CAT]], picture_weights=[0.0])[0], pipe.encode_prompt("a")[1]
    )


def test_a_weight_scales_the_pictures_latents(pipe):
    weighted = pipe.encode_prompt(BOTH, picture_weights=[1.0, 0.5])[0]
    taken = []

    def halve(_module, _given, latents):
        taken.append(latents)
        return torch.cat([latents[:1], latents[1:] * 0.5])

    handle = pipe.mllm.resampler.register_forward_hook(halve)
    by_hand = pipe.encode_prompt(BOTH)[0]
    handle.remove()
    assert len(taken[0]) == 2
    assert torch.equal(weighted, by_hand)


def test_a_weight_moves_the_condition_further_the_further_it_is_from_1(pipe):
    with torch.no_grad():
        plain = pipe.encode_prompt(BOTH)[0]
        moved = [
            float((pipe.encode_prompt(BOTH, picture_weights=[1.0, weight])[0] - plain).norm())
            for weight in (1.0, 0.9, 0.6, 0.3)
        ]
    assert moved[0] == 0
    assert moved == sorted(moved)


def test_a_window_switches_between_the_prompt_with_and_without_the_picture(pipe):
    with torch.no_grad():
        whole, null = pipe.encode_prompt([BOTH])
        without, _ = pipe.encode_prompt([["a", CAT, "and", "on the snow"]])

    def switch(_pipe, index, _time, tensors):
        if index == 2:
            tensors["prompt_embeds"] = torch.cat([null, without])
        return tensors

    by_hand = pipe(
        prompt_embeds=whole,
        negative_prompt_embeds=null,
        num_inference_steps=5,
        callback_on_step_end=switch,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
        generator=seeded(),
        output_type="latent",
    ).images
    windowed = latents_of(
        pipe, BOTH, num_inference_steps=5, picture_windows=[(0.0, 1.0), (0.0, 0.6)]
    )
    assert_close(windowed, by_hand)


def test_each_subset_of_pictures_is_read_once_and_before_denoising(pipe):
    order = []
    handles = [
        pipe.mllm.register_forward_pre_hook(lambda _m, given: order.append(len(given[0]))),
        pipe.unet.register_forward_pre_hook(lambda *_: order.append("unet")),
    ]
    windows = [(0.0, 0.5), (0.25, 0.75)]  # both, one, the other, none
    pipe("a", num_inference_steps=1)  # so that the null prompt is remembered
    order.clear()
    pipe(BOTH, num_inference_steps=8, picture_windows=windows, **APART)
    for handle in handles:
        handle.remove()
    assert order == [7] + ["unet"] * 8  # 4 subsets, 3 of them with pictures alone


@given(st.lists(st.floats(0, 1), max_size=4), st.integers(1, 60))
def test_windows_that_meet_cover_each_step_once(cuts, num_steps):
    edges = [0.0, *sorted(cuts), 1.0]
    steps = [step for window in pairwise(edges) for step in steps_in(window, num_steps)]
    assert steps == list(range(num_steps))


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"text_guidance_scale": math.nan}, ConfigError, "text_guidance_scale is nan"),
        ({"picture_guidance_scale": -1.0}, ConfigError, "picture_guidance_scale -1.0; where they"),
        ({"guidance_interval": (0.8, 0.2)}, ConfigError, r"guidance_interval is \(0.8, 0.2\)"),
        ({"guidance_interval": (0.0, 2.0)}, ConfigError, "two fractions of the schedule"),
        ({"guidance_interval": (0.5,)}, ConfigError, "two fractions of the schedule"),
        ({"guidance_rescale": 1.5}, ConfigError, "guidance_rescale is 1.5; give a number from 0"),
        ({"picture_weights": [1.0]}, PromptError, "has 2 pictures and 1 picture_weights"),
        ({"picture_weights": [[1.0] * 2] * 2}, PromptError, "2 lists for 1 prompts"),
        ({"picture_weights": [1.0, 5.0]}, PromptError, r"weight is 5.0; give .* to 4"),
        ({"picture_weights": [1.0, math.nan]}, PromptError, "weight is nan"),
        ({"picture_weights": [-1.0, 1.0]}, PromptError, "weight is -1.0"),
        ({"picture_windows": [(0.0, 1.0)]}, PromptError, "2 pictures and 1 picture_windows"),
        ({"picture_windows": [(0.5, 0.5)] * 2}, PromptError, "the smaller first"),
        ({"picture_windows": [(0.0, math.inf)] * 2}, PromptError, "two fractions"),
    ],
)
def test_what_cannot_work_is_named(pipe, arguments, error, words):
    with pytest.raises(error, match=words):
        pipe(BOTH, **arguments)


@pytest.mark.parametrize("name", ["picture_weights", "picture_windows"])
def test_given_conditions_have_no_pictures_left_to_control(pipe, name):
    with pytest.raises(ConfigError, match=f"{name} is given with prompt_embeds"):
        pipe(prompt_embeds=embeds(1), **{name: [1.0] if "weights" in name else [(0.0, 1.0)]})
    with pytest.raises(ConfigError, match="not with prompt"):
        pipe("a cat", picture_prompt_embeds=embeds(1))


def test_nothing_given_is_1_and_always():
    assert weights_of(None, [BOTH, ["a"]]) == [(1.0, 1.0), ()]
    assert windows_of(None, [[CAT]]) == [((0.0, 1.0),)]
    assert weights_of([], [["a"]]) == weights_of([[]], [["a"]]) == [()]
    assert scales_of(6.0, None, 2.0) == (6.0, 2.0)
