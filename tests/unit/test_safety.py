"""The optional safety checker: diffusers' own class, and what becomes of pictures it flags."""

import json

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from kosmosg import safety
from kosmosg.canvas import Canvas, fit, paint
from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.pipeline import KosmosGPipeline
from toys.model import SIZE, toy_picture, toy_pipeline
from toys.safety import ALWAYS, NEVER, save_checker, toy_checker
from toys.sampling import seeded

PROMPTS = [["a photo of", toy_picture(1), "on the snow"], ["a red cat"], ["a dog"]]


def guarded(threshold):
    pipe = toy_pipeline()
    checker, extractor = toy_checker(threshold)
    pipe.register_modules(safety_checker=checker, feature_extractor=extractor)
    return pipe


def draw(pipe, output_type="pt", **arguments):
    generator = [seeded(number) for number in range(len(PROMPTS))]
    return pipe(PROMPTS, generator=generator, output_type=output_type, **arguments)


@pytest.fixture(scope="module")
def plain():
    """Pictures that nobody judged."""
    return draw(toy_pipeline()).images


@pytest.fixture(scope="module")
def between(plain):
    """A threshold that some of the pictures pass, and some do not."""
    scores = []
    checker, extractor = toy_checker(0.0)
    pixels = (plain.permute(0, 2, 3, 1).numpy() * 255).round().astype("uint8")
    shown = extractor(list(pixels), return_tensors="pt").pixel_values
    with torch.no_grad():
        seen = checker.visual_projection(checker.vision_model(shown)[1])
        scores = torch.cosine_similarity(seen[:, None], checker.concept_embeds[None], dim=-1)
    high = scores.max(dim=1).values.sort().values
    assert high[1] - high[0] > 2e-3  # it rounds to a thousandth
    return float(high[:2].mean())


def test_each_picture_is_judged_and_those_that_are_flagged_are_black(plain, between):
    output = draw(guarded(between))
    assert sorted(output.nsfw_content_detected) == [False, True, True]
    for image, before, flagged in zip(
        output.images, plain, output.nsfw_content_detected, strict=True
    ):
        assert torch.equal(image, torch.zeros_like(image) if flagged else before)


def test_the_verdict_is_that_of_stable_diffusion(plain, between):
    ours = guarded(between)
    stable = StableDiffusionPipeline.from_pipe(ours, text_encoder=None, tokenizer=None)
    assert stable.safety_checker is ours.safety_checker
    pictures = plain * 2 - 1  # as it hands them over
    _, verdict = stable.run_safety_checker(pictures, "cpu", torch.float32)
    assert draw(ours).nsfw_content_detected == verdict


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_black_is_black_in_every_form(output_type):
    output = draw(guarded(ALWAYS), output_type)
    assert output.nsfw_content_detected == [True] * 3
    assert not np.stack([np.asarray(image) for image in output.images]).any()
    images, flagged = draw(guarded(NEVER), output_type, return_dict=False)
    assert flagged == [False] * 3
    assert np.stack([np.asarray(image) for image in images]).any()


def test_latents_are_not_judged():
    output = draw(guarded(ALWAYS), "latent")
    assert output.nsfw_content_detected is None
    assert output.images.any()


@pytest.mark.parametrize(("threshold", "flagged"), [(ALWAYS, True), (NEVER, False)])
def test_a_picture_on_a_canvas_is_judged(threshold, flagged):
    canvas = Canvas(init_image=fit(toy_picture(3), (SIZE, SIZE)))
    output = paint(guarded(threshold), canvas, PROMPTS[1], generator=seeded())
    assert output.nsfw_content_detected == [flagged]
    assert (output.images[0].getextrema() == ((0, 0),) * 3) == flagged


def test_it_is_judged_in_the_precision_of_the_checker(between):
    pipe = guarded(between).to(torch.bfloat16)
    pipe.safety_checker.to(torch.float32)
    assert len(draw(pipe).nsfw_content_detected) == 3


# --------------------------------------------------------------------------- saved and shared


def test_it_is_saved_and_loaded_with_the_pipeline(tmp_path, between):
    pipe = guarded(between)
    pipe.save_pretrained(tmp_path / "model")
    loaded = KosmosGPipeline.from_pretrained(tmp_path / "model", dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.safety_checker) is type(pipe.safety_checker)
    expected = draw(pipe)
    again = draw(loaded)
    assert torch.equal(again.images, expected.images)
    assert again.nsfw_content_detected == expected.nsfw_content_detected
    half = KosmosGPipeline.from_pretrained(
        tmp_path / "model", dtype={"safety_checker": torch.float16, "default": torch.float32}
    )
    assert (half.safety_checker.dtype, half.unet.dtype) == (torch.float16, torch.float32)
    without = KosmosGPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    assert without.safety_checker is None
    without.save_pretrained(tmp_path / "model")  # what lies there still is no part of it now
    assert KosmosGPipeline.from_pretrained(tmp_path / "model").safety_checker is None


def test_a_variant_is_saved_and_loaded(tmp_path):
    guarded(ALWAYS).save_pretrained(tmp_path / "model", variant="fp16")
    assert not (tmp_path / "model/safety_checker/model.safetensors").exists()
    loaded = KosmosGPipeline.from_pretrained(tmp_path / "model", variant="fp16")
    loaded.set_progress_bar_config(disable=True)
    assert draw(loaded).nsfw_content_detected == [True] * 3


def test_it_is_one_of_the_components(between):
    pipe = guarded(between)
    again = KosmosGPipeline(**pipe.components, generation_config=pipe.generation_config)
    shared = KosmosGPipeline.from_pipe(pipe)
    for other in (again, shared):
        other.set_progress_bar_config(disable=True)
        assert other.safety_checker is pipe.safety_checker
        assert draw(other).nsfw_content_detected == draw(pipe).nsfw_content_detected


def test_without_what_prepares_pictures_it_is_refused():
    parts = toy_pipeline().components | {"safety_checker": toy_checker(NEVER)[0]}
    with pytest.raises(ConfigError, match="no feature_extractor"):
        KosmosGPipeline(**parts)


# ------------------------------------------------------------------------------ from a directory


def test_the_layout_of_stable_diffusion_is_read(tmp_path):
    directory = save_checker(tmp_path, ALWAYS)
    # Published files have one tower more in their names, and a table that newer ones compute.
    weights = load_file(directory / "model.safetensors")
    published = {
        f"vision_model.{name}" if name.startswith("vision_model.") else name: weight
        for name, weight in weights.items()
    }
    published["vision_model.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(published, directory / "model.safetensors", metadata={"format": "pt"})
    checker, _ = safety.load(directory)
    assert all(torch.equal(checker.state_dict()[name], weights[name]) for name in weights)
    pipe = toy_pipeline()
    safety.attach(pipe, directory)
    assert draw(pipe).nsfw_content_detected == [True] * 3


def test_all_of_it_may_lie_in_one_directory(tmp_path):
    directory = save_checker(tmp_path, NEVER)
    (tmp_path / "feature_extractor/preprocessor_config.json").rename(
        directory / "preprocessor_config.json"
    )
    assert safety.load(directory)[1].crop_size["height"] == toy_checker(NEVER)[1].crop_size.height


def drop_weight(directory):
    weights = load_file(directory / "model.safetensors")
    del weights["concept_embeds"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def spoil_weight(directory):
    weights = load_file(directory / "model.safetensors")
    weights["visual_projection.weight"][0, 0] = float("nan")
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def widen(directory):
    config = json.loads((directory / "config.json").read_text())
    config["projection_dim"] = 12
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (drop_weight, "1 weights are missing or unexpected, such as concept_embeds"),
        (spoil_weight, "some of its weights are no numbers"),
        (lambda directory: (directory / "config.json").unlink(), "config.json is missing"),
        (lambda directory: (directory / "config.json").write_text("[]"), "no safety checker at"),
        (widen, "no safety checker at"),
        (
            lambda directory: (directory / "model.safetensors").rename(directory / "model.bin"),
            "model.safetensors is missing",
        ),
        (lambda directory: (directory / "model.safetensors").write_bytes(b"{}"), "checker at"),
        (
            lambda directory: (
                directory.parent / "feature_extractor/preprocessor_config.json"
            ).unlink(),
            "preprocessor_config.json is in none of",
        ),
    ],
)
def test_a_checker_that_is_not_whole_is_refused(tmp_path, harm, reason):
    directory = save_checker(tmp_path, NEVER)
    harm(directory)
    with pytest.raises(CheckpointError, match=reason) as raised:
        safety.load(directory)
    assert "\n" not in str(raised.value)
