from collections.abc import Callable
from pathlib import Path

import pytest

from kosmosg.cli import main
from toys.model import toy_picture

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run one command in this process; return its code and what it printed."""

    def _run(*words: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(word) for word in words])
        return code, *capfd.readouterr()

    return _run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two pictures."""
    monkeypatch.chdir(tmp_path)
    toy_picture(1).save("cat.png")
    toy_picture(2, (64, 30)).save("dog.jpg")
    return tmp_path
