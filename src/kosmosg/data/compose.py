"""From a stage 3 record to an interleaved prompt and its target picture."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from kosmosg.data.mixture import Stream, seed_of
from kosmosg.data.records import Caption, Document, Edit, Example, Record
from kosmosg.errors import DataError, PromptError
from kosmosg.images import to_rgb
from kosmosg.sequence import Prompt

DROP_PROBABILITY = 0.5
BACKGROUND_PROBABILITY = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Composed:
    """A prompt, the picture it should give, and that picture's caption where one is known.

    `latents`, if a stream gives them, are the target's, encoded and scaled; they save the encoding.
    """

    key: str
    prompt: Prompt
    target: Image.Image
    caption: str | None
    latents: Float[Tensor, "channels height width"] | None = None


def compose(record: Record, rng: np.random.Generator) -> Composed:
    """Return the record as stage 3 shows it: entities and edits as pictures among the words.

    One coin a sample drops the words of all its entities (of an edit: the caption of the picture
    before); one coin an entity keeps the entity's own background, else it stands on white.

    Raises:
        DataError: If the record has no picture to aim at, or the one to show is damaged.

    Source:
        Paper section 3.2, NUMERICS section 9. Deviation: the release silently loses a sample whose
        mention starts the caption when its words are dropped; here the prompt starts with the
        picture.
    """
    match record:
        case Example():
            prompt = _interleave(record, rng)
            return Composed(
                key=record.key, prompt=prompt, target=record.image, caption=record.caption
            )
        case Edit():
            dropped = rng.random() < DROP_PROBABILITY
            prompt = [*_texts("" if dropped else record.caption), *record.before]
            return Composed(
                key=record.key,
                prompt=[*prompt, *_texts(record.instruction)],
                target=record.after,
                caption=record.after_caption,
            )
        case Caption():
            if record.image is None:
                raise DataError(
                    f"caption {record.key} has no picture; stage 3 needs one to aim at",
                    reason="no target picture",
                )
            return Composed(
                key=record.key,
                prompt=_texts(record.text),
                target=record.image,
                caption=record.text,
            )
        case Document():
            raise DataError(
                f"document {record.key} belongs to stage 1; stage 3 takes examples, edits and"
                " captions",
                reason="wrong kind",
            )


def _interleave(record: Example, rng: np.random.Generator) -> Prompt:
    dropped = rng.random() < DROP_PROBABILITY
    prompt: list[str | Image.Image] = []
    position = 0
    for entity in record.entities:
        snippet = record.caption[position : entity.start if dropped else entity.end]
        if snippet and not snippet.endswith(" "):
            snippet += " "
        own_background = rng.random() < BACKGROUND_PROBABILITY
        shown = entity.crop if own_background else entity.cutout
        prompt += [*_texts(snippet), _decoded(shown, record.key)]
        position = entity.end
    return [*prompt, *_texts(record.caption[position:])]


def _decoded(image: Image.Image, key: str) -> Image.Image:
    try:
        return to_rgb(image)
    except PromptError as error:
        raise DataError(f"record {key}: {error}", reason="unreadable picture") from error


def _texts(text: str) -> list[str]:
    return [text] if text else []


class Composing:
    """A stream of records as stage 3 shows them; the coins depend on (seed, index) only."""

    def __init__(self, stream: Stream, *, seed: int) -> None:
        self._stream = stream
        self._seed = seed

    def batch(self, step: int, size: int) -> list[Composed]:
        """Return records number `step * size` to `(step + 1) * size - 1`, composed."""
        return [
            compose(record, np.random.default_rng(seed_of(self._seed, step * size + offset)))
            for offset, record in enumerate(self._stream.batch(step, size))
        ]
