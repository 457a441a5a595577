"""Where a caption mentions the things that tags name, as the released loader finds them."""

import re
from collections.abc import Sequence

# Tags that are no things. NUMERICS gives their number, not their names: the commonest sixteen.
COLOURS = (
    *("black", "white", "gray", "grey", "red", "orange", "yellow", "green", "blue", "purple"),
    *("pink", "brown", "gold", "silver", "beige", "tan"),
)
# A mention reaches to the end of its word.
ENDS = re.compile(r"[ ,.!?;:)\]}]")


def mentions(caption: str, tags: Sequence[str]) -> list[tuple[int, int]]:
    """Return where the released loader finds things in a caption, from left to right.

    Source:
        NUMERICS section 9 (OpenImages).
    """
    kept = []
    for tag in tags:
        found = re.search(_word(tag), caption, re.IGNORECASE) if tag else None
        within = sum(bool(re.search(rf"\b{tag}\b", other)) for other in tags)  # sic: not escaped
        if found and tag.lower() not in COLOURS and within <= 1:
            kept.append((found.end(), tag))
    places, position = [], 0
    for _, tag in sorted(kept, key=lambda pair: pair[0]):
        found = re.search(_word(tag), caption[position:], re.IGNORECASE)
        if found is None:
            continue
        start, end = position + found.start(), position + found.end()
        stop = ENDS.search(caption, end)
        position = stop.start() if stop else len(caption)
        places.append((start, position))
    return places


def _word(tag: str) -> str:
    return rf"\b{re.escape(tag)}\b"
