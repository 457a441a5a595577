"""A command in a process of its own, on a terminal, stopped by Ctrl-C."""

import os
import pty
import re
import signal
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """How a process ended, what it printed, and what the terminal showed of its stderr."""

    code: int
    printed: bytes
    shown: bytes


def interrupted(*words: str, directory: Path, seen: bytes) -> Stopped:
    """Run `kosmosg` until the pattern `seen` shows on the terminal, then press Ctrl-C."""
    terminal, stderr = pty.openpty()  # the progress bar shows only on a terminal
    termios.tcsetwinsize(stderr, (24, 80))
    command = [sys.executable, "-m", "kosmosg", *words]
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=stderr) as process:
        os.close(stderr)
        shown = b""
        while not re.search(seen, shown):
            shown += os.read(terminal, 4096)
        process.send_signal(signal.SIGINT)
        try:
            while more := os.read(terminal, 4096):
                shown += more
        except OSError:  # how Linux says that the other end is closed
            pass
        assert process.stdout is not None
        printed = process.stdout.read()
    os.close(terminal)
    return Stopped(code=process.returncode, printed=printed, shown=shown)
