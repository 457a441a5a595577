"""`python -m kosmosg`, which is what torchrun needs: the same as the `kosmosg` command."""

from kosmosg.cli import main

if __name__ == "__main__":
    main()
