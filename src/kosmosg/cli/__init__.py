"""The `kosmosg` command: data to stdout, notes to stderr, every foreseen failure one line.

One file a noun. Each holds an `app`: a `typer.Typer()` without a name adds its commands beside
the others (`kosmosg generate`), one with a name is a group (`kosmosg train stage3`). Commands
import torch and its like inside their bodies, so that `kosmosg --help` stays fast. They raise
KosmosGError and never print one; to end with a code and words of their own they raise
typer.Exit(code).
"""

import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from kosmosg.cli import (
    caption,
    claims,
    construct,
    convert,
    data,
    encode,
    evaluate,
    generate,
    replay,
    runs,
    serve,
    tools,
    train,
    verify,
)
from kosmosg.errors import KosmosGError

USAGE, FAILED, INTERRUPTED, PIPE_CLOSED = 2, 1, 130, 141

app = typer.Typer(
    name="kosmosg",
    help="Generate pictures from prompts in which pictures are words, and train what does it.",
    add_completion=False,
    rich_markup_mode=None,  # plain text is what docs/cli.md shows and what a pipe wants
    pretty_exceptions_enable=False,
)
for _noun in (
    *(generate, replay, encode, caption, convert, tools, verify),
    *(construct, train, runs, evaluate, claims, data, serve),
):
    app.add_typer(_noun.app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 is success; 1 a failure of the machine (disk full, no permission); 2 a wrong command, prompt,
    configuration, record or checkpoint; 130 Ctrl-C.

    Args:
        arguments: The words after `kosmosg`; None takes them from the process.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # the name of a file may be any bytes
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    command = typer.main.get_command(app)
    try:
        # Not command.main(): it turns Ctrl-C into a silent exit and prints four lines for a typo.
        with command.make_context("kosmosg", arguments) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as stop:
        return stop.exit_code
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C", INTERRUPTED)
    except typer.TyperException as error:
        return _fail(_usage(error), USAGE)
    except KosmosGError as error:
        return _fail(str(error), USAGE)
    except BrokenPipeError:
        # Whoever read our output has left; what Python would still flush at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        return _fail(_system(error), FAILED)
    except (ImportError, RuntimeError) as error:
        # diffusers makes RuntimeErrors of failed imports, such as those of a broken torchvision.
        if isinstance(error, RuntimeError) and not str(error).startswith("Failed to import"):
            raise
        return _fail(f"a library does not import ({error}); run kosmosg doctor", FAILED)
    return 0


def _version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        print(version("kosmosg"))
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    del version  # its callback has done the work


def _fail(message: str, code: int) -> int:
    print(f"kosmosg: {' '.join(message.split())}", file=sys.stderr)
    return code


def _usage(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "kosmosg"
    message = error.format_message().rstrip(".")
    from pydantic import ValidationError

    if isinstance(error.__cause__, ValidationError):  # it knows the value, which typer leaves out
        message += f", not {error.__cause__.errors()[0]['input']!r}"
    return f"{message}; see {path} --help"


def _system(error: OSError) -> str:
    remedy = "; free some space there, then try again" if error.errno == errno.ENOSPC else ""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}{remedy}"
