"""`kosmosg runs`: a table, a page, a picture, and what cannot be shown."""

import pytest
from PIL import Image

from toys.runs import losses, written


@pytest.fixture
def two(here):
    lines = [*losses([4.0, 1.5, 2.0]), {"step": 30, "grad_norm": 0.25, "loss/edits": None}]
    written(here / "one", lines, {"train": {"steps": 30, "optim": {"lr": 0.1}}})
    written(here / "two", losses([3.0]), {"train": {"steps": 30, "optim": {"lr": 0.2}}})
    return here


def test_runs_are_a_table(run, two):
    assert two.is_dir()
    code, out, err = run("runs", "one", "two")
    assert (code, err) == (0, "")
    rows = [line.split("  ") for line in out.splitlines()]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert rows == [
        ["one", "two"],
        ["state", "finished, 30 steps", "stopped at step 10 of 30"],
        ["loss", "2", "3"],
        ["best", "1.5 at 20", "3 at 10"],
        ["loss/edits", "-", "-"],
        ["best", "-", "-"],
        ["grad_norm", "0.25", "-"],
        ["train.optim.lr", "0.1", "0.2"],
    ]
    assert "optim.lr" not in run("runs", "one")[1]


def test_runs_are_a_page_or_a_picture(run, two):
    code, out, err = run("runs", "one", "two", "-o", "page.html")
    assert (code, out, err) == (0, "", "2 runs: page.html\n")
    assert (two / "page.html").read_text().startswith("<!doctype html>")
    code, out, err = run("runs", "one", "-o", "plot.PNG")
    assert (code, out, err) == (0, "", "1 run: plot.PNG\n")
    with Image.open(two / "plot.PNG") as picture:
        assert picture.format == "PNG"
        assert picture.width == 880


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing argument 'RUN_DIR...'"),
        (["nowhere"], "there is no directory nowhere"),
        (["."], "is no run (log.jsonl is not there); name one in it: one, two"),
        (["one", "./one"], "one is named twice"),
        (["one", "-o", "out.pdf"], "out.pdf ends in neither .html (a page) nor .png"),
        (["one", "-o", "no/page.html"], "there is no directory no; make it first"),
    ],
)
def test_what_cannot_be_shown_is_one_line(run, two, words, message):
    assert two.is_dir()
    code, out, err = run("runs", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
