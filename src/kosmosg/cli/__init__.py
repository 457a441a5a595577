"""The `kosmosg` command."""


def main() -> None:
    """Run the command line."""
