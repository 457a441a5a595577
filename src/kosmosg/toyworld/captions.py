"""Words for toy scenes: a small grammar with many ways to say the same, and random omissions.

`describe` says everything it is told to keep; what is dropped is chosen by `Detail`. The word list
of the nano tokenizer is the closure of this grammar (`words`), so an unknown word is a real one.
"""

from dataclasses import dataclass, replace

import numpy as np

from kosmosg.toyworld.scenes import (
    ACCESSORIES,
    BLANK,
    COLOURS,
    PATTERN_COLOURS,
    PATTERNS,
    RADII,
    SHAPES,
    SINGLE,
    Scene,
    Subject,
    side_of,
    size_of,
)

PLACE_PHRASES = {
    "beach": ("on the beach", "at the beach", "by the sea"),
    "snow": ("in the snow", "on the snow"),
    "forest": ("in the forest", "in the woods"),
    "desert": ("in the desert", "on the sand dunes"),
    "night": ("at night", "in the night", "under the moon"),
    "city": ("in the city", "in the street"),
    "underwater": ("under water", "in the deep sea"),
    "meadow": ("in the meadow", "on the grass"),
}
STYLE_PREFIXES = {
    "plain": ("", "", "a photo of ", "a picture of "),
    "pastel": ("a pastel drawing of ", "a pastel picture of "),
    "framed": ("a framed picture of ", "a framed photo of "),
    "sticker": ("a sticker of ", "a sticker picture of "),
}
ACCESSORY_PHRASES = {
    "hat": ("wearing a hat", "with a hat", "in a hat"),
    "crown": ("wearing a crown", "with a crown", "in a crown"),
    "sunglasses": ("wearing sunglasses", "with sunglasses", "in sunglasses"),
    "scarf": ("wearing a scarf", "with a scarf", "in a scarf"),
}
NOUNS = ("creature", "thing", "toy")
# How an instruction asks for a change, by what changes.
_EDIT_VERBS = {
    "place": ("make it {}", "put it {}", "move it {}"),
    "accessory": ("put {} on it", "give it {}", "add {}"),
    "remove": ("take off the {}", "remove the {}"),
    "colour": ("make it {}", "turn it {}", "paint it {}"),
    "pattern": ("give it {}", "add {}"),
    "shape": ("turn it into {}", "make it {}"),
    "style": ("make it {}", "turn it into {}"),
}
_STYLE_NAMES = {
    "plain": ("a plain photo", "a plain picture"),
    "pastel": ("a pastel drawing", "a pastel picture"),
    "framed": ("a framed picture", "a framed photo"),
    "sticker": ("a sticker", "a sticker picture"),
}


@dataclass(frozen=True, kw_only=True)
class Detail:
    """Probabilities that a caption says a thing that is there to be said."""

    shape: float = 1.0
    colour: float = 1.0
    pattern: float = 1.0
    accessory: float = 1.0
    size: float = 1.0
    side: float = 1.0
    place: float = 1.0
    style: float = 1.0


FULL = Detail(size=0.9, side=0.7)
SOME = Detail(
    shape=0.92, colour=0.94, pattern=0.9, accessory=0.93, size=0.6, side=0.5, place=0.9, style=0.95
)


def article(words: str) -> str:
    """Return the words with a or an before them."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def pattern_phrase(subject: Subject) -> str:
    """Return for example `white stripes`."""
    return f"{subject.pattern_colour} {subject.pattern}"


def name(
    subject: Subject, rng: np.random.Generator, detail: Detail = FULL, *, alone: bool = True
) -> str:
    """Return the subject's noun phrase, such as `a big red star with white dots wearing a hat`.

    Args:
        alone: Whether it is the only subject; only then is its size worth a word.
    """
    coins = rng.random(5).tolist()
    words = []
    size = size_of(subject)
    if alone and size != "medium" and coins[0] < detail.size:
        words.append(size)
    if coins[1] < detail.colour:
        words.append(subject.colour)
    words.append(subject.shape if coins[2] < detail.shape else _pick(NOUNS, rng))
    phrase = article(" ".join(words))
    has_pattern = subject.pattern != "plain" and coins[3] < detail.pattern
    if has_pattern:
        phrase += f" with {pattern_phrase(subject)}"
    if subject.accessory != "none" and coins[4] < detail.accessory:
        said = _pick(ACCESSORY_PHRASES[subject.accessory], rng)
        if has_pattern and said.startswith("with "):
            said = "and" + said.removeprefix("with")
        phrase += f" {said}"
    return phrase


def arrange(
    names: list[str], scene: Scene, rng: np.random.Generator, detail: Detail = FULL
) -> list[str]:
    """Return the caption cut at its subjects: text, name, text, name, ..., text.

    Joining the parts with nothing between gives the caption. A caller that puts a picture after a
    name, or instead of it, needs to know where names begin and end.
    """
    coins = rng.random(3).tolist()
    prefix = _pick(STYLE_PREFIXES[scene.style], rng) if coins[0] < detail.style else ""
    place = ""
    if scene.place != BLANK and coins[1] < detail.place:
        place = " " + _pick(PLACE_PHRASES[scene.place], rng)
    if len(names) == 1:
        side = side_of(scene.subjects[0])
        where = f" on the {side}" if side != "middle" and coins[2] < detail.side else ""
        return [prefix, names[0], where + place]
    if len(names) == 2:
        first, second = names
        form = int(rng.integers(5))
        if form == 0:
            return [f"{prefix}", first, " on the left and ", second, " on the right" + place]
        if form == 1:
            return [prefix, first, " next to ", second, place]
        if form == 2:
            return [prefix, first, " to the left of ", second, place]
        return [prefix, first, " and ", second, place]
    parts = [prefix]
    for index, phrase in enumerate(names):
        parts.append(phrase)
        left = len(names) - index - 1
        parts.append(" and " if left == 1 else ", " if left else place)
    return parts


def describe(scene: Scene, rng: np.random.Generator, detail: Detail = FULL) -> str:
    """Return a caption of the scene; with more than two subjects, shorter names."""
    alone = len(scene.subjects) == 1
    if len(scene.subjects) > 2:
        # Three or four subjects are small, and the text tower reads 40 tokens.
        detail = replace(detail, pattern=0.25 * detail.pattern, accessory=0.7 * detail.accessory)
    names = [name(subject, rng, detail, alone=alone) for subject in scene.subjects]
    return "".join(arrange(names, scene, rng, detail))


def instruction(kind: str, thing: str, rng: np.random.Generator) -> str:
    """Return an edit instruction: `kind` is a key of the verbs, `thing` what it is about."""
    if kind == "place":
        phrase = _pick(PLACE_PHRASES[thing], rng)
        if thing == "night" and rng.random() < 0.5:
            return "make it night"
        return _pick(_EDIT_VERBS["place"][1:], rng).format(phrase)
    if kind == "style":
        return _pick(_EDIT_VERBS["style"], rng).format(_pick(_STYLE_NAMES[thing], rng))
    if kind in ("accessory", "shape"):
        thing = thing if thing == "sunglasses" else article(thing)
    return _pick(_EDIT_VERBS[kind], rng).format(thing)


def words() -> list[str]:
    """Return every word and sign of the grammar, sorted: the nano vocabulary."""
    text = [*SHAPES, *COLOURS, *PATTERNS[1:], *PATTERN_COLOURS, *ACCESSORIES[1:], *RADII, *SINGLE]
    for phrases in (
        *PLACE_PHRASES.values(),
        *STYLE_PREFIXES.values(),
        *ACCESSORY_PHRASES.values(),
        *_EDIT_VERBS.values(),
        *_STYLE_NAMES.values(),
    ):
        text.extend(phrases)
    text.extend(NOUNS)
    text.append(
        "a an and on the left right middle in to of next with wearing without it is this that one "
        "two three four first second same creature creatures there are here night day"
    )
    signs = [",", ".", ":", "?", "!"]
    return sorted({word for entry in text for word in entry.replace("{}", "").split()}) + signs
