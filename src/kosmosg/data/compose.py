"""From a stage 3 record to an interleaved prompt and its target picture."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from kosmosg.data.mixture import Stream, seed_of, source_of, sources_of
from kosmosg.data.records import Caption, Document, Edit, Example, Record
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError, PromptError
from kosmosg.images import to_rgb
from kosmosg.sequence import Prompt

DROP_PROBABILITY = 0.5
BACKGROUND_PROBABILITY = 0.5
# What `compose_at` notes: a picture opens the prompt, and the release would have lost the sample.
LOST_BY_RELEASE = "kept, though the release loses it"

Drop = Literal["sample", "entity"]


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


def compose(
    record: Record,
    rng: np.random.Generator,
    *,
    drop: Drop = "sample",
    drop_probability: float = DROP_PROBABILITY,
    background_probability: float = BACKGROUND_PROBABILITY,
) -> Composed:
    """Return the record as stage 3 shows it: entities and edits as pictures among the words.

    A coin drops the words of entities (of an edit: the caption of the picture before), each of
    probability one half; another, one an entity, keeps the entity's own background, else it stands
    on white.

    Args:
        drop: One coin for all words of a sample, as released, or one for each entity.
        drop_probability: That words are dropped.
        background_probability: That an entity keeps its background.

    Raises:
        DataError: If the record has no picture to aim at, or the one to show is damaged.

    Source:
        Paper section 3.2 (a coin an entity), NUMERICS section 9 (a coin a sample). Deviation: the
        release silently loses a sample whose mention starts the caption when its words are dropped;
        here the prompt starts with the picture.
    """
    match record:
        case Example():
            prompt = _interleave(record, rng, drop, drop_probability, background_probability)
            return Composed(
                key=record.key, prompt=prompt, target=record.image, caption=record.caption
            )
        case Edit():
            dropped = rng.random() < drop_probability
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


def _interleave(
    record: Example,
    rng: np.random.Generator,
    drop: Drop,
    drop_probability: float,
    background_probability: float,
) -> Prompt:
    dropped = drop == "sample" and rng.random() < drop_probability
    prompt: list[str | Image.Image] = []
    position = 0
    for entity in record.entities:
        if drop == "entity":
            dropped = rng.random() < drop_probability
        snippet = record.caption[position : entity.start if dropped else entity.end]
        if snippet and not snippet.endswith(" "):
            snippet += " "
        own_background = rng.random() < background_probability
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


def compose_at(
    number: int,
    record: Record,
    *,
    seed: int,
    drop: Drop = "sample",
    drop_probability: float = DROP_PROBABILITY,
    background_probability: float = BACKGROUND_PROBABILITY,
    skips: Skips | None = None,
) -> Composed:
    """Return record `number` of a stream as stage 3 shows it; its coins depend on (seed, number).

    Args:
        number: Its place.
        record: What stands there.
        seed: Of the coins.
        drop: As `compose`, and so the probabilities.
        skips: Notes records that the release would have lost.

    Raises:
        DataError: As `compose`.
    """
    composed = compose(
        record,
        np.random.default_rng(seed_of(seed, number)),
        drop=drop,
        drop_probability=drop_probability,
        background_probability=background_probability,
    )
    if skips is not None and _lost_by_release(record, composed):
        skips.note(LOST_BY_RELEASE)
    return composed


class Composing:
    """A stream of whole records, such as drawn ones, as stage 3 shows them; `Shards` finish theirs.

    Args:
        stream: Records.
        seed: Of the coins.
        drop_probability: As `compose`, and so the next.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        seed: int,
        drop_probability: float = DROP_PROBABILITY,
        background_probability: float = BACKGROUND_PROBABILITY,
    ) -> None:
        self._stream = stream
        self._seed = seed
        self._drop_probability = drop_probability
        self._background_probability = background_probability

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the names of the stream's sources."""
        return sources_of(self._stream)

    def source(self, number: int) -> str:
        """Return the source of record `number`."""
        return source_of(self._stream, number)

    def batch(self, step: int, size: int) -> list[Composed]:
        """Return records number `step * size` to `(step + 1) * size - 1`, composed."""
        records = self._stream.batch(step, size)
        return [
            compose_at(
                number,
                record,
                seed=self._seed,
                drop_probability=self._drop_probability,
                background_probability=self._background_probability,
            )
            for number, record in enumerate(records, step * size)
        ]


def _lost_by_release(record: Record, composed: Composed) -> bool:
    """Whether a picture has no words before it: the release fails there and drops the sample."""
    before: str | Image.Image | None = None
    for part in composed.prompt if isinstance(record, Example) else []:
        if not isinstance(part, str) and not isinstance(before, str):
            return True
        before = part
    return False
