"""The released model's numbers: the copy of some that lies here, and all of them beside us."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kosmosg.verify import Golden

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def kept() -> Golden:
    """The small copy in this repository."""
    return Golden(DATA)


@pytest.fixture(scope="session")
def shared(shared_dir: Path) -> Golden:
    """All that the released code recorded; without the shared folder these tests are skipped."""
    return Golden(shared_dir / "golden", shared_dir / "tokenizer")


@pytest.fixture(scope="session")
def golden_with(request: pytest.FixtureRequest) -> Callable[[str], Golden]:
    """The copy if it holds the file, else all; without either the test is skipped."""

    def find(name: str) -> Golden:
        there = (DATA / name).is_file()
        return request.getfixturevalue("kept" if there else "shared")

    return find
