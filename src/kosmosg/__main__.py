"""The `kosmosg` command, which is also `python -m kosmosg`: what torchrun needs."""

import sys


def main() -> int:
    """Run the command of the process and return its exit code, also if Ctrl-C comes very early."""
    try:
        from kosmosg.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("kosmosg: stopped by Ctrl-C\n")
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
