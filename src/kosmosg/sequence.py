"""The sequence format, of which this file is the only owner.

A prompt becomes `<s>`, then its parts in order: the ids of each text, and for each picture
`<image>`, as many slots as the model has latents, `</image>`. The slots hold the id of `<image>`
and are overwritten by the picture's latents where `image_mask` is True.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from kosmosg.errors import PromptError
from kosmosg.images import clip_view
from kosmosg.tokenizer import Tokenizer

Prompt = Sequence[str | Image.Image]
IGNORED = -100


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """One sequence; `labels[t]` is the id that position t must predict, or -100."""

    input_ids: Int[Tensor, " seq"]
    image_mask: Bool[Tensor, " seq"]
    pixel_values: Float[Tensor, "images 3 height width"] | None
    labels: Int[Tensor, " seq"] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Sequences padded on the right; the pictures of all of them in one row, in order."""

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Bool[Tensor, "batch seq"]
    image_mask: Bool[Tensor, "batch seq"]
    pixel_values: Float[Tensor, "images 3 height width"] | None
    labels: Int[Tensor, "batch seq"] | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Batch":
        """Return the batch on another device, its pictures in `dtype` (None: as they are)."""
        pixel_values, labels = self.pixel_values, self.labels
        return Batch(
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            image_mask=self.image_mask.to(device),
            pixel_values=None if pixel_values is None else pixel_values.to(device, dtype),
            labels=None if labels is None else labels.to(device),
        )


def encode(prompt: Prompt, tokenizer: Tokenizer, *, num_latents: int, image_size: int) -> Encoded:
    """Return the sequence of a prompt as the image decoder is conditioned on it: without `</s>`.

    Texts that follow one another are tokenised one by one.

    Args:
        prompt: Words and pictures; a sequence without either is the null prompt, `<s>`.
        num_latents: Slots of one picture.
        image_size: Side of the square that the vision tower sees.

    Raises:
        PromptError: If a part is neither text nor picture, or a picture cannot be used.

    Source:
        NUMERICS sections 2.1 and 2.2: stages 2 and 3 and inference never show `</s>` to the model.
    """
    ids = [tokenizer.bos_id]
    slots = [False]
    pictures: list[Tensor] = []
    for part in prompt:
        if isinstance(part, str):
            snippet = tokenizer.encode(part)
            ids += snippet
            slots += [False] * len(snippet)
        elif isinstance(part, Image.Image):  # pyright: ignore[reportUnnecessaryIsInstance]
            ids += [tokenizer.image_id] * (1 + num_latents) + [tokenizer.end_image_id]
            slots += [False] + [True] * num_latents + [False]
            pictures.append(clip_view(part, image_size))
        else:
            raise PromptError(
                f"a prompt holds {type(part).__name__}; it may hold only str and PIL images"
            )
    return Encoded(
        input_ids=torch.tensor(ids),
        image_mask=torch.tensor(slots),
        pixel_values=torch.stack(pictures) if pictures else None,
    )


def length(prompt: Prompt, tokenizer: Tokenizer, *, num_latents: int) -> int:
    """Return how many positions `encode` would give a prompt, without looking at its pictures."""
    snippets = (len(tokenizer.encode(part)) for part in prompt if isinstance(part, str))
    num_pictures = sum(not isinstance(part, str) for part in prompt)
    return 1 + sum(snippets) + num_pictures * (num_latents + 2)


def encode_document(
    document: Prompt, tokenizer: Tokenizer, *, num_latents: int, image_size: int
) -> Encoded:
    """Return a document of stage 1 with labels on its text and on `</s>`.

    `<image>`, slots and `</image>` are never predicted; `</s>` is predicted and never read.

    Raises:
        PromptError: As `encode`.

    Source:
        Paper section 2.1 (only discrete tokens enter the loss); NUMERICS section 2.2 (input is
        `full[:-1]`, target `full[1:]`).
    """
    encoded = encode(document, tokenizer, num_latents=num_latents, image_size=image_size)
    following = torch.cat([encoded.input_ids[1:], torch.tensor([tokenizer.eos_id])])
    marks = torch.tensor([tokenizer.image_id, tokenizer.end_image_id])
    return replace(encoded, labels=following.masked_fill(torch.isin(following, marks), IGNORED))


def null(tokenizer: Tokenizer) -> Encoded:
    """Return the prompt of guidance that says nothing: `<s>`."""
    return Encoded(
        input_ids=torch.tensor([tokenizer.bos_id]),
        image_mask=torch.tensor([False]),
        pixel_values=None,
    )


def collate(encoded: Sequence[Encoded], *, pad_id: int) -> Batch:
    """Return sequences as one batch, padded on the right to the longest.

    Raises:
        ValueError: If there are none, or only some have labels.
    """
    if not encoded:
        raise ValueError("no sequences to collate; a batch has at least one")
    labels = [one.labels for one in encoded if one.labels is not None]
    if len(labels) not in (0, len(encoded)):
        raise ValueError(f"{len(labels)} of {len(encoded)} sequences have labels; mix no stages")
    pictures = [one.pixel_values for one in encoded if one.pixel_values is not None]
    return Batch(
        input_ids=_pad([one.input_ids for one in encoded], pad_id),
        attention_mask=_pad([torch.ones_like(one.image_mask) for one in encoded], 0),
        image_mask=_pad([one.image_mask for one in encoded], 0),
        pixel_values=torch.cat(pictures) if pictures else None,
        labels=_pad(labels, IGNORED) if labels else None,
    )


def decode(encoded: Encoded, tokenizer: Tokenizer) -> list[str | int]:
    """Return the parts of a sequence: its texts, and for each picture its number from 0.

    Texts that followed one another come back as one; spaces as the tokenizer sees them.
    """
    parts: list[str | int] = []
    text: list[int] = []
    num_pictures = 0
    for index, is_slot in zip(
        map(int, encoded.input_ids), map(bool, encoded.image_mask), strict=True
    ):
        if index == tokenizer.image_id and not is_slot:
            parts += [tokenizer.decode(text), num_pictures] if text else [num_pictures]
            text = []
            num_pictures += 1
        elif index not in (tokenizer.bos_id, tokenizer.image_id, tokenizer.end_image_id):
            text.append(index)
    return [*parts, tokenizer.decode(text)] if text else parts


def _pad(rows: Sequence[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
