"""docs/claims.md is what the committed rows give, and its pictures exist."""

import re
from pathlib import Path

from kosmosg.toyworld.claims import run
from kosmosg.toyworld.claims.page import page


def test_the_page_is_generated_from_the_rows(repository: Path) -> None:
    written = (repository / "docs/claims.md").read_text(encoding="utf-8")
    remedy = "docs/claims.md is old: run ./scripts/docs"
    assert written == "".join(page(repository / "docs/results", "images/claims/")), remedy
    for picture in re.findall(r"\]\((images/[^)]+)\)", written):
        assert (repository / "docs" / picture).is_file(), picture


def test_each_committed_row_is_of_an_experiment_that_exists(repository: Path) -> None:
    names = {one.name for one in run.EXPERIMENTS}
    assert {path.stem for path in (repository / "docs/results").glob("*.json")} <= names
