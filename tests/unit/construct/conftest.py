"""Where the tests of runs put their shards, and their workers their marks."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kosmosg.construct.journal import Journal


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "shards"


@pytest.fixture
def flags(tmp_path: Path) -> Path:
    folder = tmp_path / "flags"
    folder.mkdir()
    return folder


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(Journal(tmp_path / ".unit.journal", "sum")) as opened:
        yield opened
