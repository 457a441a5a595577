"""What a caller may pass as a prompt, and what is wrong with it.

A prompt is a str, a list of str and pictures, or a batch: a list of such lists.
"""

from collections.abc import Sequence
from difflib import get_close_matches

from PIL import Image

from kosmosg.errors import PromptError
from kosmosg.sequence import Prompt
from kosmosg.tokenizer import FIRST_SYMBOLS, LAST_SYMBOLS, SPACE, Tokenizer

MAX_NAMED = 5
MARKS = ",.;:!?\"'()"  # what may stand at a word without being part of it
Prompts = str | Prompt | Sequence[Prompt]


def as_batch(prompt: object) -> list[list[str | Image.Image]]:
    """Return the prompts of `prompt` (Prompts, or it is refused), one list of parts each.

    Raises:
        PromptError: If it is a flat list of several texts (one prompt, or one each?), mixes
            prompts with parts of prompts, or holds something that is neither words nor picture.
    """
    if isinstance(prompt, str):
        return [[prompt]]
    if isinstance(prompt, Image.Image):
        raise PromptError(
            f"a prompt is a list of words and pictures, not {type(prompt).__name__}; "
            "write [picture] for one alone"
        )
    if not isinstance(prompt, Sequence):
        raise PromptError(_wrong_part(prompt))
    nested = [_is_list(part) for part in prompt]
    if prompt and all(nested):
        return [_parts(part) for part in prompt]
    if any(nested):
        raise PromptError(
            "a list mixes whole prompts (lists) with words or pictures; write a batch as a list of "
            'lists: [["a red cat"], ["a photo of", picture]]'
        )
    parts = _parts(prompt)
    if len(parts) > 1 and all(isinstance(part, str) for part in parts):
        listing = ", ".join(f'"{part}"' for part in parts)
        separate = ", ".join(f'["{part}"]' for part in parts)
        raise PromptError(
            f"[{listing}] could be one prompt or {len(parts)}; "
            f"write [[{listing}]] for one, or [{separate}] for {len(parts)}"
        )
    return [parts]


def check_prompt(prompt: Prompt, tokenizer: Tokenizer, *, max_pictures: int) -> None:
    """Pass a prompt that the model can read.

    Raises:
        PromptError: If it is empty, has more than `max_pictures` pictures or words outside the
            model's vocabulary.
    """
    if is_empty(prompt):
        raise PromptError("the prompt is empty; give it words, pictures or both")
    texts = [part for part in prompt if isinstance(part, str)]
    num_pictures = len(prompt) - len(texts)
    if num_pictures > max_pictures:
        raise PromptError(
            f"the prompt has {num_pictures} pictures; this model takes at most {max_pictures}: "
            f"leave out {num_pictures - max_pictures}"
        )
    check_words(texts, tokenizer)


def check_length(length: int, max_length: int) -> None:
    """Pass the length of a sequence that the model has positions for.

    Raises:
        PromptError: Naming both.
    """
    if length > max_length:
        raise PromptError(
            f"the prompt has {length} positions, this model reads at most {max_length}; "
            "use fewer words or pictures"
        )


def is_empty(prompt: Prompt) -> bool:
    """Return whether the prompt has neither a picture nor a word."""
    return all(isinstance(part, str) and not part.strip() for part in prompt)


def check_words(texts: Sequence[str], tokenizer: Tokenizer) -> None:
    """Pass texts all of whose words the model knows.

    Raises:
        PromptError: Naming the unknown words, and known ones that look like them.
    """
    words = [word for text in texts for word in tokenizer.unknown_words(text)]
    unknown = list(dict.fromkeys(word.strip(MARKS) or word for word in words))
    if not unknown:
        return
    ids = range(len(FIRST_SYMBOLS), tokenizer.vocab_size - len(LAST_SYMBOLS))
    known = [tokenizer.symbol(index).removeprefix(SPACE) for index in ids]
    # Of a few only: to look a long text's words up among 64,000 pieces would take hours.
    named = [word[:60] for word in unknown[:MAX_NAMED]]
    near = [match for word in named for match in get_close_matches(word, known, n=2)]
    remedy = f"did you mean {', '.join(dict.fromkeys(near))}?" if near else "use other words"
    more = f" and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
    raise PromptError(
        f"the model does not know {', '.join(repr(word) for word in named)}{more} "
        f"(its vocabulary has {len(known)} pieces); {remedy}"
    )


def _is_list(part: object) -> bool:
    return isinstance(part, Sequence) and not isinstance(part, str)


def _parts(prompt: Sequence[object]) -> list[str | Image.Image]:
    parts: list[str | Image.Image] = []
    for part in prompt:
        if not isinstance(part, str | Image.Image):
            raise PromptError(_wrong_part(part))
        parts.append(part)
    return parts


def _wrong_part(part: object) -> str:
    return (
        f"a prompt is made of str and PIL pictures, not {type(part).__name__} "
        f"({str(part)[:60]!r}); "
        "open a file with kosmosg.images.open_image(path)"
    )
