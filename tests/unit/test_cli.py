import errno
import os
import resource
import signal
import subprocess
import sys

import pytest
import typer

from kosmosg import cli, errors
from kosmosg.cli import page


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """A command line whose commands fail in each foreseen way."""
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    def named() -> None:
        raise errors.PromptError("9 pictures,\n  8 at most; leave one out")

    @app.command()
    def disk() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "out.png")

    @app.command()
    def bare() -> None:
        raise OSError("no config.json in there")

    @app.command()
    def interrupt() -> None:
        raise KeyboardInterrupt

    @app.command()
    def own_words() -> None:
        print("saved", file=sys.stderr)
        raise typer.Exit(130)

    @app.command()
    def number(count: int) -> None:
        print(count)

    @app.command()
    def bug() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", app)
    return app


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["named"], 2, "kosmosg: 9 pictures, 8 at most; leave one out"),
        (["disk"], 1, "kosmosg: out.png: No space left on device; free some space there, then"),
        (["bare"], 1, "kosmosg: no config.json in there"),
        (["interrupt"], 130, "kosmosg: stopped by Ctrl-C"),
        (["own-words"], 130, "saved"),
        (["numbers"], 2, "kosmosg: No such command 'numbers'"),
        (["number"], 2, "kosmosg: Missing argument 'count'; see kosmosg number --help"),
        (
            ["number", "many"],
            2,
            "kosmosg: Invalid value for 'count': Input should be a valid integer",
        ),
        (
            ["number", "1", "--fast"],
            2,
            "kosmosg: No such option: --fast; see kosmosg number --help",
        ),
    ],
)
def test_a_failure_is_one_line_on_stderr_and_a_code(
    words: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.usefixtures("failing")
def test_a_wrong_value_is_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["number", "many"])
    assert capsys.readouterr().err.endswith(", not 'many'; see kosmosg number --help\n")


@pytest.mark.usefixtures("failing")
def test_success_is_zero_and_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["number", "3"]) == 0
    assert capsys.readouterr() == ("3\n", "")
    with pytest.raises(ZeroDivisionError):
        cli.main(["bug"])


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.count(".") == 2
    assert cli.main([]) == 0
    assert capsys.readouterr().out.startswith("Usage: kosmosg")


def test_a_group_without_its_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate"]) == 2
    assert capsys.readouterr().err == "kosmosg: Missing command; see kosmosg evaluate --help\n"


def test_help_is_fast_and_imports_no_torch() -> None:
    probe = (
        "import sys, kosmosg, kosmosg.cli; code = kosmosg.cli.main(['--help']);"
        "heavy = {'torch', 'transformers', 'diffusers', 'numpy', 'PIL', 'rich'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Processor time, not the clock's: the machine may be busy with something else.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_lazy_names_are_listed_and_a_wrong_one_is_an_attribute_error() -> None:
    import kosmosg

    assert {"KosmosG", "KosmosGPipeline", "Prompt"} <= set(dir(kosmosg))
    with pytest.raises(AttributeError, match="no attribute 'Kosmos'"):
        _ = kosmosg.Kosmos  # pyright: ignore[reportAttributeAccessIssue]


def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "kosmosg", "--help"], stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (cli.PIPE_CLOSED, b"")


_WAIT = """
import sys, time, typer
from kosmosg import cli

cli.app = typer.Typer()

@cli.app.callback()
def root(): ...

@cli.app.command()
def wait():
    print("ready", flush=True)
    time.sleep(60)

sys.exit(cli.main(["wait"]))
"""


def test_a_real_ctrl_c_is_one_line() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _WAIT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert (child.returncode, err) == (130, "kosmosg: stopped by Ctrl-C\n")


def test_the_page_shows_every_command() -> None:
    text = page.page()
    assert text.count("```text") == text.count("Usage: kosmosg")
    assert "## kosmosg\n" in text
