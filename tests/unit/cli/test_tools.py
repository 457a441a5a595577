"""`kosmosg inspect`: the sequence of a prompt, and what is odd about it."""

import json
import shutil

import pytest
from PIL import Image

from toys.model import NUM_LATENTS, toy_picture, toy_pipeline


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
        (["a cat " * 200], "401 positions, this model reads at most 254"),
        (["dog.jpg"], "only its centre square is seen, 47% of it"),
        (["small.png"], "small.png is enlarged: its shorter side is 8 of 32 pixels"),
        (["small.png"], "small.png has a single colour; there is nothing to see in it"),
        (["half.png"], "half.png is transparent, 50% of it; white is seen there"),
        (["moving.gif"], "moving.gif has 2 frames; only the first is seen"),
        (["cat.png", "and", "dog.jpg", "cat.png"], "pictures 1 and 3 are the same (cat.png)"),
        (["cat.png", "copy.png"], "pictures 1 and 2 are the same (copy.png)"),
        (["a <i>", "cat.png"], "<i> is read as plain characters; name the file where"),
        (["a cat " * 70], "the words are 140 pieces; the released model learnt from captions of"),
    ],
)
def test_what_is_odd_is_said(inspect, here, words, warning):
    Image.new("RGB", (8, 8)).save(here / "small.png")
    half = toy_picture(3).convert("RGBA")
    half.paste((0, 0, 0, 0), (0, 0, half.width // 2, half.height))
    half.save(here / "half.png")
    toy_picture(4).save(here / "moving.gif", save_all=True, append_images=[toy_picture(5)])
    shutil.copy("cat.png", "copy.png")
    assert any(warning in line for line in inspect(*words)["warnings"])


def test_more_pictures_than_the_model_learnt_from_are_odd_where_that_is_known(run, here):
    model = here / "model"
    toy_pipeline().save_pretrained(model)
    settings = json.loads((model / "generation_config.json").read_text())
    assert settings["trained_pictures"] is None

    def warned(number, known):
        changed = settings | {"trained_pictures": known}
        (model / "generation_config.json").write_text(json.dumps(changed))
        pictures = ["cat.png", "dog.jpg", "cat.png"][:number]
        code, out, _ = run("inspect", *pictures, "--json", "--model", model)
        report = json.loads(out)
        assert (code, report["trained_pictures"]) == (0, known)
        return any(
            f"has {number} pictures; this model learnt from prompts of at most 2" in line
            for line in report["warnings"]
        )

    assert warned(3, 2)
    assert not warned(2, 2)
    assert not warned(3, None)
    del settings["trained_pictures"]  # as directories were written before
    (model / "generation_config.json").write_text(json.dumps(settings))
    assert run("inspect", "cat.png", "--model", model)[0] == 0


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


def test_a_picture_s_name_may_be_any_bytes(run, here, toy_dir):
    name = b"a\xff\ncat.png".decode(errors="surrogateescape")
    (here / "cat.png").rename(here / name)
    code, out, err = run("inspect", name, "--model", toy_dir)
    assert (code, err) == (0, "")
    assert "picture 1: 'a\\udcff\\ncat.png', 40 x 48" in out
