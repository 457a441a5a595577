"""KosmosGPipeline keeps the conventions of diffusers and its own promises."""

import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from PIL import Image
from safetensors.torch import load_file, save_file

from kosmosg import release
from kosmosg.errors import CheckpointError, ConfigError, PromptError
from kosmosg.model.image_decoder import scheduler
from kosmosg.pipeline import KosmosGPipeline, sampler_name
from kosmosg.release import GenerationConfig
from toys.model import EMBED_DIM, NUM_QUERIES, SIZE, toy_picture, toy_pipeline
from toys.sampling import seeded, stable_diffusion

CAT, DOG = toy_picture(1), toy_picture(2, (64, 30))
RAGGED = [["a red cat"], ["a photo of", CAT, "on the snow"], [CAT, "and", DOG], [DOG]]


@pytest.fixture
def pipe() -> KosmosGPipeline:
    return toy_pipeline()


@pytest.fixture(scope="module")
def shared() -> KosmosGPipeline:
    """For tests that change nothing in it."""
    return toy_pipeline()


def embeds(seed: int, rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, NUM_QUERIES, EMBED_DIM, generator=seeded(seed))


# ------------------------------------------------------------------- equal to Stable Diffusion


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
@pytest.mark.parametrize(
    "sampler",
    [
        scheduler("dpms"),
        scheduler("ddim"),
        scheduler("pndm"),
        EulerDiscreteScheduler(steps_offset=1),
        EulerAncestralDiscreteScheduler(steps_offset=1),
        UniPCMultistepScheduler(steps_offset=1),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_bit_equal_to_stable_diffusion(pipe, sampler, guidance_scale):
    pipe.scheduler = sampler
    arguments = {
        "prompt_embeds": embeds(1),
        "negative_prompt_embeds": embeds(2),
        "num_images_per_prompt": 2,
        "num_inference_steps": 4,
        "guidance_scale": guidance_scale,
        "height": SIZE,
        "width": SIZE + 8,
        "eta": 0.5,
        "output_type": "np",
    }
    ours = pipe(**arguments, generator=seeded()).images
    theirs = stable_diffusion(pipe)(**arguments, generator=seeded()).images
    assert np.array_equal(ours, theirs)


def test_bit_equal_with_given_latents_and_timesteps_and_a_generator_each(pipe):
    arguments = {
        "prompt_embeds": embeds(1),
        "negative_prompt_embeds": embeds(2),
        "latents": torch.randn(2, 4, 16, 16, generator=seeded(5)),
        "timesteps": [900, 500, 100],
        "guidance_scale": 3.0,
        "output_type": "latent",
    }
    generators = [seeded(1), seeded(2)]
    ours = pipe(**arguments, generator=generators).images
    theirs = stable_diffusion(pipe)(**arguments, height=SIZE, width=SIZE).images
    assert torch.equal(ours, theirs)


def test_the_pair_from_encode_prompt_feeds_stable_diffusion(pipe):
    with torch.no_grad():
        positive, negative = pipe.encode_prompt(["a cat", CAT])
    ours = pipe(["a cat", CAT], generator=seeded(), output_type="np").images
    theirs = stable_diffusion(pipe)(
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        height=SIZE,
        width=SIZE,
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=seeded(),
        output_type="np",
    ).images
    assert np.array_equal(ours, theirs)


def test_the_cutoff_callback_of_diffusers_works(pipe):
    callback = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    arguments = {
        "prompt_embeds": embeds(1, 1),
        "negative_prompt_embeds": embeds(2, 1),
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        "callback_on_step_end": callback,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
        "output_type": "latent",
    }
    ours = pipe(**arguments, generator=seeded()).images
    theirs = stable_diffusion(pipe)(**arguments, height=SIZE, width=SIZE, generator=seeded()).images
    assert torch.equal(ours, theirs)


# ------------------------------------------------------------------------------------- prompts


def test_a_ragged_batch_equals_one_by_one(shared):
    with torch.no_grad():
        together, _ = shared.encode_prompt(RAGGED)
        alone = torch.cat([shared.encode_prompt([prompt])[0] for prompt in RAGGED])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_batch_of_pictures_equals_one_by_one(shared):
    generators = [seeded(i) for i in range(len(RAGGED))]
    together = shared(RAGGED, generator=generators, output_type="pt").images
    for index, prompt in enumerate(RAGGED):
        alone = shared([prompt], generator=seeded(index), output_type="pt").images
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=0)


def test_pictures_of_one_prompt_stay_together(shared):
    with torch.no_grad():
        one, null = shared.encode_prompt([["a cat"], ["a dog"]])
        three, nulls = shared.encode_prompt([["a cat"], ["a dog"]], num_images_per_prompt=3)
    assert torch.equal(three, one[[0, 0, 0, 1, 1, 1]])
    assert torch.equal(nulls, null[[0, 0, 0, 1, 1, 1]])


def test_without_a_negative_prompt_the_null_prompt_is_used(shared):
    with torch.no_grad():
        _, default = shared.encode_prompt("a cat")
        _, empty = shared.encode_prompt("a cat", "")
        _, other = shared.encode_prompt("a cat", "a red dog")
        positive, _ = shared.encode_prompt("a red dog")
    assert torch.equal(default, empty)
    assert torch.equal(other, positive)
    assert not torch.allclose(other, default)


def test_one_negative_prompt_each_and_empty_ones_are_null(shared):
    with torch.no_grad():
        _, null = shared.encode_prompt("a cat")
        red, _ = shared.encode_prompt("a red dog")
        _, mixed = shared.encode_prompt([["a cat"], ["a dog"]], [["a red dog"], [""]])
    assert torch.equal(mixed, torch.cat([red, null]))


def test_negative_prompts_must_match(shared):
    with pytest.raises(PromptError, match="2 negative conditions"):
        shared.encode_prompt([["a cat"]] * 3, [["a dog"]] * 2)


def test_the_null_condition_is_computed_once_and_again_when_a_weight_changes(pipe):
    runs = []
    pipe.mllm.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        _, first = pipe.encode_prompt("a cat")
        _, again = pipe.encode_prompt("a dog")
        assert (len(runs), torch.equal(first, again)) == (3, True)
        pipe.mllm.layer_norm.bias.add_(1)
        _, changed = pipe.encode_prompt("a cat")
    assert not torch.allclose(first, changed)
    assert len(runs) == 5


def test_guidance_of_1_skips_the_null_half(pipe):
    rows = []
    pipe.unet.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    pipe("a cat", guidance_scale=1.0)
    pipe("a cat", guidance_scale=1.5)
    assert rows == [1] * 3 + [2] * 3
    assert pipe.encode_prompt("a cat", do_classifier_free_guidance=False)[1] is None


def test_gradients_pass_through_encode_prompt(pipe):
    positive, negative = pipe.encode_prompt(["a", CAT])
    (positive.sum() + negative.sum()).backward()
    assert all(weight.grad is not None for weight in pipe.mllm.resampler.parameters())


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "empty"),
        ([[CAT], []], "empty"),
        ([CAT] * 9, "9 pictures"),
        ("a purple zebra", "'purple', 'zebra'"),
        (["a cat", "a dog"], "could be one prompt or 2"),
    ],
)
def test_bad_prompts_are_named(shared, prompt, words):
    with pytest.raises(PromptError, match=words):
        shared(prompt)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"height": 33}, "height is 33; give a positive multiple of 2"),
        ({"width": 0}, "width is 0"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"num_images_per_prompt": -1}, "num_images_per_prompt is -1"),
        ({"prompt_embeds": embeds(0)}, "either prompt or prompt_embeds"),
        ({"prompt": None}, "either prompt or prompt_embeds"),
        ({"negative_prompt": "a", "negative_prompt_embeds": embeds(0)}, "not both"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 6, 20)}, "20 wide.*condition 16"),
        (
            {"prompt": None, "prompt_embeds": embeds(0), "negative_prompt_embeds": embeds(0, 1)},
            "same shape",
        ),
        ({"output_type": "jpg"}, "output_type has 'jpg'; it may be pil, np, pt, latent"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "'noise'"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, r"need \(1, 4, 16, 16\)"),
        ({"generator": [seeded(), seeded()]}, "2 generators for 1 pictures"),
    ],
)
def test_bad_arguments_are_named(shared, arguments, words):
    with pytest.raises(ConfigError, match=words):
        shared(**({"prompt": "a cat"} | arguments))


# ------------------------------------------------------------------------------------ pictures


def test_output_types_hold_the_same_picture(shared):
    pil = shared(["a", CAT], generator=seeded()).images[0]
    array = shared(["a", CAT], generator=seeded(), output_type="np").images[0]
    tensor = shared(["a", CAT], generator=seeded(), output_type="pt").images[0]
    assert isinstance(pil, Image.Image)
    assert pil.size == (SIZE, SIZE)
    assert np.array_equal(np.asarray(pil), (array * 255).round().astype(np.uint8))
    assert np.array_equal(array, tensor.permute(1, 2, 0).numpy())


def test_a_tuple_instead_of_an_output(shared):
    images, _ = shared("a cat", return_dict=False)
    assert len(images) == 1


def test_defaults_are_the_models_own(pipe):
    steps = []

    def watch(_pipe, index, _timestep, tensors):
        steps.append(index)
        return tensors

    image = pipe("a cat", callback_on_step_end=watch).images[0]
    assert (image.size, steps, pipe.guidance_scale) == ((SIZE, SIZE), [0, 1, 2], 3.0)
    assert pipe.num_timesteps == 3


def test_a_callback_can_replace_the_latents(pipe):
    latents = pipe(
        "a cat",
        callback_on_step_end=lambda *given: {"latents": torch.zeros_like(given[3]["latents"])},
        output_type="latent",
    ).images
    assert not latents.any()


def test_interrupting_skips_the_remaining_steps(pipe):
    steps = []

    def stop(pipe, index, _timestep, tensors):
        steps.append(index)
        pipe._interrupt = index == 1
        return tensors

    assert len(pipe("a cat", callback_on_step_end=stop, num_inference_steps=5).images) == 1
    assert steps == [0, 1]
    pipe("a cat", callback_on_step_end=stop, num_inference_steps=5)
    assert steps == [0, 1, 0, 1]


def test_the_progress_bar_counts_steps(pipe, capsys):
    pipe.set_progress_bar_config(disable=False)
    pipe("a cat")
    assert "3/3" in capsys.readouterr().err


def test_bfloat16_runs_and_stays_close(pipe):
    exact = pipe(["a", CAT], generator=seeded(), output_type="latent").images
    noise = torch.randn(exact.shape, generator=seeded())
    pipe.to(torch.bfloat16)
    rough = pipe(["a", CAT], latents=noise.bfloat16(), output_type="latent").images
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() / exact.norm() < 0.1


@pytest.mark.parametrize("part", ["mllm", "aligner", "unet", "vae"])
def test_each_part_may_have_a_precision_of_its_own(toy_dir, part):
    dtypes = {"default": torch.float32, part: torch.bfloat16}
    exact, mixed = (KosmosGPipeline.from_pretrained(toy_dir, dtype=one) for one in (None, dtypes))
    assert getattr(mixed, part).dtype == torch.bfloat16
    pictures = []
    for one in (exact, mixed):
        one.set_progress_bar_config(disable=True)
        pictures.append(one(["a", CAT], generator=seeded(), output_type="np").images)
    assert 0 < np.abs(pictures[0] - pictures[1]).max() < 0.2


# ------------------------------------------------------------------------------------- on disk


def test_saving_and_loading_is_exact(toy_dir, shared):
    loaded = KosmosGPipeline.from_pretrained(toy_dir)
    loaded.set_progress_bar_config(disable=True)
    for name in ("mllm", "aligner", "unet", "vae"):
        ours, theirs = getattr(shared, name).state_dict(), getattr(loaded, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert loaded.generation_config == shared.generation_config
    assert loaded.tokenizer.encode("a red cat") == shared.tokenizer.encode("a red cat")
    arguments = {"output_type": "np", "num_images_per_prompt": 2}
    assert np.array_equal(
        shared(["a", CAT], generator=seeded(), **arguments).images,
        loaded(["a", CAT], generator=seeded(), **arguments).images,
    )


def test_variants_and_dtypes(tmp_path, pipe, toy_dir):
    pipe.to(torch.bfloat16).save_pretrained(tmp_path, variant="bf16")
    assert (tmp_path / "mllm" / "diffusion_pytorch_model.bf16.safetensors").is_file()
    assert KosmosGPipeline.from_pretrained(tmp_path, variant="bf16").dtype == torch.float32
    half = KosmosGPipeline.from_pretrained(tmp_path, variant="bf16", dtype=torch.bfloat16)
    assert {half.mllm.dtype, half.aligner.dtype, half.unet.dtype} == {torch.bfloat16}
    with pytest.raises(CheckpointError, match="leave out variant='fp16', or"):
        KosmosGPipeline.from_pretrained(toy_dir, variant="fp16")


def test_components_can_be_left_out_and_replaced(toy_dir, shared):
    sampler = DDIMScheduler()
    pipe = KosmosGPipeline.from_pretrained(toy_dir, mllm=None, unet=shared.unet, scheduler=sampler)
    assert pipe.mllm is None
    assert (pipe.unet is shared.unet, pipe.scheduler is sampler) == (True, True)
    pipe(prompt_embeds=embeds(1), negative_prompt_embeds=embeds(2))
    with pytest.raises(ConfigError, match="made without its mllm"):
        pipe("a cat")


def test_a_swapped_sampler_survives_saving(tmp_path, pipe):
    for sampler, name in (
        (scheduler("ddim"), "ddim"),
        (EulerDiscreteScheduler(), "EulerDiscreteScheduler"),
    ):
        pipe.scheduler = sampler
        pipe.save_pretrained(tmp_path)
        loaded = KosmosGPipeline.from_pretrained(tmp_path)
        assert type(loaded.scheduler) is type(sampler)
        assert loaded.generation_config.scheduler == name


def test_the_generation_config_chooses_the_sampler(tmp_path, toy_dir):
    directory = shutil.copytree(toy_dir, tmp_path / "model")
    edit(directory / "generation_config.json", scheduler="pndm")
    assert sampler_name(KosmosGPipeline.from_pretrained(directory).scheduler) == "pndm"


def test_from_pipe_shares_the_components(shared):
    other = KosmosGPipeline.from_pipe(shared)
    assert other.components == shared.components
    assert other.generation_config == shared.generation_config
    stable = StableDiffusionPipeline.from_pipe(
        shared,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    assert stable.unet is shared.unet


def test_the_offload_order_names_real_components(shared):
    names = shared.model_cpu_offload_seq.split("->")
    assert all(isinstance(shared.components[name], torch.nn.Module) for name in names)


def test_bad_directories_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no model at .*nowhere.*the shipped model, nano"):
        KosmosGPipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no Kosmos-G model: generation_config\.json"):
        KosmosGPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "mllm/config.json",
        "mllm/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer/dict.txt",
    ],
)
def test_a_missing_file_is_named(tmp_path, toy_dir, file):
    directory = shutil.copytree(toy_dir, tmp_path / "model")
    (directory / file).unlink()
    with pytest.raises(CheckpointError, match=Path(file).name) as error:
        KosmosGPipeline.from_pretrained(directory)
    assert ";" in str(error.value), "no remedy"


def test_another_version_is_refused(tmp_path, toy_dir):
    directory = shutil.copytree(toy_dir, tmp_path / "model")
    edit(directory / "generation_config.json", format_version=2)
    with pytest.raises(CheckpointError, match="format version 2; this kosmosg reads version 1"):
        KosmosGPipeline.from_pretrained(directory)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"guidance_scale": "strong"}, "guidance_scale = 'strong'"),
        ({"stepps": 3}, "no field 'stepps'"),
        ({"scheduler": "dpm"}, "names the scheduler 'dpm'"),
    ],
)
def test_a_wrong_generation_config_is_refused(tmp_path, toy_dir, change, words):
    directory = shutil.copytree(toy_dir, tmp_path / "model")
    edit(directory / "generation_config.json", **change)
    with pytest.raises(CheckpointError, match=words):
        KosmosGPipeline.from_pretrained(directory)


@pytest.mark.parametrize(
    "name", ["generation_config.json", "model_index.json", "aligner/config.json"]
)
def test_json_nested_too_deep_is_refused(tmp_path, toy_dir, name):
    directory = shutil.copytree(toy_dir, tmp_path / "model")
    (directory / name).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="recursion"):
        KosmosGPipeline.from_pretrained(directory)


def test_a_pickle_is_not_read_where_safetensors_go_by_another_name(tmp_path, toy_dir):
    directory = shutil.copytree(toy_dir, tmp_path / "model")
    weights = directory / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.rename(weights.with_name("diffusion_pytorch_model-00001-of-00001.safetensors"))
    with pytest.raises(CheckpointError, match="safetensors"):
        KosmosGPipeline.from_pretrained(directory)


def test_damaged_and_foreign_weights_are_refused(tmp_path, toy_dir):
    directory = shutil.copytree(toy_dir, tmp_path / "model")
    weights = directory / "aligner" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()

    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="aligner"):
        KosmosGPipeline.from_pretrained(directory)

    tensors = load_file(toy_dir / "aligner" / weights.name)
    tensors.pop("encoder.queries")
    save_file(tensors | {"stranger": torch.zeros(1)}, weights)
    with pytest.raises(CheckpointError, match=r"missing encoder\.queries, unexpected stranger"):
        KosmosGPipeline.from_pretrained(directory)

    save_file(tensors | {"encoder.queries": torch.zeros(3, 3)}, weights)
    with pytest.raises(CheckpointError, match="cannot load"):
        KosmosGPipeline.from_pretrained(directory)


def test_weights_in_shards_load_and_a_missing_shard_is_named(tmp_path, pipe):
    pipe.save_pretrained(tmp_path, max_shard_size="40KB")
    shards = sorted((tmp_path / "mllm").glob("*.safetensors"))
    assert len(shards) > 1
    loaded = KosmosGPipeline.from_pretrained(tmp_path)
    ours, theirs = pipe.mllm.state_dict(), loaded.mllm.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    shards[-1].unlink()
    with pytest.raises(CheckpointError, match=rf"{shards[-1].name} .*; copy the whole"):
        KosmosGPipeline.from_pretrained(tmp_path)


def test_saving_over_a_model_replaces_its_weights_and_keeps_strangers(tmp_path, toy_dir, pipe):
    directory = shutil.copytree(toy_dir, tmp_path / "model")
    (directory / "README.md").write_text("mine")
    other = toy_pipeline(seed=1)
    other.save_pretrained(directory, max_shard_size="40KB")
    other.save_pretrained(directory, variant="half")
    weights = {path.name for path in (directory / "mllm").iterdir() if "model" in path.name}
    assert "diffusion_pytorch_model.safetensors" not in weights, "old weights beside new shards"
    assert "diffusion_pytorch_model.half.safetensors" in weights
    for variant in (None, "half"):
        loaded = KosmosGPipeline.from_pretrained(directory, variant=variant)
        ours, theirs = other.mllm.state_dict(), loaded.mllm.state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    pipe.save_pretrained(directory)
    loaded = KosmosGPipeline.from_pretrained(directory)
    assert torch.equal(loaded.mllm.layer_norm.weight, pipe.mllm.layer_norm.weight)
    assert not list((directory / "mllm").glob("*-of-*"))
    assert (directory / "README.md").read_text() == "mine"


def test_a_disk_that_fills_while_saving_loses_nothing(tmp_path, toy_dir, pipe):
    directory = shutil.copytree(toy_dir, tmp_path / "model")
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot save to .*model.*File too large.*make"):
            toy_pipeline(seed=1).save_pretrained(directory)
        with pytest.raises(CheckpointError, match="cannot save to"):
            pipe.save_pretrained(tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    after = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert after == before
    assert list(tmp_path.iterdir()) == [directory]
    pipe.save_pretrained(directory)


def test_the_shipped_model_is_found_by_name_and_its_absence_has_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(release, "_PACKAGE", tmp_path)
    with pytest.raises(CheckpointError, match="nano is missing; reinstall kosmosg"):
        release.find("nano")
    (tmp_path / "nano").mkdir()
    assert release.find("nano") == tmp_path / "nano"
    with pytest.raises(CheckpointError, match=r"no Kosmos-G model.*; reinstall kosmosg"):
        KosmosGPipeline.from_pretrained("nano")


def test_saving_where_one_cannot_is_one_error(tmp_path, shared):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot save to"):
        shared.save_pretrained(tmp_path / "file" / "model")


def test_the_defaults_are_the_released_ones():
    released = GenerationConfig()
    assert (released.scheduler, released.num_inference_steps) == ("dpms", 50)
    assert (released.guidance_scale, released.height, released.max_pictures) == (6.0, 512, 8)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_picture_of_no_numbers_is_an_error_not_black(pipe):
    embeds = pipe.encode_prompt("a red cat")[0]
    for output_type in ("pil", "np", "pt"):
        with pytest.raises(ConfigError, match="no numbers; draw with dtype bfloat16"):
            pipe(prompt_embeds=embeds * float("nan"), guidance_scale=1.0, output_type=output_type)


def test_components_alone_draw_at_the_size_of_the_unet(pipe):
    bare = KosmosGPipeline(**pipe.components)
    side = pipe.unet.config["sample_size"] * pipe.vae_scale_factor
    assert (bare.generation_config.width, bare.generation_config.height) == (side, side)
