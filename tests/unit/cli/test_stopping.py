import os
import signal

import pytest
import typer

from kosmosg.cli.stopping import goes_on


@pytest.mark.parametrize(
    ("number", "name", "code"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)]
)
def test_a_command_that_is_stopped_cleans_up_and_says_that_it_goes_on(capsys, number, name, code):
    cleaned = []

    @goes_on
    def command() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as stop:
        command()
    assert (stop.value.exit_code, cleaned) == (code, [True])
    assert capsys.readouterr().err == f"kosmosg: stopped by {name}; the same command goes on\n"
    assert signal.getsignal(signal.SIGTERM) == before
