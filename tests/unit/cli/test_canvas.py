"""`kosmosg generate --init-image, --mask, --controlnet`: what they draw, and how they fail."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image

from kosmosg.controlnet import WEIGHTS
from kosmosg.pipeline import KosmosGPipeline
from toys.model import SIZE, toy_picture, toy_pipeline


@pytest.fixture
def generate(run, toy_dir, here):
    toy_picture(4, (64, 64)).save("photo.png")
    mask = Image.new("1", (64, 64))
    mask.paste(1, (32, 0, 64, 64))
    mask.save("mask.png")
    pipe = toy_pipeline()
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8))
    net.save_pretrained("net")
    (here / "empty").mkdir()
    words = ("a photo of", "cat.png", "--seed", "7", "--model", toy_dir)
    return lambda *options: run("generate", *words, *options)


def note(path: str) -> dict:
    with Image.open(path) as image:
        image.load()
        return json.loads(image.text["kosmosg"])


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_an_init_picture_is_scaled_with_a_note(generate):
    code, out, err = generate("--init-image", "photo.png", "--strength", "0.7")
    assert (code, out) == (0, "out.png\n")
    assert err == "photo.png is 64 x 64; its middle is scaled to 32 x 32\nseed 7\n"
    made = note("out.png")["arguments"]
    assert made["init_image"]["picture"] == "photo.png"
    assert len(made["init_image"]["sha256"]) == 64
    assert made["strength"] == 0.7
    first = pixels("out.png")
    generate("--init-image", "dog.jpg", "--strength", "0.7")
    assert abs(pixels("out.png") - first).max() > 0


def test_a_mask_says_what_is_painted(generate):
    assert generate("--init-image", "photo.png", "--mask", "mask.png")[0] == 0
    masked = pixels("out.png")
    assert note("out.png")["arguments"]["mask"]["picture"] == "mask.png"
    generate("--init-image", "photo.png", "--strength", "1")
    assert not np.array_equal(masked, pixels("out.png"))


def test_edges_of_several_control_pictures(generate):
    pytest.importorskip("cv2")
    controls = ("--controlnet", "net", "--control-image", "photo.png")
    code, out, err = generate(*controls, *controls, "--canny", "-n", "2")
    assert code == 0, err
    assert out.split() == ["out.png", "out-1.png", "out-2.png"]
    made = note("out-2.png")["arguments"]
    assert len(made["controlnets"]) == 2
    assert [one["picture"] for one in made["control_images"]] == ["photo.png", "photo.png"]
    assert made["canny"] is True


def test_a_control_picture_that_is_ready_is_taken_as_it_is(generate, toy_dir, here):
    ready = toy_picture(6, (SIZE, SIZE))
    ready.save("lines.png")
    code, _, err = generate("--controlnet", "net", "--control-image", "lines.png")
    assert (code, err) == (0, "seed 7\n")
    made = note("out.png")["arguments"]
    assert made["control_images"][0]["picture"] == "lines.png"
    assert not made.get("canny")
    pipe = KosmosGPipeline.from_pretrained(toy_dir)
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    control = StableDiffusionControlNetPipeline.from_pipe(
        pipe, **absent, controlnet=ControlNetModel.from_pretrained("net")
    )
    control.set_progress_bar_config(disable=True)
    with torch.no_grad():
        embeds, negative = pipe.encode_prompt(["a photo of", Image.open(here / "cat.png")])
    (expected,) = control(
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        image=ready,
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(7),
    ).images
    assert np.array_equal(pixels("out.png"), np.asarray(expected))


def test_it_replays(generate, run, toy_dir):
    pytest.importorskip("cv2")
    generate(
        *("--init-image", "photo.png", "--mask", "mask.png", "--canny"),
        *("--controlnet", "net", "--control-image", "dog.jpg"),
    )
    code, out, err = run(
        "replay", "out.png", "--model", toy_dir, "--pictures", ".", "--pictures", "net"
    )
    assert (code, out) == (0, "identical\n"), err


def test_a_controlnet_under_another_name_is_not_taken_for_what_has_its_own(generate, run, toy_dir):
    generate("--controlnet", "net", "--control-image", "dog.jpg")
    net = ControlNetModel.from_pretrained("net")
    Path("net", WEIGHTS).rename("net/first.safetensors")
    torch.nn.init.ones_(next(net.parameters()))
    net.save_pretrained("net")
    code, out, err = run(
        "replay", "out.png", "--model", toy_dir, "--pictures", ".", "--pictures", "net"
    )
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"it was '{WEIGHTS}', which is another now" in err


@pytest.mark.usefixtures("generate")
def test_a_line_of_a_batch_has_a_canvas_of_its_own(run, toy_dir):
    Path("lines.jsonl").write_text(
        '{"prompt": "a cat", "output": "a.png", "init_image": "photo.png", "strength": 0.7}\n'
        '{"prompt": "a cat", "output": "b.png"}\n'
    )
    code, out, err = run("generate", "--batch", "lines.jsonl", "--model", toy_dir, "--seed", "1")
    assert (code, out) == (0, "a.png\nb.png\n"), err
    assert note("a.png")["arguments"]["strength"] == 0.7
    assert "init_image" not in note("b.png")["arguments"]


@pytest.mark.usefixtures("generate")
def test_a_line_that_only_our_loop_could_draw_is_refused_before_the_first_is(run, toy_dir):
    lines = (
        {"prompt": "a cat", "output": "first.png"},
        {"prompt": "a cat", "output": "b.png", "init_image": "photo.png", "guidance_rescale": 0.5},
    )
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, _, err = run("generate", "--model", toy_dir, "--batch", "jobs.jsonl")
    assert code == 2
    assert "jobs.jsonl line 2: guidance_rescale is 0.5, which only Kosmos-G's own loop" in err
    assert not Path("first.png").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mask", "mask.png"], "--mask needs --init-image, the picture to start from"),
        (["--strength", "0.5"], "--strength needs --init-image"),
        (["--canny"], "--canny draws the edges of control pictures; give --control-image too"),
        (["--controlnet", "net"], "there are 1 --controlnet and 0 --control-image; give one"),
        (["--control-image", "cat.png"], "there are 0 --controlnet and 1 --control-image"),
        (["--init-image", "lost.png"], "cannot open lost.png: No such file or directory"),
        (["--init-image", "photo.png", "--strength", "2"], "strength is 2.0; give 0 to 1"),
        (["--init-image", "photo.png", "--size", "36"], "size is 36 x 36; .* multiples of 8"),
        (
            ["--init-image", "photo.png", "--mask", "dog.jpg"],
            "the mask dog.jpg is 64 x 30 and photo.png 64 x 64; draw the mask on the picture",
        ),
        (["--init-image", "photo.png", "-o", "photo.png"], "photo.png is a picture of the prompt"),
        (
            ["--controlnet", "empty", "--control-image", "cat.png"],
            "no ControlNet at empty: config.json is missing",
        ),
    ],
)
def test_what_cannot_work_is_one_line(generate, options, words):
    before = Path("photo.png").read_bytes()
    code, out, err = generate(*options)
    assert (code, out) == (2, "")
    line = err.splitlines()[-1]
    assert line.startswith("kosmosg: ")
    assert words.split(" .* ")[0] in line
    assert words.split(" .* ")[-1] in line
    assert Path("photo.png").read_bytes() == before
    assert not Path("out.png").exists()
