"""The page of `kosmosg runs`, opened from its file in a browser."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kosmosg.cli import main
from kosmosg.train.loop import fit
from toys.training import Pairs, Regression, net, train_config

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of two runs of the loop, of which one was stopped and went on."""
    folder = tmp_path_factory.mktemp("runs")
    config = train_config(steps=40, checkpoint_s=0.0)
    fit(net(), Regression(), Pairs(0), config, folder / "one")
    faster = replace(config.optim, lr=3e-2)
    fit(net(), Regression(), Pairs(0), replace(config, steps=20, optim=faster), folder / "two")
    output = folder / "page.html"
    assert main(["runs", str(folder / "one"), str(folder / "two"), "-o", str(output)]) == 0
    return output


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: "Browser", written: Path) -> "Iterator[Page]":
    """Return the page, opened without a server; it may say nothing to the console."""
    context = browser.new_context(color_scheme=request.param)
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda asked: said.append(asked.url) if "http" in asked.url else None)
    opened.goto(written.as_uri())
    yield opened
    context.close()
    assert said == []


def _size(shown: "Locator") -> tuple[float, float]:
    box = shown.bounding_box()
    assert box is not None, "it is not shown"
    return box["width"], box["height"]


def test_curves_and_tables_are_seen(page: "Page") -> None:
    assert page.title() == "2 runs"
    loss = page.get_by_role("img", name="loss").first
    assert _size(loss)[0] > 200
    for run in ("r0", "r1"):
        curve = loss.locator(f"g.{run} polyline").first
        points = (curve.get_attribute("points") or "").split()
        assert len(points) >= 10
        assert _size(curve)[1] > 5  # it falls: training did something
    table = page.get_by_role("table").first
    assert table.get_by_role("row", name="loss").first.is_visible()
    assert page.get_by_role("row", name="optim.lr").get_by_text("0.03").is_visible()


def test_a_run_can_be_hidden_by_keyboard(page: "Page") -> None:
    curve = page.get_by_role("img", name="loss").first.locator("g.r1").first
    assert curve.is_visible()
    page.get_by_role("checkbox", name="two").focus()
    page.keyboard.press("Space")
    assert not curve.is_visible()


def test_it_keeps_nobody_out(page: "Page", barriers) -> None:
    assert barriers(page) == []
