"""`--safety-checker`: what is told of a picture that it flags."""

import json
from pathlib import Path

import pytest
from PIL import Image

from toys.safety import ALWAYS, NEVER, save_checker


def note(path: Path) -> dict:
    with Image.open(path) as image:
        image.load()
        return json.loads(image.text["kosmosg"])


def is_black(path: Path) -> bool:
    with Image.open(path) as image:
        return image.convert("RGB").getextrema() == ((0, 0),) * 3


@pytest.fixture
def generate(run, here, toy_dir):  # noqa: ARG001 -- where it runs
    def _generate(*words):
        return run("generate", "a red cat", "--model", toy_dir, "--seed", "5", *words)

    return _generate


def test_a_flagged_picture_is_black_and_said_to_be(generate, run, here, toy_dir):
    checker = save_checker(here, ALWAYS)
    code, out, err = generate("-n", "2", "--safety-checker", checker)
    assert (code, out.split()) == (0, ["out.png", "out-1.png", "out-2.png"])
    for number in (1, 2):
        assert f"the safety checker flagged picture {number} of 2, which is black now" in err
        assert is_black(here / f"out-{number}.png")
        assert note(here / f"out-{number}.png")["nsfw_content_detected"] is True
    assert note(here / "out.png")["nsfw_content_detected"] is True
    assert "safety_checker" not in note(here / "out.png")["load"]
    code, _, err = run("replay", "out-1.png", "--model", toy_dir)
    assert code != 0
    assert "a safety checker made out-1.png black" in err


def test_a_picture_that_passes_is_what_it_would_be_without(generate, run, here, toy_dir):
    generate("-o", "without.png")
    code, _, err = generate("--safety-checker", save_checker(here, NEVER))
    assert (code, "flagged" in err) == (0, False)
    with Image.open("out.png") as one, Image.open("without.png") as other:
        assert one.tobytes() == other.tobytes()
    assert note(here / "out.png")["nsfw_content_detected"] is False
    assert note(here / "without.png")["nsfw_content_detected"] is None
    assert run("replay", "out.png", "--model", toy_dir)[1] == "identical\n"


def test_resuming_with_a_checker_draws_anew_what_none_has_seen(run, here, toy_dir):
    checker = save_checker(here, ALWAYS)
    (here / "jobs.jsonl").write_text('{"prompt": "a cat", "output": "a.png", "seed": 1}')

    def resume(*words):
        options = ("--batch", "jobs.jsonl", "--resume", "--model", toy_dir)
        code, out, _ = run("generate", *options, *words)
        assert code == 0
        return out.split()

    assert resume() == ["a.png"]
    assert resume("--safety-checker", checker) == ["a.png"]
    assert is_black(here / "a.png")
    assert resume("--safety-checker", checker) == []
    assert resume() == ["a.png"]
    assert not is_black(here / "a.png")
    assert resume() == []


def test_a_directory_without_a_checker_is_named(generate, here):
    code, _, err = generate("--safety-checker", here / "nowhere")
    assert code != 0
    assert "no safety checker at" in err
    assert not (here / "out.png").exists()
