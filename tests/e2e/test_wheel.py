"""`scripts/dist`, and its wheel in an environment where nothing else of ours is."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from kosmosg import hashes, release
from kosmosg.note import read_png
from toys.serving import serving

pytestmark = pytest.mark.skipif(
    find_spec("hatchling") is None,
    reason="NOT PROVED HERE: hatchling is not installed; run ./scripts/setup",
)
BUILT_FROM = ("src", "tests/toys", "docs/adr", "pyproject.toml", "README.md", "LICENSE")


def checkout_at(folder: Path, repository: Path, parts: Sequence[str] = BUILT_FROM) -> Path:
    """The script in a checkout of its own, already set up with the Python that runs this."""
    for name in ("scripts/dist", *parts):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (repository / name).is_dir() else shutil.copy
        copy(repository / name, folder / name)
    (folder / ".venv/bin").mkdir(parents=True)
    for name, body in {
        "scripts/setup": "true",
        ".venv/bin/python": f'exec {sys.executable} "$@"',
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def dist(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `scripts/dist` leaves."""
    checkout = checkout_at(tmp_path_factory.mktemp("dist") / "checkout", repository)
    done = subprocess.run([checkout / "scripts/dist"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in (checkout / "dist").iterdir():
        assert f"{path.name}: {path.stat().st_size // 1000} kB" in done.stdout
    return checkout / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_file_by_file_and_nothing_else(
    wheel: Path, repository: Path
) -> None:
    source = repository / "src"
    ours = {
        path.relative_to(source).as_posix(): path.read_bytes()
        for path in (source / "kosmosg").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if ".dist-info/" not in name]
        assert set(names) == set(ours)
        assert [name for name in names if file.read(name) != ours[name]] == []
    assert wheel.stat().st_size <= 60e6


def test_the_sdist_holds_source_tests_and_docs(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"src/kosmosg/nano/SHA256SUMS", "src/kosmosg/serve/static/app.js"} <= names
    assert {"tests/toys/model.py", "docs/adr/index.md", "scripts/dist", "LICENSE"} <= names
    assert not [name for name in names if name.startswith((".venv", "dist"))]


def test_a_wheel_that_grew_too_large_is_refused_and_removed(
    repository: Path, tmp_path: Path
) -> None:
    parts = ("pyproject.toml", "README.md", "LICENSE", "src/kosmosg/__init__.py")
    checkout = checkout_at(tmp_path, repository, parts)
    (checkout / "src/kosmosg/weights.bin").write_bytes(os.urandom(60_100_000))
    done = subprocess.run([checkout / "scripts/dist"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "over 60 MB" in done.stdout
    assert not list((checkout / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment with the wheel in it; its dependencies are lent by this one."""
    home = tmp_path_factory.mktemp("wheel") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    python = home / "bin/python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "-q"]
    subprocess.run([*command, "--no-deps", "--no-index", wheel], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    # A folder named so is searched last, and its own .pth files, such as our checkout's, are not.
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return tmp_path


def test_installed_it_generates_with_nano(python: Path, elsewhere: Path, repository: Path) -> None:
    where = subprocess.run(
        [python, "-c", "import kosmosg; print(kosmosg.__file__)"], capture_output=True, text=True
    )
    assert where.stdout.startswith(str(python.parents[1])), where
    kosmosg = python.with_name("kosmosg")
    said = subprocess.run([kosmosg, "--version"], capture_output=True, text=True)
    assert said.stdout == f"{version('kosmosg')}\n"
    shutil.copy(repository / "docs/images/creature.png", elsewhere / "me.png")
    words = ["a creature", "me.png", "in the snow", "--seed", "7", "--steps", "4"]
    done = subprocess.run([kosmosg, "generate", *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "out.png\n"), done.stderr
    image, note = read_png(elsewhere / "out.png")
    nano = release.find("nano")
    assert image.size == (release.read_generation_config(nano).width,) * 2
    assert len(image.getcolors(2**24)) > 1000  # snow, in half-drawn shades: no plain square
    assert note.model.parts == hashes.of_parts(nano, note.model.parts)


def test_installed_it_serves_the_page(
    python: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(python))
    with serving(elsewhere / "log") as server, server.client() as client:  # it waits for /readyz
        page = client.get("/")
        assert page.status_code == 200
        assert "<title>kosmosg" in page.text
        assert client.get("/static/app.js").status_code == 200
        assert client.get("/static/pictures/star.png").content[:4] == b"\x89PNG"
