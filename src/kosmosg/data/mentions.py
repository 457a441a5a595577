"""Where a caption mentions the things of a list of tags, as the released loader finds them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

# Tags that are no things. NUMERICS gives their number, not their names: the commonest sixteen.
COLOURS = (
    *("black", "white", "gray", "grey", "red", "orange", "yellow", "green", "blue", "purple"),
    *("pink", "brown", "gold", "silver", "beige", "tan"),
)
# A mention reaches to the end of its word.
ENDS = re.compile(r"[ ,.!?;:)\]}]")

_REPEATING = re.compile(r"[*+?{]")


class Mention(NamedTuple):
    """A mention's place in a caption, and the place of its tag in the list of tags."""

    start: int
    end: int
    tag: int


def mentions(caption: str, tags: Sequence[str]) -> list[Mention]:
    """Return where a caption mentions tags, from left to right; colours and doubtful tags not.

    Source:
        NUMERICS section 9 (OpenImages). The release counts in how many tags of the list a tag
        occurs by taking it for a regular expression. Deviation: a tag that is none, or that could
        take for ever to match, is taken literally; the release loses the first kind's sample.
    """
    kept = []
    for index, tag in enumerate(tags):
        found = re.search(_word(tag), caption, re.IGNORECASE) if tag else None
        if found and tag.lower() not in COLOURS and _is_clear(tag, tags):
            kept.append((found.end(), index, tag))
    places: list[Mention] = []
    position = 0
    for _, index, tag in sorted(kept, key=lambda one: one[0]):
        found = re.search(_word(tag), caption[position:], re.IGNORECASE)
        if found is None:
            continue
        start, end = position + found.start(), position + found.end()
        stop = ENDS.search(caption, end)
        position = stop.start() if stop else len(caption)
        places.append(Mention(start, position, index))
    return places


def _is_clear(tag: str, tags: Sequence[str]) -> bool:
    """Whether a tag is a word of no other tag than itself."""
    try:
        pattern = re.compile(_word(tag) if _REPEATING.search(tag) else rf"\b{tag}\b")
    except re.error:
        pattern = re.compile(_word(tag))
    return sum(bool(pattern.search(other)) for other in tags) <= 1


def _word(tag: str) -> str:
    return rf"\b{re.escape(tag)}\b"
