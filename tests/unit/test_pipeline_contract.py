"""The contract that diffusers' own pipeline tester holds its pipelines to, at toy size."""

import inspect
import weakref

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

from kosmosg.errors import ConfigError
from kosmosg.pipeline import KosmosGPipeline
from toys.model import SIZE, toy_picture, toy_pipeline
from toys.sampling import seeded

CAT = toy_picture(1)
PROMPT = ["a photo of", CAT, "on the snow"]
MODULES = ("mllm", "aligner", "unet", "vae")


@pytest.fixture
def pipe() -> KosmosGPipeline:
    return toy_pipeline()


@pytest.fixture(scope="module")
def shared() -> KosmosGPipeline:
    """For tests that change nothing in it."""
    return toy_pipeline()


def draw(pipe, prompt=PROMPT, **arguments):
    given = {"generator": seeded(), "output_type": "pt"} | arguments
    return pipe(prompt, **given).images


def test_the_call_keeps_the_names_and_defaults_of_stable_diffusion():
    ours = inspect.signature(KosmosGPipeline.__call__).parameters
    theirs = inspect.signature(StableDiffusionPipeline.__call__).parameters
    absent = {"sigmas", "ip_adapter_image", "ip_adapter_image_embeds", "clip_skip", "kwargs"}
    assert set(theirs) - set(ours) == absent
    other = {name for name in set(ours) & set(theirs) if ours[name].default != theirs[name].default}
    # What a model brings itself is None here; a tuple cannot be changed by mistake.
    own = {"num_inference_steps", "guidance_scale", "callback_on_step_end_tensor_inputs"}
    assert other == own


@pytest.mark.parametrize("per_prompt", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_pictures_per_prompt(shared, size, per_prompt):
    images = draw(shared, [PROMPT] * size, num_images_per_prompt=per_prompt)
    assert images.shape == (size * per_prompt, 3, SIZE, SIZE)


def test_a_tuple_holds_what_the_output_holds(shared):
    output = shared(PROMPT, generator=seeded(), output_type="pt")
    images, flagged = shared(PROMPT, generator=seeded(), output_type="pt", return_dict=False)
    assert (flagged, output.nsfw_content_detected) == (None, None)
    assert torch.equal(images, output.images)
    assert torch.equal(output["images"], images)


def test_a_call_repeats_and_leaves_no_trace(shared):
    first = draw(shared)
    draw(shared, picture_weights=[0.5], text_guidance_scale=1.0, guidance_interval=(0.0, 0.5))
    assert torch.equal(draw(shared), first)


def test_a_callback_gets_each_tensor_and_may_change_it(shared):
    inputs = shared._callback_tensor_inputs
    seen = []

    def watch(pipe, index, timestep, tensors):
        assert pipe is shared
        assert set(tensors) == set(inputs)
        seen.append((index, int(timestep), tensors["prompt_embeds"].shape[0]))
        return {"latents": torch.zeros_like(tensors["latents"])} if index == 2 else tensors

    made = draw(
        shared,
        callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=inputs,
        output_type="latent",
    )
    assert not made.any()
    times = shared.scheduler.timesteps.tolist()
    assert seen == [(index, time, 2) for index, time in enumerate(times)]


def test_a_callback_may_raise_guidance_step_by_step(shared):
    scales = []

    def raise_it(pipe, _index, _timestep, tensors):
        scales.append(pipe.guidance_scale)
        pipe._guidance_scale *= 2
        return tensors

    raised = draw(shared, guidance_scale=1.5, callback_on_step_end=raise_it, output_type="latent")
    assert scales == [1.5, 3.0, 6.0]
    assert not torch.equal(raised, draw(shared, guidance_scale=1.5, output_type="latent"))


def test_a_condition_of_encode_prompt_draws_without_what_encoded_it(pipe):
    expected = draw(pipe)
    with torch.no_grad():
        embeds, negative = pipe.encode_prompt(PROMPT)
    other = KosmosGPipeline(**(pipe.components | {"mllm": None, "aligner": None}))
    other.set_progress_bar_config(disable=True)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    size = {"num_inference_steps": 3, "guidance_scale": 3.0, "height": SIZE, "width": SIZE}
    assert torch.equal(draw(other, None, **given, **size), expected)


def test_optional_components_stay_absent_on_disk(pipe, tmp_path):
    pipe.register_modules(mllm=None, aligner=None)
    pipe.save_pretrained(tmp_path / "model")
    loaded = KosmosGPipeline.from_pretrained(tmp_path / "model")
    assert (loaded.mllm, loaded.aligner) == (None, None)
    assert not (tmp_path / "model" / "mllm").exists()
    with pytest.raises(ConfigError, match="made without its mllm or aligner"):
        loaded(PROMPT)


def test_components_make_the_same_pipeline_again(shared):
    expected = set(inspect.signature(KosmosGPipeline.__init__).parameters)
    assert set(shared.components) == expected - {"self", "generation_config"}
    again = KosmosGPipeline(**shared.components, generation_config=shared.generation_config)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again), draw(shared))


def test_through_stable_diffusion_and_back(shared):
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    stable = StableDiffusionPipeline.from_pipe(shared, **absent, requires_safety_checker=False)
    back = KosmosGPipeline.from_pipe(
        stable,
        mllm=shared.mllm,
        aligner=shared.aligner,
        tokenizer=shared.tokenizer,
        generation_config=shared.generation_config,
    )
    back.set_progress_bar_config(disable=True)
    assert back.unet is shared.unet
    assert torch.equal(draw(back), draw(shared))


def test_a_config_builds_another_sampler(pipe):
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert draw(pipe).isfinite().all()


def test_to_casts_every_module_and_back(pipe):
    exact = draw(pipe)
    pipe.to(torch.float16)
    assert {getattr(pipe, name).dtype for name in MODULES} == {torch.float16}
    pipe.to(dtype=torch.bfloat16)
    rough = draw(pipe)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().mean() < 0.1
    assert pipe.to(torch.float32).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_survives_the_disk(pipe, tmp_path, dtype):
    pipe.to(dtype).save_pretrained(tmp_path / "model")
    loaded = KosmosGPipeline.from_pretrained(tmp_path / "model", dtype=dtype)
    for name in MODULES:
        ours, theirs = getattr(pipe, name).state_dict(), getattr(loaded, name).state_dict()
        assert {weight.dtype for weight in theirs.values()} == {dtype}
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_offloading_covers_every_module_in_the_order_of_use(pipe):
    used = []
    for name in MODULES:
        module = getattr(pipe, name).decoder if name == "vae" else getattr(pipe, name)
        module.register_forward_pre_hook(lambda *_, name=name: used.append(name))
    draw(pipe)
    order = list(dict.fromkeys(used))
    assert pipe.model_cpu_offload_seq == "->".join(order)
    modules = {n for n, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert modules == set(order)


def test_offloading_brings_each_part_in_when_its_turn_comes(pipe, monkeypatch):
    expected, given = draw(pipe), torch.nn.Module.to
    # The CPU stands for the GPU here, so only what is asked of the parts can be seen.
    pipe.enable_model_cpu_offload(device="cpu")
    names, moved = {id(getattr(pipe, name)): name for name in MODULES}, []

    def to(module, *where, **options):
        if id(module) in names:
            moved.append((names[id(module)], *map(str, where)))
        return given(module, *where, **options)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    assert torch.equal(draw(pipe), expected)
    brought = [name for name, *where in moved if where == ["cpu:0"]]
    assert list(dict.fromkeys(brought)) == list(MODULES)
    moved.clear()
    assert torch.equal(draw(pipe), expected), "a second call finds the parts away"
    hooks = [hook.hook for hook in pipe._all_hooks]
    before = [hook.prev_module_hook and names[id(hook.prev_module_hook.model)] for hook in hooks]
    assert before == [None, *MODULES[:-1]], "each part sends the one before it away"


# ------------------------------------------------------------------------ encode, then let it go


def test_the_encoder_is_gone_before_the_first_step(pipe):
    expected = draw(pipe, picture_windows=[(0.0, 0.5)], text_guidance_scale=1.0)
    parts = [weakref.ref(pipe.mllm), weakref.ref(pipe.aligner)]
    alive = []

    def look(_pipe, _index, _timestep, tensors):
        alive.append([part() is not None for part in parts])
        return tensors

    made = draw(
        pipe,
        picture_windows=[(0.0, 0.5)],
        text_guidance_scale=1.0,
        free_encoder=True,
        callback_on_step_end=look,
    )
    assert torch.equal(made, expected)
    assert alive == [[False, False]] * 3
    with pytest.raises(ConfigError, match="load the whole model"):
        pipe(PROMPT)
