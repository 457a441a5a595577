"""A browser for the tests of the pages, and axe-core to look for barriers in them."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

AXE = Path(__file__).parent / "browser/node_modules/axe-core/axe.min.js"
SERIOUS = ("serious", "critical")


def _missing(what: str) -> NoReturn:
    """Skip; fail where the browser is required, as continuous integration does."""
    said = f"{what}; run ./scripts/setup-browser"
    if os.environ.get("KOSMOSG_BROWSER") == "required":
        pytest.fail(said)
    pytest.skip(f"NOT PROVED HERE: {said}")


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """One headless Chromium for a file's tests."""
    name = os.environ.get("KOSMOSG_CHROMIUM", "chromium")
    program = shutil.which(name)
    if program is None:
        _missing(f"there is no program {name} to show a page in")
    sync = pytest.importorskip("playwright.sync_api")
    # Chromium cannot build its sandbox as root; the pages that it opens here are our own.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=sandbox)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def barriers() -> "Callable[[Page], list[str]]":
    """Return what axe-core finds on a page that would keep people out, one line each."""
    if not AXE.is_file():
        _missing("axe-core is not here")
    program = AXE.read_text(encoding="utf-8")

    def found(page: "Page") -> list[str]:
        page.evaluate(program + "; 0")  # as the browser's console would: the page's rules stay
        violations = page.evaluate("async () => (await axe.run()).violations")
        return [
            f"{one['id']}: {node['html']} ({node['failureSummary']})"
            for one in violations
            if one["impact"] in SERIOUS
            for node in one["nodes"]
        ]

    return found
