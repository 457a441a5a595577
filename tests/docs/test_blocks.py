"""What README and docs show works: Python runs, shell commands parse, examples are doctests."""

import doctest
import importlib
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer

from kosmosg import cli
from kosmosg.cli import page
from toys.safety import NEVER, save_checker

PAGES = ["README.md"] + [
    f"docs/{name}.md"
    for name in (
        "index",
        "quickstart",
        "tools",
        "input",
        "replay",
        "convert",
        "data",
        "data-formats",
        "construct",
        "training",
        "scale",
        "sds",
        "toyworld",
        "verify",
        "results",
        "claims",
    )
]
# What a shell block may call besides our own commands.
FOREIGN = {
    "git",
    "cd",
    "cp",
    "hf",
    "mkdir",
    "export",
    "source",
    "pip",
    "sudo",
    "apt-get",
    "energon",
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def commands(repository: Path) -> list[tuple[str, list[str]]]:
    """Return (page, words) for each command line of each shell block."""
    found = []
    for name in PAGES:
        for block in blocks((repository / name).read_text(), "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words.pop(0)
                if words:
                    found.append((name, words))
    return found


def test_every_command_shown_is_one_that_exists(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = typer.main.get_command(cli.app)
    without_bodies(command)
    monkeypatch.setattr(typer.main, "get_command", lambda _app: command)
    for name, words in commands(repository):
        program, *arguments = words
        if program.startswith("./"):
            assert (repository / program).is_file(), f"{name}: no {program}"
        elif program.rpartition("/")[2] == "kosmosg":
            assert cli.main(arguments) == 0, f"{name}: {' '.join(words)}"
        else:
            assert program in FOREIGN, f"{name} shows {program}, which nothing here checks"


def test_every_field_shown_is_one_that_exists(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    configured = {("train",), ("construct", "folder"), ("construct", "openimages")}
    seen = set()
    for name, words in commands(repository):
        program, *arguments = words
        noun = tuple(arguments[:2]) if arguments[:1] == ["construct"] else tuple(arguments[:1])
        if program.rpartition("/")[2] == "kosmosg" and noun in configured:
            if "--config" in arguments or "--print-config" in arguments:
                continue  # it names a file of the reader's
            assert cli.main([*arguments, "--print-config"]) == 0, f"{name}: {' '.join(words)}"
            seen.add(noun)
    assert seen == configured


def without_bodies(command: Any) -> None:
    """Let the command line parse everything and do nothing."""
    for inner in getattr(command, "commands", {}).values():
        without_bodies(inner)
    if not getattr(command, "commands", {}):
        command.callback = None


def test_every_picture_and_link_shown_exists(repository: Path) -> None:
    for name in PAGES:
        for target in re.findall(
            r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", (repository / name).read_text()
        ):
            path = "".join(target)
            if not path.startswith("http"):
                assert ((repository / name).parent / path).exists(), f"{name}: no {path}"


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md", "docs/replay.md"])
def test_the_python_shown_runs(
    name: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (repository / "src/kosmosg/nano/model_index.json").is_file():
        pytest.skip("NOT PROVED HERE: nano's weights are not in this checkout")
    shutil.copytree(repository / "docs/images", tmp_path / "docs/images")
    save_checker(tmp_path / "stable-diffusion-v1-5", NEVER)
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks((repository / name).read_text(), "python"))
    exec(compile(code, name, "exec"), {})  # one namespace: later blocks go on from earlier ones
    assert (tmp_path / "out.png").is_file()


def test_the_command_line_page_is_what_help_says(repository: Path) -> None:
    written = (repository / "docs/cli.md").read_text()
    assert written == page.page(), "docs/cli.md is old: run ./scripts/docs"


def test_examples_in_docstrings_hold(repository: Path) -> None:
    tried = 0
    for path in sorted((repository / "src/kosmosg").rglob("*.py")):
        if ">>>" in path.read_text():
            module = path.relative_to(repository / "src").with_suffix("").as_posix()
            results = doctest.testmod(importlib.import_module(module.replace("/", ".")))
            assert results.failed == 0, path
            tried += results.attempted
    assert tried > 0
