"""The package as somebody gets it who installed no extras."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from kosmosg.train.log import RunLog

_IMPORT_ALL = """
import importlib, pkgutil, sys
for name in {blocked!r}:
    sys.modules[name] = None  # what `import name` then meets is a ModuleNotFoundError
import kosmosg
for module in pkgutil.walk_packages(kosmosg.__path__, "kosmosg."):
    if module.name != "kosmosg.__main__":
        importlib.import_module(module.name)
"""


def test_every_module_imports_with_core_dependencies_only() -> None:
    blocked = ["tensorboard", "pytest", "hypothesis", "beartype", "scipy", "ray", "torchao"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _IMPORT_ALL.format(blocked=blocked)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_training_without_its_extra_says_what_to_install_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tensorboard", "tensorboard.compat.proto"):
        monkeypatch.setitem(sys.modules, name, None)
    log = RunLog(tmp_path, first_step=0, steps=1, batch_size=1)
    log.write(1, {"loss": 0.5})
    log.close()
    assert "pip install 'kosmosg[train]'" in capsys.readouterr().err
    assert '"loss": 0.5' in (tmp_path / "log.jsonl").read_text()


def test_the_version_is_written_once(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert version("kosmosg") == project["version"]
    assert f"version: {project['version']}\n" in (repository / "CITATION.cff").read_text()
