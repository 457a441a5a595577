"""`kosmosg generate --batch`, `--condition`, `--offload`; `kosmosg encode`."""

import functools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kosmosg import conditions, drawing
from toys.terminal import interrupted


@pytest.fixture
def generate(run, toy_dir):
    return lambda *words: run("generate", "--model", toy_dir, *words)


@pytest.fixture
def batch(generate, here):
    """Write lines and draw them."""

    def _batch(*lines, options=()):
        text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
        (here / "jobs.jsonl").write_text(text)
        return generate("--batch", "jobs.jsonl", *options)

    return _batch


def note(path: Path) -> dict:
    with Image.open(path) as image:
        image.load()
        return json.loads(image.text["kosmosg"])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


LINES = (
    {"prompt": ["a", {"picture": "cat.png"}, "on the snow"], "output": "a.png", "seed": 3},
    "",
    {"prompt": ["a", "dog.jpg"], "output": "b.png", "steps": 2, "scheduler": "euler"},
    {"prompt": "a red cat", "output": "c.png", "num_images": 2, "size": "48x32", "seed": 8},
)


# ---------------------------------------------------------------------------------------- batch


def test_each_line_is_drawn_as_it_would_be_alone(batch, generate, run, here, toy_dir):
    code, out, err = batch(*LINES, options=("--steps", "4"))
    names = ["a.png", "b.png", "c.png", "c-1.png", "c-2.png"]
    assert (code, out.split(), err) == (0, names, "")
    generate("a", "cat.png", "on the snow", "--seed", "3", "--steps", "4", "-o", "alone.png")
    assert (here / "alone.png").read_bytes() == (here / "a.png").read_bytes()
    assert note(here / "b.png")["arguments"]["num_inference_steps"] == 2
    assert note(here / "b.png")["scheduler"]["name"] == "EulerDiscreteScheduler"
    assert note(here / "c.png")["scheduler"]["name"] == "DPMSolverMultistepScheduler"
    assert pixels(here / "c-2.png").shape == (32, 48, 3)
    for name in names:
        assert run("replay", name, "--model", toy_dir) == (0, "identical\n", "")


@pytest.mark.usefixtures("here")
def test_the_longest_words_are_replayed(batch, run, toy_dir):
    code, _, err = batch({"prompt": "a red" + " " * 950_000 + "cat", "output": "long.png"})
    assert code == 0, err
    assert run("replay", "long.png", "--model", toy_dir)[:2] == (0, "identical\n")


def test_resume_draws_what_is_missing_or_has_other_settings(batch, here):
    batch(*LINES)
    times = {path: path.stat().st_mtime_ns for path in here.glob("*.png")}
    code, out, _ = batch(*LINES, options=("--resume",))
    assert (code, out) == (0, "")
    (here / "c-1.png").unlink()
    (here / "b.png").write_bytes((here / "b.png").read_bytes()[:300])
    code, out, _ = batch(*LINES, options=("--resume",))
    assert out.split() == ["b.png", "c.png", "c-1.png", "c-2.png"]
    changed = LINES[0] | {"seed": 4}
    assert batch(changed, *LINES[1:], options=("--resume",))[1].split() == ["a.png"]
    assert (here / "a.png").stat().st_mtime_ns > times[here / "a.png"]


GOOD = {"prompt": "a cat", "output": "good.png"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "jobs.jsonl line 3: not JSON (Expecting"),
        ("[" * 100_000, "jobs.jsonl line 3: not JSON"),
        ("7", "jobs.jsonl line 3: '7' is not an object"),
        ({"prompt": "a cat"}, "line 3: output is missing"),
        ({"prompt": "a cat", "output": "x.jpg"}, "line 3: x.jpg does not end in .png"),
        ({"prompt": "a cat", "output": "good.png"}, "line 1: good.png is written twice"),
        ({"prompt": "a cat", "output": "lost/x.png"}, "line 3: there is no directory lost"),
        ({"prompt": "a zebra", "output": "x.png"}, "line 3: the model does not know 'zebra'"),
        ({"prompt": "", "output": "x.png"}, "line 3: the prompt is empty"),
        ({"output": "x.png"}, "line 3: Missing prompt; give one, or a condition"),
        (GOOD | {"output": "x.png", "seed": True}, "line 3: seed is true"),
        ({"prompt": ["a", "lost.png"], "output": "x.png"}, "line 3: 'lost.png' looks like a"),
        ({"prompt": [{"picture": "lost"}], "output": "x.png"}, "line 3: cannot open lost"),
        ({"prompt": [{"image": "cat.png"}], "output": "x.png"}, "in the prompt is not {"),
        ({"prompt": [7], "output": "x.png"}, "line 3: prompt."),
        (GOOD | {"output": "cat.png", "prompt": ["cat.png"]}, "cat.png is a picture of the prompt"),
        (GOOD | {"output": "x.png", "step": 3}, "line 3: no field 'step'; did you mean steps?"),
        (GOOD | {"output": "x.png", "steps": 0}, "line 3: steps is 0; give 1 to 999"),
        (GOOD | {"output": "x.png", "steps": "few"}, "line 3: steps = 'few'"),
        (GOOD | {"output": "x.png", "size": "33"}, "line 3: height is 33; give a positive"),
        (GOOD | {"output": "x.png", "guidance_scale": "nan"}, "line 3: guidance_scale is nan"),
        (GOOD | {"output": "x.png", "scheduler": "none"}, "line 3: no scheduler named 'none'"),
        (GOOD | {"output": "x.png", "scheduler": "lcm", "steps": 51}, "line 3: lcm cannot make"),
        (
            {"prompt": "a cat" + " " * 1_000_000, "output": "x.png"},
            "line 3: prompt and settings are 1000",
        ),
        ({"condition": ["lost"], "output": "x.png"}, "line 3: cannot read lost"),
    ],
)
def test_a_bad_line_is_named_before_any_work(batch, here, line, words):
    code, out, err = batch(GOOD, "", line)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert words in err
    assert not (here / "good.png").exists()


def test_one_value_needs_no_list_and_a_side_no_quotes(batch, encode, here):
    encode("a", "cat.png", "-o", "cat.safetensors")
    lines = [
        {"condition": "cat.safetensors", "output": "a.png", "size": 32},
        {"prompt": ["a", "cat.png"], "output": "b.png", "weight": 0.5, "window": [0, 0.5]},
    ]
    assert batch(*lines, options=("--steps", "2")) == (0, "a.png\nb.png\n", "")
    assert note(here / "a.png")["arguments"]["width"] == 32
    assert note(here / "b.png")["arguments"]["picture_weights"] == [[0.5]]
    assert note(here / "b.png")["arguments"]["picture_windows"] == [[[0.0, 0.5]]]


def test_an_output_beside_a_batch_is_refused(batch):
    code, out, err = batch(GOOD, options=("-o", "all.png"))
    assert (code, out) == (2, "")
    assert err == "kosmosg: give --output, or --batch, and not both: its lines have their own\n"


def test_encoding_with_int8_weights_is_said_in_the_file(encode, here):
    pytest.importorskip("torchao")
    whole = encode("a", "cat.png", "-o", "whole.safetensors")
    small = encode("a", "cat.png", "-o", "small.safetensors", "--quantize", "int8")
    assert (whole[0], small[0]) == (0, 0)
    read = [conditions.load(here / f"{name}.safetensors") for name in ("whole", "small")]
    assert [one.provenance.get("quantize") for one in read] == [None, "int8"]
    assert not read[0].prompt_embeds.equal(read[1].prompt_embeds)


def test_a_file_without_lines_and_none_at_all(batch, generate):
    assert "jobs.jsonl has no lines" in batch("", " ")[2]
    assert "cannot read lost: No such file" in generate("--batch", "lost")[2]


@pytest.mark.timeout(600)  # a process imports for seconds, for minutes on a busy machine
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(here, toy_dir):
    lines = [GOOD | {"output": f"{number}.png", "steps": 200} for number in range(50)]
    (here / "jobs").write_text("\n".join(map(json.dumps, lines)))
    words = ("generate", "--batch", "jobs", "--model", str(toy_dir))
    stopped = interrupted(*words, directory=here, seen=rb"\b[1-9]\d*/50")
    printed = stopped.printed.decode().split()
    assert stopped.code == 130
    assert {path.name for path in here.glob("[0-9]*.png")} == set(printed)
    last = stopped.shown.decode().splitlines()[-1]
    assert (
        f"stopped by Ctrl-C with {len(printed)} of 50 done; the same command with --resume" in last
    )


# ----------------------------------------------------------------------------------- conditions


@pytest.fixture
def encode(run, toy_dir):
    return lambda *words: run("encode", "--model", toy_dir, *words)


@pytest.fixture
def decoder(toy_dir, tmp_path_factory) -> Path:
    """The model on a machine that has no language model."""
    directory = tmp_path_factory.mktemp("decoder") / "model"
    return Path(
        shutil.copytree(toy_dir, directory, ignore=shutil.ignore_patterns("mllm", "aligner"))
    )


def test_a_condition_draws_the_same_without_the_language_model(
    run, encode, generate, here, decoder
):
    assert encode("a", "cat.png", "--negative-prompt", "a dog", "-o", "c.safetensors")[1] == (
        "c.safetensors\n"
    )
    generate("a", "cat.png", "--negative-prompt", "a dog", "--seed", "4", "-o", "whole.png")
    given = ("--condition", "c.safetensors", "--seed", "4")
    assert run("generate", "--model", decoder, *given) == (0, "out.png\n", "seed 4\n")
    assert np.array_equal(pixels(here / "whole.png"), pixels(here / "out.png"))
    assert run("replay", "out.png", "--model", decoder) == (0, "identical\n", "")
    assert set(note(here / "out.png")["model"]["parts"]) == {"unet", "vae"}
    refused = run("generate", "--model", decoder, "a cat")
    assert "mllm/config.json is missing" in refused[2]
    made = conditions.load(here / "c.safetensors").provenance
    assert (made["model"]["name"], set(made["model"]["parts"])) == (
        "model",
        {"mllm", "aligner", "tokenizer"},
    )


def test_a_blend_draws_between_and_replays(run, encode, generate, here, toy_dir):
    encode("a red cat", "-o", "a.safetensors")
    encode("a blue dog in the snow", "-o", "b.safetensors")
    two = ("--condition", "a.safetensors", "--condition", "b.safetensors", "--seed", "4")
    drawn = {}
    for weight in ("0", "0.5", "1"):
        generate(*two, "--blend", weight)
        drawn[weight] = pixels(here / "out.png")
        assert run("replay", "out.png", "--model", toy_dir) == (0, "identical\n", "")
    for name, weight in (("a", "0"), ("b", "1")):
        generate("--condition", f"{name}.safetensors", "--seed", "4")
        assert np.array_equal(pixels(here / "out.png"), drawn[weight])
    assert not np.array_equal(drawn["0"], drawn["0.5"])
    assert not np.array_equal(drawn["1"], drawn["0.5"])
    (here / "b.safetensors").unlink()
    generate("--condition", "a.safetensors")
    os.replace("a.safetensors", "moved.safetensors")
    assert run("replay", "out.png", "--model", toy_dir)[0] == 0  # found by its sha256
    os.remove("moved.safetensors")
    assert "no file with the sha256" in run("replay", "out.png", "--model", toy_dir)[2]


def test_a_condition_of_another_decoder_is_refused(run, encode, here):
    encode("a red cat", "-o", "c.safetensors")
    code, _, err = run("generate", "--condition", "c.safetensors")  # nano's is 128 wide
    assert code == 2
    assert "prompt_embeds is 16 wide and this U-Net's condition 128" in err
    assert not (here / "out.png").exists()


def test_encode_refuses_what_generate_does(encode, here):
    assert "does not end in .safetensors" in encode("a cat", "-o", "c.png")[2]
    assert "does not know 'zebra'" in encode("a zebra")[2]
    assert not list(here.glob("*.safetensors"))


def test_offload_frees_the_encoder_and_changes_no_bit(batch, here, monkeypatch):
    encoders = []
    real = drawing.draw

    @functools.wraps(real)
    def draw(pipe, *args, **kwargs):
        encoders.append((pipe.mllm, pipe.aligner))
        return real(pipe, *args, **kwargs)

    lines = [line | {"seed": 1} for line in LINES if isinstance(line, dict)]
    lines[1]["negative_prompt"] = "a hat"
    batch(*lines)
    before = {path.name: path.read_bytes() for path in here.glob("*.png")}
    monkeypatch.setattr(drawing, "draw", draw)
    assert batch(*lines, options=("--offload",))[2] == ""
    assert before == {path.name: path.read_bytes() for path in here.glob("*.png")}
    assert encoders == [(None, None)] * 3
