"""The entry points: small, executable, and clear about what a machine lacks."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def test_scripts_are_executable_short_and_say_what_they_do(repository: Path) -> None:
    for script in [*(repository / "scripts").iterdir(), repository / ".ci/run"]:
        lines = script.read_text().splitlines()
        assert os.access(script, os.X_OK), script
        assert lines[0] == "#!/usr/bin/env bash", script
        assert lines[1].startswith("# "), script
        assert len(lines) <= 25, script
        assert "set -euo pipefail" in lines, script
        subprocess.run(["bash", "-n", script], check=True)


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """What set-up reads, on a machine whose python3, id, pip and apt-get are ours."""
    for name in ("scripts/setup", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(repository / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    return tmp_path


def fake(checkout: Path, name: str, body: str) -> None:
    program = checkout / "bin" / name
    program.write_text(f'#!/bin/bash\necho "{name} $*" >> {checkout}/calls\n{body}\n')
    program.chmod(0o755)


def setup(checkout: Path, **env: str) -> subprocess.CompletedProcess[str]:
    path = f"{checkout}/bin:{os.environ['PATH']}"
    return subprocess.run(
        [checkout / "scripts/setup"],
        env={"PATH": path, **env},  # no HOME: services have none
        capture_output=True,
        text=True,
    )


# A python3 that knows its version, has ensurepip or not, and makes a .venv of itself.
PYTHON = """
case "$*" in
  *version_info*) exit {old} ;;
  *ensurepip*) [ -e {checkout}/has-venv ] ;;
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
esac
"""


def test_set_up_installs_torch_first_and_only_once(checkout: Path) -> None:
    fake(checkout, "python3", PYTHON.format(old=0, checkout=checkout))
    (checkout / "has-venv").touch()
    assert setup(checkout).returncode == 0
    installs = [
        line for line in (checkout / "calls").read_text().splitlines() if "pip inst" in line
    ]
    assert [line.split("constraints.txt ")[1] for line in installs] == ["torch", "-e .[dev]"]
    (checkout / "calls").unlink()
    assert setup(checkout).returncode == 0
    assert not (checkout / "calls").exists(), "a second set-up must do nothing"


def test_a_failed_install_is_tried_again(checkout: Path) -> None:
    broken = PYTHON.replace("esac", '*" torch") exit 7 ;;\nesac')
    fake(checkout, "python3", broken.format(old=0, checkout=checkout))
    (checkout / "has-venv").touch()
    assert setup(checkout).returncode == 7
    assert not (checkout / ".venv/stamp").exists()


def test_another_torch_is_installed_without_our_pin(checkout: Path) -> None:
    fake(checkout, "python3", PYTHON.format(old=0, checkout=checkout))
    (checkout / "has-venv").touch()
    assert setup(checkout, TORCH="torch==2.12.0 --pre").returncode == 0
    assert "constraints.txt torch==2.12.0 --pre" in (checkout / "calls").read_text()
    assert "torch==" not in (checkout / ".venv/constraints.txt").read_text()
    assert "numpy==" in (checkout / ".venv/constraints.txt").read_text()


def test_missing_venv_is_installed_by_root(checkout: Path) -> None:
    fake(checkout, "python3", PYTHON.format(old=0, checkout=checkout))
    fake(checkout, "id", "echo 0")
    fake(checkout, "apt-get", f"touch {checkout}/has-venv")
    assert setup(checkout).returncode == 0
    assert "apt-get install -q -y python3-venv" in (checkout / "calls").read_text()


def test_missing_venv_is_one_line_to_type_for_others(checkout: Path) -> None:
    fake(checkout, "python3", PYTHON.format(old=0, checkout=checkout))
    fake(checkout, "id", "echo 1000")
    done = setup(checkout)
    assert done.returncode == 1
    assert "sudo apt-get install -y python3-venv" in done.stdout


def test_an_old_python_is_refused(checkout: Path) -> None:
    fake(checkout, "python3", PYTHON.format(old=1, checkout=checkout))
    assert setup(checkout).returncode == 1
    assert not (checkout / ".venv").exists()
