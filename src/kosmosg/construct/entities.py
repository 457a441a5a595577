"""Captions to the things they mention: what every finder shares, and one that follows a rule."""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from kosmosg.data.mentions import COLOURS
from kosmosg.errors import DataError

# Tags of each caption in their order; an error for a caption that could not be answered.
EntityFinder: TypeAlias = Callable[[Sequence[str]], Sequence[list[str] | DataError]]

MAX_TAGS = 64  # each is compared with each

INSTRUCTION = (
    "List the objects that the caption below names, separated by commas. Name foreground objects"
    " only: no places, no background. Use the caption's own nouns, without adjectives."
)
# A tag is words with single spaces between them; nothing else may go into a pattern unescaped.
TAG = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*(?: [^\W_]+(?:['\u2019-][^\W_]+)*)*")

# Words that end a phrase. Of those that end in -ing only these are things.
_STOPS = """
a an the this that these those some any each every several many few two three four five six seven
eight nine ten another other his her its their my your our and or but nor so as than of in on at by
to from with without into onto over under above below behind beside besides between among near next
front back top bottom side left right middle centre center inside outside through across along
around against up down off out for about before after while during like is are was were be been
being has have had do does did can could will would may might who which what where when there here
it he she they them him you we i not no very wears wear holds hold sits sit stands stand lies lie
looks look rides ride plays play runs run walks walk shows show seen made filled covered surrounded
topped parked seated dressed photo picture image drawing painting photograph illustration view close
closeup group couple pair bunch piece lot number variety part
"""
_THINGS_IN_ING = """
building buildings ceiling ceilings clothing king kings painting paintings ring rings string strings
swing swings thing things wing wings railing railings earring earrings
"""
_ENDING = frozenset(_STOPS.split())
_THINGS = frozenset(_THINGS_IN_ING.split())


def parse_tags(tags: Iterable[str], caption: str) -> list[str]:
    """Return the tags that can be entities of this caption, each once, in their order.

    A tag must be plain words, and stand in the caption as whole words, capital letters aside. A
    colour is no thing; a tag inside another tag says nobody knows what.

    Source:
        NUMERICS section 9 (OpenImages).
    """
    found: dict[str, str] = {}
    for tag in itertools.islice(tags, MAX_TAGS):
        clean = " ".join(tag.split())
        if TAG.fullmatch(clean) and _is_in(clean, caption):
            found.setdefault(clean.lower(), clean)
    return [
        tag
        for low, tag in found.items()
        if low not in COLOURS and not any(_is_in(low, other) for other in found if other != low)
    ]


def rule_finder() -> EntityFinder:
    """Return a finder without a model: runs of words between words that are no things.

    For tests, and for captions as plain as "a red fox with a hat on the beach", of which it finds
    red fox, hat and beach. It knows English only, and takes verbs that it does not know for things.
    """
    return lambda captions: [parse_tags(_phrases(caption), caption) for caption in captions]


def _phrases(caption: str) -> list[str]:
    phrases: list[str] = []
    words: list[str] = []
    for part in re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*|[^\w\s]", caption):
        low = part.lower()
        is_verb = low.endswith("ing") and low not in _THINGS
        if low in _ENDING or is_verb or not part[0].isalnum():
            phrases.append(" ".join(words))
            words = []
        else:
            words.append(part)
    return [phrase for phrase in (*phrases, " ".join(words)) if phrase]


def _is_in(tag: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(tag)}\b", text, re.IGNORECASE) is not None
