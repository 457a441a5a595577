"""`kosmosg generate` and `caption`: what they write, and how they fail."""

import io
import json
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kosmosg.samplers import NAMES
from toys.model import SIZE, toy_picture
from toys.terminal import interrupted


@pytest.fixture
def generate(run, toy_dir):
    return lambda *words: run("generate", "--model", toy_dir, *words)


def note(path: Path) -> dict:
    with Image.open(path) as image:
        image.load()
        return json.loads(image.text["kosmosg"])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# ------------------------------------------------------------------------------------- success


def test_a_subjects_adapter_is_tuned_and_drawn_with(run, generate, here, toy_dir):
    small = ("steps=3", "global_batch_size=1", "micro_batch=1", "precision=float32", "optim.lr=0.1")
    words = ("train", "subject", "--pictures", "cat.png", "--name", "the cat", *small)
    words = (*words, "adapter.rank=2", "optim.warmup_steps=0", "device=cpu")
    code, out, _ = run(*words, f"init={toy_dir}", "-o", "dog")
    assert (code, out) == (0, "dog/adapter/adapter.safetensors\n")
    drawn = {}
    for name in ("", "dog/adapter", "dog/adapter:0"):
        given = ("--adapter", name) if name else ()
        assert (
            generate("the cat", "cat.png", "--seed", "7", "-o", f"{len(name)}.png", *given)[0] == 0
        )
        drawn[name] = pixels(here / f"{len(name)}.png").astype(int)
    assert np.abs(drawn["dog/adapter"] - drawn[""]).max() > 2
    assert np.abs(drawn["dog/adapter:0"] - drawn[""]).max() <= 1


def test_words_and_pictures_become_a_picture_with_a_note(generate, here):
    code, out, err = generate("a photo of", "cat.png", "on the snow", "--seed", "7")
    assert (code, out) == (0, "out.png\n")
    assert err.splitlines()[-1] == "seed 7"
    assert pixels(here / "out.png").shape == (SIZE, SIZE, 3)
    made = note(here / "out.png")
    assert made["prompt"][0] == "a photo of"
    assert made["prompt"][1]["picture"] == "cat.png"
    arguments = made["arguments"]
    assert (arguments["num_inference_steps"], arguments["guidance_scale"]) == (3, 3.0)
    assert (made["seeds"], made["index"]) == ([7], 0)
    assert (made["scheduler"]["name"], made["model"]["name"]) == (
        "DPMSolverMultistepScheduler",
        "model",
    )


def test_a_seed_repeats_a_picture_and_another_does_not(generate, here):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        generate("a cat", "--seed", seed, "-o", f"{name}.png")
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()
    assert not np.array_equal(pixels(here / "a.png"), pixels(here / "c.png"))


def test_a_random_seed_is_printed_and_recorded(generate, here):
    _, _, err = generate("a cat")
    seed = err.split()[-1]
    generate("a cat", "--seed", seed, "-o", "again.png")
    assert np.array_equal(pixels(here / "out.png"), pixels(here / "again.png"))
    assert note(here / "out.png")["seeds"] == [int(seed)]


def test_several_pictures_become_a_sheet_and_files_with_seeds_of_their_own(generate, here):
    code, out, _ = generate("a cat", "-n", "3", "--seed", "5", "-o", "cats.png")
    assert (code, out.split()) == (0, ["cats.png", "cats-1.png", "cats-2.png", "cats-3.png"])
    assert note(here / "cats.png")["seeds"] == [5, 6, 7]
    assert pixels(here / "cats.png").shape == (2 * SIZE + 4, 2 * SIZE + 4, 3)
    assert np.array_equal(pixels(here / "cats.png")[:SIZE, :SIZE], pixels(here / "cats-1.png"))
    third = note(here / "cats-3.png")
    assert (third["seeds"], third["index"]) == ([5, 6, 7], 2)
    generate("a cat", "--seed", "7", "-o", "alone.png")
    alone, third = (pixels(here / name).astype(int) for name in ("alone.png", "cats-3.png"))
    assert abs(alone - third).max() <= 1


def test_every_setting_reaches_the_picture_and_its_note(generate, here):
    code, _, _ = generate(
        *("a cat", "--seed", "1", "--steps", "2", "--guidance-scale", "1.5"),
        *("--negative-prompt", "a dog", "--scheduler", "ddim", "--size", "48x32"),
    )
    assert code == 0
    assert pixels(here / "out.png").shape == (32, 48, 3)
    made = note(here / "out.png")
    assert made["scheduler"]["name"] == "DDIMScheduler"
    assert made["arguments"] == {
        "num_inference_steps": 2,
        "guidance_scale": 1.5,
        "width": 48,
        "height": 32,
        "negative_prompt": "a dog",
        "scheduler": "ddim",
    }


def test_few_steps_work_with_every_sampler_and_each_draws_another_picture(generate, here):
    lines = [
        {"prompt": "a cat", "output": f"{name}{steps}.png", "scheduler": name, "steps": steps}
        for name in NAMES
        for steps in (1, 2, 5)
    ]
    (here / "jobs").write_text("\n".join(map(json.dumps, lines)))
    assert generate("--batch", "jobs", "--seed", "1")[0] == 0
    assert len({pixels(here / f"{name}5.png").tobytes() for name in NAMES}) == len(NAMES)


def test_a_picture_needs_no_suffix_and_another_file_is_words(generate, here):
    (here / "cat.png").rename(here / "cat")
    (here / "dog").write_text("not a picture")
    generate("a", "cat", "and a", "dog")
    assert [type(part) for part in note(here / "out.png")["prompt"]] == [str, dict, str, str]


def test_a_long_text_is_words(generate, here):
    del here
    code, _, _ = generate("a red cat and " * 18 + "a dog")
    assert code == 0


def test_an_existing_file_is_replaced_whole(generate, here):
    (here / "out.png").write_text("old")
    assert generate("a cat")[0] == 0
    assert pixels(here / "out.png").shape == (SIZE, SIZE, 3)
    assert files(here) == {"cat.png", "dog.jpg", "out.png"}


def test_caption_prints_words(run, here, toy_dir):
    del here
    code, out, err = run("caption", "cat.png", "--model", toy_dir, "--max-words", "5")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1


# ------------------------------------------------------------------------------------- failure


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says it is large and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def bad_picture(kind: str) -> bytes:
    whole = io.BytesIO()
    toy_picture(0, (64, 64)).save(whole, "PNG")
    match kind:
        case "truncated":
            return whole.getvalue()[:5000]
        case "huge":
            return png_of_size(50_000, 50_000)
        case "empty":
            return b""
        case _:
            return b"these are words\n"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "bad.png is a damaged picture"),
        ("huge", "bad.png has more than 64 million pixels; make it smaller"),
        ("empty", "bad.png is empty (0 bytes)"),
        ("text", "bad.png is not a picture that can be read; save it as PNG or JPEG"),
    ],
)
def test_a_bad_picture_is_one_line(generate, here, kind, words):
    (here / "bad.png").write_bytes(bad_picture(kind))
    refused(generate("a", "bad.png"), words, here)


def refused(result: tuple[int, str, str], words: str, directory: Path) -> None:
    """Assert one line of `words` on stderr, nothing on stdout, nothing written."""
    code, out, err = result
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith("kosmosg: ")
    assert words in err
    assert not (directory / "out.png").exists()
    assert not list(directory.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cat.png"] * 9, "9 pictures; this model takes at most 8: leave out 1"),
        ([""], "the prompt is empty; give it words, pictures or both"),
        (["a zebra", "cat.png"], "does not know 'zebra'"),
        (["a cat", "--negative-prompt", "a blurry dog"], "does not know 'blurry'"),
        (["a", "lost.png"], "'lost.png' looks like a picture, but there is no such file"),
        (["a", "lost/cat.JPG"], "'lost/cat.JPG' looks like a picture"),
        (["a cat", "-o", "lost/out.png"], "no directory lost; make it first"),
        (["a cat", "-o", "out.jpg"], "out.jpg does not end in .png"),
        (["a", "cat.png", "-o", "./cat.png"], "cat.png is a picture of the prompt"),
        (["a cat", "--size", "big"], "--size is 'big'; give a side such as 64, or WIDTHxHEIGHT"),
        (["a cat", "--size", "64x4096"], "a side has at most 2048 pixels"),
        (["a cat", "--size", "33"], "height is 33; give a positive multiple of 2"),
        (["a cat", "--guidance-scale", "nan"], "guidance_scale is nan"),
        (["a cat", "--steps", "0"], "'--steps': Input should be greater than or equal to 1"),
        (
            ["a cat", "--scheduler", "Euler-A"],
            "'Euler-A'; did you mean euler_a? The names are dpms, ",
        ),
        (["a cat", "--scheduler", "lcm", "--steps", "60"], "lcm cannot make 60 steps"),
        (["a cat", "--device", "cuda:9"], "no device 'cuda:9'; it has cpu"),
        (["a cat", "--batch", "jobs"], "give words and pictures, or --batch, and not both"),
        (["a cat", "--condition", "c"], "give words and pictures, or a condition, and not both"),
        (["--condition", "lost"], "cannot read lost: No such file or directory"),
        (["--condition", "cat.png"], "cat.png is no safetensors file"),
        (["--blend", "0.5", "--condition", "c"], "there are 1 conditions and a blend"),
        (["--condition", "c", "--condition", "c"], "there are 2 conditions and no blend"),
        (["--condition", "c", "--negative-prompt", "a"], "has its negative prompt in it"),
        (["a cat", "--seed", str(2**63 - 1), "-n", "2"], "seed is 9223372036854775807; give 0 to"),
        (["a cat", "--seed", "-1"], "greater than or equal to 0, not '-1'"),
        ([], "Missing argument 'WORDS-AND-PICTURES"),
    ],
)
def test_a_bad_argument_is_one_line(generate, here, arguments, words):
    refused(generate(*arguments), words, here)


def test_an_output_that_is_a_directory_is_refused(generate, here):
    (here / "folder.png").mkdir()
    refused(generate("a cat", "-o", "folder.png"), "folder.png is a directory", here)


@pytest.mark.parametrize("command", ["generate", "caption", "inspect"])
def test_a_bad_model_is_one_line(run, here, command):
    refused(run(command, "cat.png", "--model", "nowhere"), "no model at nowhere", here)
    (here / "other").mkdir()
    refused(run(command, "cat.png", "--model", "other"), "other is no Kosmos-G model", here)
    (here / "other" / "generation_config.json").write_text('{"format_version": 2}')
    refused(run(command, "cat.png", "--model", "other"), "other has format version 2", here)


def test_missing_weights_are_one_line(run, here, toy_dir):
    directory = here / "model"
    directory.mkdir()
    for path in toy_dir.iterdir():
        if path.name != "unet":
            (directory / path.name).symlink_to(path)
    (directory / "unet").mkdir()
    (directory / "unet" / "config.json").symlink_to(toy_dir / "unet" / "config.json")
    result = run("generate", "a cat", "--model", directory)
    refused(result, "unet/diffusion_pytorch_model.safetensors are missing; copy the whole", here)


def test_a_full_disk_leaves_what_was_there(generate, here):
    """A file may have 100 bytes, which is what a full disk looks like to the writer."""
    (here / "out.png").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        code, out, err = generate("a cat", "-n", "2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, out) == (1, "")
    assert err == "kosmosg: out.png: File too large\n"
    assert (here / "out.png").read_text() == "old"
    assert files(here) == {"cat.png", "dog.jpg", "out.png"}


# ----------------------------------------------------------------------- processes of their own


def start(*words: str, directory: Path, stderr: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kosmosg", *words]
    return subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=stderr)


@pytest.mark.timeout(600)  # a process imports for seconds, for minutes on a busy machine
def test_ctrl_c_while_generating_ends_a_process_cleanly(here, toy_dir):
    words = ("generate", "a", "cat.png", "--model", str(toy_dir), "--steps", "999")
    stopped = interrupted(*words, directory=here, seen=rb"\b[1-9]\d*/999")
    assert (stopped.code, stopped.printed) == (130, b"")
    assert stopped.shown.splitlines()[-1] == b"kosmosg: stopped by Ctrl-C"
    assert files(here) == {"cat.png", "dog.jpg"}


@pytest.mark.timeout(600)  # a process imports for seconds, for minutes on a busy machine
def test_a_process_prints_paths_to_stdout_and_notes_to_stderr(here, toy_dir):
    words = ("generate", "a", "cat.png", "--model", str(toy_dir), "--seed", "3")
    with start(*words, directory=here, stderr=subprocess.PIPE) as process:
        out, err = process.communicate()
    assert (process.returncode, out, err) == (0, b"out.png\n", b"seed 3\n")
    with start(
        "generate", "a zebra", "--model", str(toy_dir), directory=here, stderr=-1
    ) as process:
        out, err = process.communicate()
    assert (process.returncode, out, len(err.splitlines())) == (2, b"", 1)
