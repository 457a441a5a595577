"""What is odd about a prompt, though it may work: for `kosmosg inspect`."""

from collections.abc import Iterator, Sequence

import numpy as np

from kosmosg.errors import PromptError
from kosmosg.images import look_at, shown
from kosmosg.note import Picture, prompt_of
from kosmosg.prompts import check_length, check_prompt
from kosmosg.release import GenerationConfig, Sizes
from kosmosg.sequence import length
from kosmosg.tokenizer import Tokenizer

# The released model was trained on captions of at most so many pieces (NUMERICS section 9).
TRAINED_PIECES = 128
# What stands for a picture in the authors' prompts, and in ours for itself alone.
MARKS = ("<i>", "<image>", "</image>")


def oddities(
    parts: Sequence[str | Picture], tokenizer: Tokenizer, sizes: Sizes, limits: GenerationConfig
) -> Iterator[str]:
    """Yield a line for each thing that the model refuses, ignores or has not learnt from.

    No picture can be unused: each stands in the prompt itself.
    """
    prompt = prompt_of(parts)
    num_positions = length(prompt, tokenizer, num_latents=sizes.num_latents)
    for check in (
        lambda: check_prompt(prompt, tokenizer, max_pictures=limits.max_pictures),
        lambda: check_length(num_positions, sizes.max_length),
    ):
        try:
            check()
        except PromptError as error:
            yield str(error)
    texts = [part for part in parts if isinstance(part, str)]
    yield from _of_texts(texts, tokenizer)
    pictures = [part for part in parts if isinstance(part, Picture)]
    most = limits.trained_pictures
    if most is not None and most < len(pictures) <= limits.max_pictures:
        yield (
            f"the prompt has {len(pictures)} pictures; this model learnt from prompts of at most "
            f"{most}: they may be mixed up"
        )
    yield from _repeated(pictures)
    for picture in {one.path: one for one in pictures}.values():
        yield from _of_a_picture(picture, sizes.image_size)


def _of_texts(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[str]:
    num_pieces = sum(len(tokenizer.pieces(text)) for text in texts)
    if num_pieces > TRAINED_PIECES:
        yield (
            f"the words are {num_pieces} pieces; the released model learnt from captions of at "
            f"most {TRAINED_PIECES}: what comes late may be lost"
        )
    for mark in MARKS:
        if any(mark in text for text in texts):
            yield f"{mark} is read as plain characters; name the file where its picture stands"


def _repeated(pictures: Sequence[Picture]) -> Iterator[str]:
    first: dict[str, int] = {}
    for number, picture in enumerate(pictures, start=1):
        before = first.setdefault(picture.sha256, number)
        if before != number:
            yield f"pictures {before} and {number} are the same ({shown(picture.path)})"


def _of_a_picture(picture: Picture, image_size: int) -> Iterator[str]:
    name, look = shown(picture.path), look_at(picture.path)
    short, long = sorted(picture.image.size)
    if short < image_size:
        yield f"{name} is enlarged: its shorter side is {short} of {image_size} pixels"
    if short < 0.75 * long:
        yield f"{name}: only its centre square is seen, {short / long:.0%} of it"
    if look.transparent > 0:
        yield f"{name} is transparent, {look.transparent:.0%} of it; white is seen there"
    if look.num_frames > 1:
        yield f"{name} has {look.num_frames} frames; only the first is seen"
    if np.ptp(np.asarray(picture.image), axis=(0, 1)).max() == 0:
        yield f"{name} has a single colour; there is nothing to see in it"
