"""Where in a JSON text a field stands: the line and column that an editor shows."""

import json
from collections.abc import Iterator, Sequence

_DECODER = json.JSONDecoder()
_SPACE = " \t\n\r"


def place_of(text: str, path: Sequence[str | int]) -> tuple[int, int]:
    r"""Return line and column, from 1, of the value that a path leads to.

    Of a value that is missing: those of what should hold it.

    Args:
        text: Valid JSON.
        path: Names in objects and numbers in lists.

    Example:
        >>> place_of('{"a": [1,\n 2]}', ["a", 1])
        (2, 2)
    """
    position = _skip(text, 0)
    for step in path:
        # The last of two equal names is the one that counts.
        inside = [start for name, start in _items(text, position) if name == step]
        if not inside:
            break
        position = inside[-1]
    return line_and_column(text[:position])


def line_and_column(before: str) -> tuple[int, int]:
    """Return line and column, from 1, of what follows a text."""
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _items(text: str, position: int) -> Iterator[tuple[str | int, int]]:
    """Yield name or number of each item of the value at a position, and where the item begins."""
    opening = text[position]
    if opening not in "{[":
        return
    position = _skip(text, position + 1)
    number = 0
    while text[position] not in "}]":
        name: str | int = number
        if opening == "{":
            name, position = _DECODER.raw_decode(text, position)
            position = _skip(text, _skip(text, position) + 1)  # the colon
        yield name, position
        _, position = _DECODER.raw_decode(text, position)
        position = _skip(text, position)
        if text[position] == ",":
            position = _skip(text, position + 1)
        number += 1


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position
