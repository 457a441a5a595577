"""`python -m kosmosg`, which is what torchrun needs: the same as the `kosmosg` command."""

import sys

from kosmosg.cli import main

if __name__ == "__main__":
    sys.exit(main())
