"""Init pictures, masks and ControlNets: diffusers' loops on our parts, and their refusals."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionImg2ImgPipeline
from PIL import Image, ImageDraw

from kosmosg.canvas import Canvas, fit, fit_mask, paint
from kosmosg.controlnet import edges, load_controlnet
from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.pipeline import KosmosGPipeline
from toys.model import SIZE, toy_picture, toy_pipeline
from toys.sampling import stable_diffusion

PROMPT = ["a photo of", toy_picture(1), "in snow"]


@pytest.fixture(scope="module")
def pipe() -> KosmosGPipeline:
    return toy_pipeline()


def toy_controlnet(pipe: KosmosGPipeline, seed: int = 3) -> ControlNetModel:
    """A ControlNet of random weights: those of `from_unet` end in zeros and would say nothing."""
    made = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for weight in made.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    return made.eval()


def picture(seed: int = 5) -> Image.Image:
    return toy_picture(seed, (SIZE, SIZE))


def mask() -> Image.Image:
    page = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(page).rectangle((SIZE // 2, 0, SIZE, SIZE), fill=255)
    return page


def draw(pipe: KosmosGPipeline, canvas: Canvas, prompt=PROMPT, **arguments) -> np.ndarray:
    return paint(
        pipe,
        canvas,
        [prompt],
        **{"generator": torch.Generator().manual_seed(0), "output_type": "np"} | arguments,
    ).images


def canvases(pipe: KosmosGPipeline) -> dict[str, Canvas]:
    one, two = toy_controlnet(pipe), toy_controlnet(pipe, 4)
    control = {"controlnets": [one], "control_images": [picture(6)]}
    init = {"init_image": picture(), "strength": 0.7}
    return {
        "init": Canvas(**init),
        "mask": Canvas(init_image=picture(), mask=mask()),
        "control": Canvas(**control),
        "two controls": Canvas(controlnets=[one, two], control_images=[picture(6), picture(7)]),
        "init and control": Canvas(**init, **control),
        "mask and control": Canvas(init_image=picture(), mask=mask(), **control),
    }


KINDS = ("init", "mask", "control", "two controls", "init and control", "mask and control")


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_keeps_to_prompt_and_canvas(pipe: KosmosGPipeline, kind: str):
    canvas = canvases(pipe)[kind]
    one, again = draw(pipe, canvas), draw(pipe, canvas)
    assert one.shape == (1, SIZE, SIZE, 3)
    assert np.isfinite(one).all()
    assert np.array_equal(one, again)
    assert abs(draw(pipe, canvas, ["a photo of", toy_picture(2), "in snow"]) - one).max() > 1e-3
    changes = {"init_image": picture(8)} if canvas.init_image else {}
    if canvas.controlnets:
        changes |= {"control_images": [picture(8), *canvas.control_images[1:]]}
    for name, value in changes.items():
        parts = vars(canvas) | {name: value}
        assert abs(draw(pipe, Canvas(**parts)) - one).max() > 1e-3, name


@pytest.mark.parametrize("kind", KINDS)
def test_several_pictures_are_those_of_their_seeds(pipe: KosmosGPipeline, kind: str):
    canvas = canvases(pipe)[kind]
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1, 2)]
    three = draw(pipe, canvas, num_images_per_prompt=3, generator=seeds)
    assert len(three) == 3
    alone = draw(pipe, canvas, generator=torch.Generator().manual_seed(2))
    np.testing.assert_allclose(three[2], alone[0], atol=1e-4)
    assert abs(three[0] - three[2]).max() > 1e-2


def test_it_is_diffusers_own_picture_bit_for_bit(pipe: KosmosGPipeline):
    stable = stable_diffusion(pipe, StableDiffusionImg2ImgPipeline)
    with torch.no_grad():
        embeds, negative = pipe.encode_prompt(PROMPT)
    expected = stable(
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        image=picture(),
        strength=0.7,
        num_inference_steps=5,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    canvas = Canvas(init_image=picture(), strength=0.7)
    given = {"num_inference_steps": 5, "guidance_scale": 2.0}
    assert np.array_equal(draw(pipe, canvas, **given), expected)
    by_embeds = paint(
        pipe,
        canvas,
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        **given,
    ).images
    assert np.array_equal(by_embeds, expected)


def test_a_picture_of_no_numbers_is_an_error_not_black(pipe: KosmosGPipeline):
    embeds = pipe.encode_prompt("a red cat")[0] * float("nan")
    with pytest.raises(ConfigError, match="values that are no numbers"):
        paint(
            pipe,
            Canvas(init_image=picture(), strength=0.7),
            prompt_embeds=embeds,
            guidance_scale=1.0,
        )


def test_a_controlnet_that_says_nothing_changes_nothing(pipe: KosmosGPipeline):
    """Fresh from the U-Net its outputs are zero, so the picture is our own pipeline's."""
    silent = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8))
    made = draw(pipe, Canvas(controlnets=[silent], control_images=[picture()]))
    own = pipe([PROMPT], generator=torch.Generator().manual_seed(0), output_type="np").images
    np.testing.assert_allclose(made, own, atol=1e-5)


def test_guidance_of_1_needs_no_null_half(pipe: KosmosGPipeline):
    assert draw(pipe, canvases(pipe)["init"], guidance_scale=1.0).shape == (1, SIZE, SIZE, 3)


@pytest.mark.parametrize(
    ("parts", "arguments", "words"),
    [
        ({}, {}, "the canvas is empty; give an init picture or a ControlNet"),
        ({"mask": mask()}, {}, "a mask and no init picture; give the picture to start from"),
        ({"strength": 0.5}, {}, "a strength and no init picture"),
        ({"control_images": [picture()]} | {"init_image": picture()}, {}, "0 ControlNets and 1"),
        ({"init_image": picture(), "strength": 0.0}, {}, "strength is 0.0; give more than 0"),
        ({"init_image": picture(), "strength": 1.5}, {}, "strength is 1.5; give"),
        ({"init_image": picture(), "strength": 0.3}, {}, "of 3 steps is less than one step"),
        ({"init_image": toy_picture()}, {}, "is 40 x 48 and the size 32 x 32; scale it with"),
        ({"init_image": picture()}, {"width": 36}, "size is 36 x 32; .* multiples of 8"),
        (
            {"init_image": picture(), "mask": Image.new("L", (SIZE, SIZE))},
            {},
            "the mask is black, so nothing would be painted",
        ),
        (
            {"init_image": picture()},
            {"picture_guidance_scale": 2.0},
            "picture_guidance_scale is 2.0, which only Kosmos-G's own loop knows; leave it out",
        ),
        ({"init_image": picture()}, {"picture_windows": [[(0, 0.5)]]}, "only Kosmos-G's own loop"),
        ({"init_image": picture()}, {"guidance_scale": float("nan")}, "guidance_scale is nan"),
    ],
)
def test_what_cannot_work_is_named(pipe: KosmosGPipeline, parts, arguments, words):
    with pytest.raises(ConfigError, match=words):
        draw(pipe, Canvas(**parts), **arguments)


def test_neutral_values_of_our_own_loop_pass(pipe: KosmosGPipeline):
    neutral = {"picture_windows": None, "guidance_interval": (0.0, 1.0), "guidance_rescale": 0.0}
    neutral |= {"picture_prompt_embeds": torch.zeros(1, 6, 16), "cross_attention_kwargs": None}
    canvas = Canvas(init_image=picture())
    assert np.array_equal(draw(pipe, canvas, **neutral), draw(pipe, canvas))


def test_a_controlnet_is_read_from_its_directory(pipe: KosmosGPipeline, tmp_path: Path):
    made = toy_controlnet(pipe)
    made.save_pretrained(tmp_path / "net")
    loaded = load_controlnet(tmp_path / "net", pipe)
    for name, weight in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)


def test_a_controlnet_that_is_not_whole_is_named(pipe: KosmosGPipeline, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no ControlNet at .*lost: config.json is missing"):
        load_controlnet(tmp_path / "lost", pipe)
    made = toy_controlnet(pipe)
    made.save_pretrained(tmp_path / "net")
    weights = tmp_path / "net/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(CheckpointError, match=r"cannot load the ControlNet .*net: "):
        load_controlnet(tmp_path / "net", pipe)
    config = json.loads((tmp_path / "net/config.json").read_text())
    for odd in ({"norm_num_groups": 0}, {"quantization_config": []}):
        (tmp_path / "net/config.json").write_text(json.dumps(config | odd))
        with pytest.raises(CheckpointError, match=r"cannot load the ControlNet .*net: "):
            load_controlnet(tmp_path / "net", pipe)
    weights.unlink()
    torch.save(made.state_dict(), tmp_path / "net/diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"net: diffusion_pytorch_model.* is missing"):
        load_controlnet(tmp_path / "net", pipe)
    pipe.unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(
        CheckpointError, match=r"unet has .* missing or unexpected weights, such as"
    ):
        load_controlnet(tmp_path / "unet", pipe)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cross_attention_dim": 768}, "conditions of width 768 and this U-Net 16; take a Contr"),
        ({"block_out_channels": (16, 16)}, r"channels \[16, 16\] and this U-Net \[8, 16\]"),
        (
            {"conditioning_embedding_out_channels": (4, 4, 8, 8)},
            "shrinks control pictures by 8 and this VAE by 2; take a ControlNet made for this",
        ),
    ],
)
def test_a_controlnet_of_another_model_is_refused_with_both_sizes(
    pipe: KosmosGPipeline, tmp_path: Path, change, words
):
    config = dict(toy_controlnet(pipe).config) | change
    ControlNetModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=words):
        load_controlnet(tmp_path, pipe)


def test_edges_are_white_on_black():
    pytest.importorskip("cv2")
    page = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(page).rectangle((16, 16, 47, 47), fill="black")
    found = np.asarray(edges(page))
    assert found.shape == (64, 64, 3)
    assert set(np.unique(found)) == {0, 255}
    assert found[32, 14:18].max() == 255
    assert found[20:44, 20:44].max() == 0
    assert found[:10].max() == 0


def test_without_opencv_the_remedy_is_named():
    code = (
        "import sys; sys.modules['cv2'] = None\n"
        "from PIL import Image\nfrom kosmosg.controlnet import edges\n"
        "from kosmosg.errors import ConfigError\n"
        "try: edges(Image.new('RGB', (8, 8)))\n"
        "except ConfigError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("not installed: pip install opencv-python-headless")


def test_pictures_are_cut_to_the_size_and_masks_stay_black_and_white():
    wide = Image.new("RGB", (96, 32), "blue")
    wide.paste("red", (32, 0, 64, 32))
    assert fit(wide, (16, 16)).crop((4, 0, 12, 16)).getcolors() == [(128, (255, 0, 0))]
    assert fit(wide, (48, 16)).getpixel((2, 2)) == (0, 0, 255)
    same = picture()
    assert fit(same, same.size) is same
    scaled = fit_mask(mask().resize((64, 64), Image.Resampling.BICUBIC), (SIZE, SIZE))
    assert scaled.mode == "L"
    assert np.array_equal(np.asarray(scaled), np.asarray(mask()))
