"""Commands that go on where they were stopped say so, whether Ctrl-C or SIGTERM stopped them."""

import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, ParamSpec

import typer

P = ParamSpec("P")


class _Terminated(KeyboardInterrupt):
    """SIGTERM: as Ctrl-C, whatever is being written is taken away."""


def goes_on(command: Callable[P, None]) -> Callable[P, None]:
    """Return a command that ends with a line and the code of its signal if it is stopped."""

    @functools.wraps(command)
    def stoppable(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with _terminable():
                command(*args, **kwargs)
        except KeyboardInterrupt as stop:
            terminated = isinstance(stop, _Terminated)
            name = "SIGTERM" if terminated else "Ctrl-C"
            print(f"kosmosg: stopped by {name}; the same command goes on", file=sys.stderr)
            raise typer.Exit(128 + (signal.SIGTERM if terminated else signal.SIGINT)) from None

    return stoppable


@contextmanager
def _terminable() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated
