"""`kosmosg inspect`: the sequence of a prompt, and what is odd about it."""

import json

import pytest
from PIL import Image

from toys.model import NUM_LATENTS


@pytest.fixture
def inspect(run, toy_dir):
    def _inspect(*words):
        code, out, err = run("inspect", "--model", toy_dir, "--json", *words)
        assert (code, err) == (0, "")
        return json.loads(out)

    return _inspect


def test_the_sequence_is_shown_piece_by_piece(inspect, here):
    del here
    report = inspect("a cat", "cat.png", "on", "dog.jpg")
    assert report["length"] == 4 + 2 * (NUM_LATENTS + 2)
    pieces = [
        row.get("piece") or f"{row['slots']} x {row['picture']}" for row in report["sequence"]
    ]
    assert pieces[:6] == ["<s>", "▁a", "▁cat", "<image>", "4 x 1", "</image>"]
    assert pieces[6:] == ["▁on", "<image>", "4 x 2", "</image>"]
    positions = [row["position"] for row in report["sequence"]]
    assert positions == [0, 1, 2, 3, 4, 8, 9, 10, 11, 15]
    assert report["pictures"][1] == {"file": "dog.jpg", "width": 64, "height": 30}


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        (["a zebra"], "does not know 'zebra'"),
        (["cat.png"] * 9, "9 pictures"),
        ([" "], "the prompt is empty"),
        (["a cat " * 200], "at most 254 positions"),
        (["dog.jpg"], "only its centre square is seen, 47% of it"),
        (["small.png"], "small.png is enlarged: its shorter side is 8 of 32 pixels"),
    ],
)
def test_what_is_odd_is_said(inspect, here, words, warning):
    Image.new("RGB", (8, 8)).save(here / "small.png")
    assert any(warning in line for line in inspect(*words)["warnings"])


def test_nothing_is_odd_about_a_good_prompt(inspect, here):
    del here
    assert inspect("a photo of", "cat.png")["warnings"] == []


def test_people_get_a_table(run, here, toy_dir):
    del here
    code, out, _ = run("inspect", "a zebra", "cat.png", "--model", toy_dir)
    assert code == 0
    assert "4 slots of picture 1: cat.png, 40 x 48" in out
    assert "pictures of at most 8" in out
    assert "warning: the model does not know 'zebra'" in out
