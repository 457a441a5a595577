"""`kosmosg replay`: the picture that a note describes, or one line about why not."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from toys.model import toy_picture, toy_pipeline


@pytest.fixture
def drawn(run, here, toy_dir):
    """Draw into `out.png`; return what replays it."""

    def _draw(*words, **changes):
        assert run("generate", "--model", toy_dir, *words, "--seed", "5")[0] == 0
        if changes:
            rewrite(here / "out.png", changes)
        return lambda *options: run("replay", "out.png", "--model", toy_dir, *options)

    return _draw


def note(path: Path) -> dict:
    with Image.open(path) as image:
        image.load()
        return json.loads(image.text["kosmosg"])


def write(path: Path, text: str) -> None:
    with Image.open(path) as image:
        pixels = image.convert("RGB")
    info = PngImagePlugin.PngInfo()
    info.add_text("kosmosg", text)
    pixels.save(path, "PNG", pnginfo=info)


def rewrite(path: Path, changes: dict) -> None:
    """Change values of the note; a name with dots leads inside."""
    data = note(path)
    for name, value in changes.items():
        *parents, last = name.split(".")
        at = data
        for parent in parents:
            at = at[int(parent) if isinstance(at, list) else parent]
        at[int(last) if isinstance(at, list) else last] = value
    write(path, json.dumps(data))


# ------------------------------------------------------------------------------------ identical


def test_every_setting_is_replayed(drawn, here):
    replay = drawn(
        *("a", "cat.png", "and", "dog.jpg", "--steps", "2", "--guidance-scale", "1.5"),
        *("--negative-prompt", "a hat", "--scheduler", "euler_a", "--size", "48x32"),
        *("--dtype", "bfloat16"),
    )
    assert note(here / "out.png")["load"] == {"dtype": "bfloat16", "device": "cpu"}
    assert replay() == (0, "identical\n", "")


def test_a_picture_drawn_with_int8_weights_is_replayed(drawn, here):
    replay = drawn("a", "cat.png", "--quantize", "int8")
    assert note(here / "out.png")["load"]["quantize"] == "int8"
    assert replay() == (0, "identical\n", "")
    data = note(here / "out.png")
    del data["load"]["quantize"]
    write(here / "out.png", json.dumps(data))
    code, out, _ = replay()
    assert code == 1
    assert "pixels differ" in out


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("steps", {"arguments.num_inference_steps": 4}),
        ("guidance", {"arguments.guidance_scale": 1.0}),
        ("negative prompt", {"arguments.negative_prompt": "a cat"}),
        ("scheduler", {"arguments.scheduler": "euler"}),
        ("seed", {"seeds": [6]}),
        ("dtype", {"load.dtype": "bfloat16"}),
        ("prompt", {"prompt": ["a dog"]}),
    ],
)
def test_each_setting_counts(drawn, name, changes):
    """Were one of them not replayed, the picture would be identical."""
    code, out, _ = drawn("a", "cat.png", **changes)()
    assert code == 1, name
    assert "pixels differ, by at most" in out


@pytest.mark.usefixtures("here")
def test_pictures_of_a_sheet_and_the_sheet_replay(run, toy_dir):
    run("generate", "a", "cat.png", "-n", "3", "--model", toy_dir)
    for name in ("out.png", "out-1.png", "out-2.png", "out-3.png"):
        assert run("replay", name, "--model", toy_dir) == (0, "identical\n", "")


def test_nano_in_processes_of_their_own_with_other_threads(here):
    """Nano, whose convolutions are cut over threads: two draw it, one replays it as two would."""
    words = (sys.executable, "-m", "kosmosg")
    for command, threads, printed in (
        (["generate", "a red star in the snow", "--steps", "4"], "2", "out.png\n"),
        (["replay", "out.png"], "1", "identical\n"),
    ):
        done = subprocess.run(
            [*words, *command],
            cwd=here,
            env={**subprocess.os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (0, printed), done.stderr
    assert note(here / "out.png")["machine"]["threads"] == 2


def test_the_number_of_threads_is_given_back(drawn):
    before = torch.get_num_threads()
    assert drawn("a cat", **{"machine.threads": before + 1})()[0] in (0, 1)
    assert torch.get_num_threads() == before


# ----------------------------------------------------------------------------------- differing


def test_a_changed_pixel_is_counted(drawn, here):
    replay = drawn("a cat")
    with Image.open(here / "out.png") as image:
        pixels, text = np.array(image), image.text["kosmosg"]
    pixels[3, 4] ^= 8
    Image.fromarray(pixels).save(here / "out.png")
    write(here / "out.png", text)
    code, out, err = replay()
    assert (code, err) == (1, "")
    assert out == "1 of 1024 pixels differ, by at most 8 of 255\n"


def test_another_size_is_said(drawn, here):
    replay = drawn("a cat")
    text = json.dumps(note(here / "out.png"))
    toy_picture(1, (40, 32)).save(here / "out.png")
    write(here / "out.png", text)
    assert replay()[:2] == (1, "the sizes are 40 x 32 and 32 x 32\n")


def test_another_model_and_versions_are_named(run, drawn, here, toy_dir, tmp_path):
    drawn("a cat", **{"versions.torch": "1.13.0", "machine.instructions": "AVX2"})
    other = tmp_path / "other"
    shutil.copytree(toy_dir, other)
    changed = toy_pipeline()
    with torch.no_grad():
        changed.unet.conv_in.weight.add_(0.1)
    changed.unet.save_pretrained(other / "unet")
    code, _, err = run("replay", here / "out.png", "--model", other)
    assert code == 1
    lines = err.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == [
        "model, part unet",
        "instructions",
        "torch",
    ]
    assert lines[2] == f"not as then: torch: 1.13.0 then, {torch.__version__} now"


# -------------------------------------------------------------------------- where pictures are


def test_a_picture_is_found_by_its_sha256_under_another_name(drawn, here, tmp_path):
    replay = drawn("a", "cat.png")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (here / "cat.png").rename(elsewhere / "renamed.png")
    toy_picture(9).save(here / "cat.png")  # another one under the name
    code, out, err = replay()
    assert (code, out) == (2, "")
    sha256 = note(here / "out.png")["prompt"][1]["sha256"]
    assert f"no picture with the sha256 {sha256}" in err
    assert "it was 'cat.png', which is another now; name its folder with --pictures" in err
    assert replay("--pictures", elsewhere) == (0, "identical\n", "")


def test_pictures_lie_beside_the_png(drawn, run, here, toy_dir, monkeypatch):
    drawn("a", "cat.png")
    (here / "empty").mkdir()
    monkeypatch.chdir(here / "empty")
    assert run("replay", "../out.png", "--model", toy_dir) == (0, "identical\n", "")


def test_a_model_that_does_not_ship_must_be_named(drawn, run):
    drawn("a cat")
    code, _, err = run("replay", "out.png")
    assert code == 2
    assert "drawn by the model 'model'; name its directory with --model" in err


# -------------------------------------------------------------------------------- hostile notes

DEEP = functools.reduce(lambda inner, _: [inner], range(900), 0)  # JSON reads it still
PASSWD = {"picture": "../../etc/passwd", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": ["a", PASSWD]}, "'../../etc/passwd' is not the bare name of a file"),
        ({"prompt": [PASSWD | {"picture": "/etc/passwd"}]}, "'/etc/passwd' is not the bare name"),
        ({"prompt": [PASSWD | {"picture": "..\\x"}]}, "is not the bare name of a file"),
        ({"prompt": [PASSWD | {"picture": ".."}]}, "'..' is not the bare name of a file"),
        ({"prompt": [PASSWD | {"picture": "a\0"}]}, "is not the bare name of a file"),
        ({"prompt": [PASSWD | {"picture": 7}]}, "names neither a picture nor a file"),
        ({"prompt": [PASSWD | {"more": 7}]}, "names neither a picture nor a file"),
        ({"prompt": [{"picture": "a.png", "sha256": "abc"}]}, "'abc' is not a sha256"),
        ({"prompt": [{"picture": "a.png"}]}, "neither words nor a picture"),
        ({"prompt": [7]}, "'7' in its prompt is neither words nor a picture"),
        ({"prompt": [["a"]]}, "in its prompt is neither words nor a picture"),
        ({"prompt": "a cat"}, "prompt = 'a cat': input should be a valid list"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": ["a zebra"]}, "does not know 'zebra'"),
        ({"version": 2}, "it has version 2, this kosmosg reads version 1"),
        ({"seeds": []}, "it has 0 seeds; 1 to 64 can be"),
        ({"seeds": list(range(65))}, "it has 65 seeds; 1 to 64 can be"),
        ({"seeds": [-1]}, "the seed -1 is not one of 0"),
        ({"seeds": [2**63]}, "the seed 9223372036854775808 is not one of 0"),
        ({"index": 1}, "it is of picture 1, counted from 0, of 1"),
        ({"surplus": 1}, "no field 'surplus'"),
        ({"arguments.height": 10**6}, "height is 1000000; give 1 to 2048"),
        ({"arguments.width": -2}, "width is -2; give 1 to 2048"),
        ({"arguments.width": 0}, "width is 0; give"),
        ({"arguments.num_inference_steps": 10**9}, "num_inference_steps is 1000000000; give 1 to"),
        ({"arguments.num_inference_steps": "many"}, "num_inference_steps = 'many': Input should"),
        ({"arguments.guidance_scale": float("inf")}, "the note holds the number inf"),
        ({"arguments.scheduler": "../x"}, "no scheduler named '../x'"),
        ({"arguments.conditions": [PASSWD]}, "'../../etc/passwd' is not the bare name"),
        ({"arguments.conditions": ["/etc/passwd"]}, "conditions = "),
        ({"arguments.negative_prompt": {"a": 1}}, "negative_prompt = "),
        ({"arguments.prompt_embeds": [[1.0]]}, "'prompt_embeds' is no setting of this kosmosg"),
        ({"arguments.callback_on_step_end": "os.system"}, "'callback_on_step_end' is no setting"),
        ({"arguments.output_type": "latent"}, "'output_type' is no setting"),
        ({"arguments.pipe": 1}, "'pipe' is no setting"),
        ({"arguments.free_encoder": True}, "'free_encoder' is no setting"),
        ({"arguments.scheduler": "x" * 50_000}, "no scheduler named 'xxx"),
        ({"arguments.eta": DEEP}, "maximum recursion depth"),
        ({"load.eta": DEEP}, "maximum recursion depth"),
        ({"load.dtype": "float64"}, "dtype = 'float64'"),
        ({"load.model": "elsewhere"}, "'model' is no setting"),
        ({"load": {}}, "it does not say the device and dtype"),
        ({"machine.threads": 10**6}, "it asks for 1000000 threads; 1 to 256 can be"),
    ],
)
def test_a_hostile_note_is_one_line(drawn, here, changes, words):
    before = {path: path.read_bytes() for path in here.iterdir()}
    code, out, err = drawn("a cat", **changes)()
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith("kosmosg: ")
    assert words in err
    assert len(err) < 500
    assert before.keys() | {here / "out.png"} == set(here.iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is not JSON"),
        ("not JSON", "it is not JSON"),
        ("[]", "it has version None"),
        ("[" * 50_000, "it is not JSON"),
        ('{"version": ' + "9" * 6000 + "}", "it is not JSON"),
        (" " * 1_100_000, "it has 1100000 characters, more than 1048576"),
        ('{"prompt": ["a cat"], "seed": 7, "kosmosg": "0.1.0"}', "it has version None"),
    ],
)
def test_a_note_that_is_none_is_one_line(run, here, text, words):
    write(here / "cat.png", text)
    code, out, err = run("replay", "cat.png")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert words in err


def test_a_note_that_unpacks_to_more_than_a_picture_is_refused(run, here):
    info = PngImagePlugin.PngInfo()
    info.add_text("kosmosg", " " * 20_000_000, zip=True)
    toy_picture(1).save(here / "bomb.png", pnginfo=info)
    code, _, err = run("replay", "bomb.png")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "bomb.png is a damaged picture (Decompressed data too large" in err


def test_what_carries_no_note_is_one_line(run, here):
    assert run("replay", "cat.png")[2].startswith(
        "kosmosg: cat.png carries no note of how it was made; give a PNG as `kosmosg generate`"
    )
    assert "dog.jpg carries no note" in run("replay", "dog.jpg")[2]
    assert run("replay", "lost.png")[2] == (
        "kosmosg: cannot open lost.png: No such file or directory; check the path\n"
    )
    assert run("replay", here)[0] == 2


def test_a_device_that_is_not_there_is_said(drawn):
    if torch.cuda.is_available():
        pytest.skip("NOT PROVED HERE: this machine has a CUDA device")
    code, out, err = drawn("a cat", **{"load.device": "cuda", "machine.device": "GPU"})()
    assert (code, out) == (0, "identical\n")
    assert err == "not as then: device: GPU then, cpu now\n"
