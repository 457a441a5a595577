"""The controls of `kosmosg generate`: each reaches the picture and its note, or is one line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from toys.model import toy_pipeline

PROMPT = ("a", "cat.png", "and", "dog.jpg", "on the snow", "--seed", "1")


@pytest.fixture
def generate(run, toy_dir):
    return lambda *words: run("generate", "--model", toy_dir, *words)


def made(directory, name="out.png"):
    with Image.open(directory / name) as image:
        image.load()
        return np.asarray(image), json.loads(image.text["kosmosg"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--text-guidance", "2"), {"text_guidance_scale": 2.0}),
        (("--picture-guidance", "9"), {"picture_guidance_scale": 9.0}),
        (("--guidance-interval", "0,.5"), {"guidance_interval": [0.0, 0.5]}),
        (("--guidance-rescale", ".9"), {"guidance_rescale": 0.9}),
        (("--weight", "0", "--weight", "4"), {"picture_weights": [[0.0, 4.0]]}),
        (("--window", "0,1", "--window", ".7,1"), {"picture_windows": [[[0.0, 1.0], [0.7, 1.0]]]}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_control_reaches_the_picture_and_its_note(generate, here, toy_dir, options, expected):
    code, _, err = generate(*PROMPT, *options)
    assert (code, err) == (0, "seed 1\n")
    pixels, note = made(here)
    assert {name: note["arguments"][name] for name in expected} == expected
    pipe = type(toy_pipeline()).from_pretrained(toy_dir)
    pipe.set_progress_bar_config(disable=True)
    pictures = [Image.open(here / name).convert("RGB") for name in ("cat.png", "dog.jpg")]
    prompt = ["a", pictures[0], "and", pictures[1], "on the snow"]
    (image,) = pipe(prompt, generator=[torch.Generator().manual_seed(1)], **expected).images
    assert np.array_equal(pixels, np.asarray(image))


def test_without_controls_the_note_is_silent(generate, here):
    generate(*PROMPT)
    note = made(here)[1]
    assert not {"picture_weights", "guidance_interval"} & set(note["arguments"])
    assert "loras" not in note["load"]


@pytest.fixture
def lora(here):
    """A file in kohya's layout with what is for a text encoder, too."""
    unet, weights = toy_pipeline().unet, {}
    for name, module in unet.named_modules():
        if name.endswith("to_v"):
            key = f"lora_unet_{name.replace('.', '_')}"
            weights[f"{key}.lora_down.weight"] = torch.eye(2, module.in_features)
            weights[f"{key}.lora_up.weight"] = torch.ones(module.out_features, 2)
            weights[f"{key}.alpha"] = torch.tensor(2.0)
    key = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    weights[f"{key}.lora_down.weight"] = torch.ones(2, 8)
    weights[f"{key}.lora_up.weight"] = torch.ones(8, 2)
    save_file(weights, here / "style.safetensors")
    return "style.safetensors"


def test_loras_are_loaded_scaled_noted_and_warned_of_in_one_line(generate, here, lora):
    generate(*PROMPT, "-o", "plain.png")
    code, _, err = generate(*PROMPT, "--lora", f"{lora}:0", "-o", "none.png")
    assert code == 0
    assert err.splitlines() == [
        "kosmosg: style.safetensors: left out 2 of 18 weights, which are for a text encoder; "
        "Kosmos-G has none, so trigger words may do little",
        "seed 1",
    ]
    generate(*PROMPT, "--lora", lora, "--lora", f"{lora}:-2.5", "-o", "two.png")
    plain, none, two = (made(here, f"{name}.png") for name in ("plain", "none", "two"))
    assert np.abs(plain[0].astype(int) - none[0]).max() <= 1
    assert not np.array_equal(two[0], plain[0])
    assert two[1]["load"]["lora_scales"] == [1.0, -2.5]
    assert two[1]["load"]["loras"][1]["file"] == "style.safetensors"
    assert len(two[1]["load"]["loras"][1]["sha256"]) == 64


def test_what_controls_and_loras_drew_is_drawn_again(run, generate, here, lora, toy_dir):
    generate(*PROMPT, "--weight", ".5", "--weight", "2", "--window", "0,.5", "--window", "0,1",
             "--text-guidance", "2", "--lora", f"{lora}:-1.5")  # fmt: skip
    code, out, err = run("replay", "out.png", "--model", toy_dir)
    assert (code, out) == (0, "identical\n"), err
    (here / lora).unlink()
    code, _, err = run("replay", "out.png", "--model", toy_dir)
    assert code == 2
    assert "was 'style.safetensors'; name its folder with --pictures" in err


@pytest.mark.parametrize(
    "controls", [(), ("--weight", ".2", "--weight", "1"), ("--text-guidance", "2")]
)
def test_offloading_draws_the_same(generate, here, controls):
    generate(*PROMPT, *controls, "-o", "all.png")
    code, _, err = generate(*PROMPT, *controls, "--offload", "-o", "less.png")
    assert code == 0, err
    together, freed = made(here, "all.png")[0].astype(int), made(here, "less.png")[0]
    assert (together == freed).all()


@pytest.mark.parametrize(
    "prompt",
    [
        ("a red cat",),
        ("cat.png", "dog.jpg"),
        ("a", "cat.png", "--weight", "0", "--negative-prompt", "a hat"),
    ],
)
def test_offloading_guides_apart_what_has_only_words_or_pictures(generate, here, prompt):
    apart = ("--text-guidance", "3", "--picture-guidance", "5")
    for name, options in (("all.png", ()), ("less.png", ("--offload",))):
        code, _, err = generate(*prompt, *apart, *options, "--seed", "1", "-o", name)
        assert code == 0, err
    together, freed = made(here, "all.png")[0].astype(int), made(here, "less.png")[0]
    assert (together == freed).all()


def test_a_batch_line_takes_controls_and_all_lines_the_loras(generate, here, lora):
    lines = [
        {"prompt": ["a", {"picture": "cat.png"}], "output": "one.png", "seed": 1, "weight": [0.3]},
        {"prompt": "a cat", "output": "two.png", "seed": 2, "guidance_interval": [0, 0.5]},
    ]
    (here / "jobs.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    code, _, err = generate("--batch", "jobs.jsonl", "--lora", lora)
    assert code == 0, err
    notes = [made(here, name)[1] for name in ("one.png", "two.png")]
    assert notes[0]["arguments"]["picture_weights"] == [[0.3]]
    assert notes[1]["arguments"]["guidance_interval"] == [0, 0.5]
    assert [note["load"]["lora_scales"] for note in notes] == [[1.0], [1.0]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--guidance-interval", "0.2"), "--guidance-interval is '0.2'; give two fractions"),
        (("--guidance-interval", "0.9,0.1"), "guidance_interval is (0.9, 0.1); give two fractions"),
        (("--guidance-rescale", "3"), "guidance_rescale is 3.0; give a number from 0 to 1"),
        (("--picture-guidance", "nan"), "picture_guidance_scale is nan"),
        (("--text-guidance", "-1"), "where they differ, give numbers from 0 up"),
        (("--weight", "1"), "has 2 pictures and 1 picture_weights; give one for each picture"),
        (("--weight", "9", "--weight", "1"), "weight is 9.0; give a number from 0"),
        (("--window", "0-1", "--window", "0,1"), "--window is '0-1'"),
        (("--window", "0,1"), "has 2 pictures and 1 picture_windows"),
        (("--offload", "--window", "0,.5", "--window", "0,1"), "leave out --offload"),
        (("--lora", "lost.safetensors"), "there is no LoRA lost.safetensors"),
        (("--lora", "cat.png:0.5"), "the LoRA cat.png does not end in .safetensors"),
        (("--lora", "a.safetensors:inf"), "the scale of 'a.safetensors:inf' is no number"),
    ],
)
def test_what_cannot_work_is_one_line(generate, here, options, words):
    code, out, err = generate(*PROMPT, *options)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert words in err
    assert not (here / "out.png").exists()
