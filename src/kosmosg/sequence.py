"""The sequence format, of which this file is the only owner.

A prompt becomes `<s>`, then its parts in order: the ids of each text, and for each picture
`<image>`, as many slots as the model has latents, `</image>`. The slots hold the id of `<image>`
and are overwritten by the picture's latents where `image_mask` is True.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from kosmosg.errors import PromptError
from kosmosg.images import clip_pixels, clip_view, normalised
from kosmosg.tokenizer import Tokenizer

Prompt = Sequence[str | Image.Image]
# What the vision tower sees; while they travel, pictures may be bytes in their own order.
Seen = Float[Tensor, "images 3 height width"] | UInt8[Tensor, "images height width 3"]
IGNORED = -100


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """One sequence; `labels[t]` is the id that position t must predict, or -100.

    `document_ids` counts the documents of a packed row from 0; None: it is one sequence.
    """

    input_ids: Int[Tensor, " seq"]
    image_mask: Bool[Tensor, " seq"]
    pixel_values: Seen | None
    labels: Int[Tensor, " seq"] | None = None
    image_weights: Float[Tensor, " images"] | None = None
    document_ids: Int[Tensor, " seq"] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """What a packed row holds of one document: whole parts, but for a text cut at either end.

    Attributes:
        parts: Sentences and pictures.
        start: How many ids of the first part the rows before hold.
        stop: How many ids of the last part this row and those before hold; None: all.
        ends: Whether the document ends here.
    """

    parts: Prompt
    start: int = 0
    stop: int | None = None
    ends: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Sequences padded on the right; the pictures of all of them in one row, in order.

    Attributes:
        image_index: Which row of `pixel_values` each picture of the sequences is; None: its own.
        image_weights: What each picture's latents are multiplied by; None: 1.
        document_ids: Which document of a packed row each position is in, -1 on pads; None: each
            row is one.
    """

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Bool[Tensor, "batch seq"]
    image_mask: Bool[Tensor, "batch seq"]
    # Fewer than there are in the sequences, where those share some.
    pixel_values: (
        Float[Tensor, "pictures 3 height width"] | UInt8[Tensor, "pictures height width 3"] | None
    )
    labels: Int[Tensor, "batch seq"] | None = None
    image_index: Int[Tensor, " images"] | None = None
    image_weights: Float[Tensor, " images"] | None = None
    document_ids: Int[Tensor, "batch seq"] | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Batch":
        """Return the batch on another device, its pictures in `dtype` (None: as they are)."""
        pixel_values, labels = self.pixel_values, self.labels
        index, weights = self.image_index, self.image_weights
        documents = self.document_ids
        return Batch(
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            image_mask=self.image_mask.to(device),
            pixel_values=None if pixel_values is None else pixel_values.to(device, dtype),
            labels=None if labels is None else labels.to(device),
            image_index=None if index is None else index.to(device),
            image_weights=None if weights is None else weights.to(device),
            document_ids=None if documents is None else documents.to(device),
        )


def encode(
    prompt: Prompt,
    tokenizer: Tokenizer,
    *,
    num_latents: int,
    image_size: int,
    image_weights: Sequence[float] | None = None,
    views: dict[int, Tensor] | None = None,
    as_bytes: bool = False,
) -> Encoded:
    """Return the sequence of a prompt as the image decoder is conditioned on it: without `</s>`.

    Texts that follow one another are tokenised one by one.

    Args:
        prompt: Words and pictures; a sequence without either is the null prompt, `<s>`.
        num_latents: Slots of one picture.
        image_size: Side of the square that the vision tower sees.
        image_weights: What each picture's latents will be multiplied by. A picture of weight 0 is
            left out, slots and brackets. None: 1 for all.
        views: Keeps what the vision tower sees of each picture, by the picture's `id`, for further
            prompts with the same ones.
        as_bytes: Leave pictures as they are before they are normalised, for `with_values`.

    Raises:
        PromptError: If a part is neither text nor picture, or a picture cannot be used.
        ValueError: If the weights are not as many as the pictures.

    Source:
        NUMERICS sections 2.1 and 2.2: stages 2 and 3 and inference never show `</s>` to the model.
    """
    for part in prompt:
        if not isinstance(part, str | Image.Image):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise PromptError(
                f"a prompt holds {type(part).__name__}; it may hold only str and PIL images"
            )
    ids = [tokenizer.bos_id]
    slots = [False]
    pictures: list[Tensor] = []
    views = {} if views is None else views
    prompt, weights = shown(prompt, image_weights)
    for part in prompt:
        if isinstance(part, str):
            snippet = tokenizer.encode(part)
            ids += snippet
            slots += [False] * len(snippet)
        else:
            ids += [tokenizer.image_id] * (1 + num_latents) + [tokenizer.end_image_id]
            slots += [False] + [True] * num_latents + [False]
            if id(part) not in views:
                views[id(part)] = (clip_pixels if as_bytes else clip_view)(part, image_size)
            pictures.append(views[id(part)])
    return Encoded(
        input_ids=torch.tensor(ids),
        image_mask=torch.tensor(slots),
        pixel_values=torch.stack(pictures) if pictures else None,
        image_weights=torch.tensor(weights) if set(weights) - {1.0} else None,
    )


def length(prompt: Prompt, tokenizer: Tokenizer, *, num_latents: int) -> int:
    """Return how many positions `encode` would give a prompt, without looking at its pictures."""
    snippets = (len(tokenizer.pieces(part)) for part in prompt if isinstance(part, str))
    num_pictures = sum(not isinstance(part, str) for part in prompt)
    return 1 + sum(snippets) + num_pictures * (num_latents + 2)


def shown(
    prompt: Prompt, image_weights: Sequence[float] | None
) -> tuple[list[str | Image.Image], list[float]]:
    """Return the prompt without its pictures of weight 0, and the weights of the others.

    Raises:
        ValueError: If the weights are not as many as the pictures.
    """
    pictures = [part for part in prompt if not isinstance(part, str)]
    weights = [1.0] * len(pictures) if image_weights is None else list(image_weights)
    if len(weights) != len(pictures):
        raise ValueError(f"{len(weights)} weights for {len(pictures)} pictures")
    following = iter(weights)
    parts = [part for part in prompt if isinstance(part, str) or next(following)]
    return parts, [weight for weight in weights if weight]


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
    return replace(encoded, labels=_labels(encoded.input_ids, tokenizer, last=tokenizer.eos_id))


def encode_row(
    segments: Sequence[Segment], tokenizer: Tokenizer, *, num_latents: int, image_size: int
) -> Encoded:
    """Return a packed row of stage 1: its documents in turn, each as `encode_document` has it.

    So each opens with `<s>`, also where it goes on from the row before, and its `</s>` is
    predicted and never read. Where it goes on in the next row its last position predicts nothing,
    for the `<s>` there is asked instead: over all rows every word and every `</s>` is predicted
    once.

    Raises:
        PromptError: As `encode`.
        ValueError: If there are no segments.

    Source:
        Paper appendix A, after Kosmos-1 ("full-sentence format"). Deviation: the authors' loader of
        text (published with Kosmos-2) opens only the row with `<s>`, and between documents the
        model reads `</s>`; here `<s>`, so that a document reads the same in a row and alone. Theirs
        drops what a sentence has beyond a row.
    """
    if not segments:
        raise ValueError("no segments in a row; a row holds something of at least one document")
    rows = [
        _encode_segment(segment, tokenizer, num_latents=num_latents, image_size=image_size)
        for segment in segments
    ]
    pictures = [row.pixel_values for row in rows if row.pixel_values is not None]
    return Encoded(
        input_ids=torch.cat([row.input_ids for row in rows]),
        image_mask=torch.cat([row.image_mask for row in rows]),
        pixel_values=torch.cat(pictures) if pictures else None,
        labels=torch.cat([row.labels for row in rows if row.labels is not None]),
        document_ids=torch.cat(
            [torch.full_like(row.input_ids, index) for index, row in enumerate(rows)]
        ),
    )


def _encode_segment(
    segment: Segment, tokenizer: Tokenizer, *, num_latents: int, image_size: int
) -> Encoded:
    whole = encode(segment.parts, tokenizer, num_latents=num_latents, image_size=image_size)
    first, last = 1 + segment.start, len(whole.input_ids)
    if segment.stop is not None:
        part = segment.parts[-1]
        assert isinstance(part, str)  # pictures are never cut
        last += segment.stop - len(tokenizer.encode(part))
    kept = torch.tensor([0, *range(first, last)])
    input_ids = whole.input_ids[kept]
    end = tokenizer.eos_id if segment.ends else IGNORED
    return Encoded(
        input_ids=input_ids,
        image_mask=whole.image_mask[kept],
        pixel_values=whole.pixel_values,
        labels=_labels(input_ids, tokenizer, last=end),
    )


def _labels(
    input_ids: Int[Tensor, " seq"], tokenizer: Tokenizer, *, last: int
) -> Int[Tensor, " seq"]:
    following = torch.cat([input_ids[1:], torch.tensor([last])])
    marks = torch.tensor([tokenizer.image_id, tokenizer.end_image_id])
    return following.masked_fill(torch.isin(following, marks), IGNORED)


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
        image_weights=_weights(encoded),
        document_ids=_document_ids(encoded),
    )


def with_values(batch: Batch) -> Batch:
    """Return the batch with pictures that travelled as bytes as the vision tower takes them."""
    pixels = batch.pixel_values
    if pixels is None or pixels.dtype != torch.uint8:
        return batch
    return replace(batch, pixel_values=normalised(pixels))


def share_pictures(batch: Batch) -> Batch:
    """Return the batch with each picture once, however often it occurs in the sequences."""
    if batch.pixel_values is None:
        return batch
    rows: dict[bytes, int] = {}
    index = [rows.setdefault(row.numpy().tobytes(), len(rows)) for row in batch.pixel_values.cpu()]
    if len(rows) == len(index):
        return batch
    first = torch.tensor([index.index(row) for row in range(len(rows))])
    return replace(batch, pixel_values=batch.pixel_values[first], image_index=torch.tensor(index))


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


def _weights(encoded: Sequence[Encoded]) -> Float[Tensor, " images"] | None:
    if all(one.image_weights is None for one in encoded):
        return None
    return torch.cat(
        [
            torch.ones(len(one.pixel_values)) if one.image_weights is None else one.image_weights
            for one in encoded
            if one.pixel_values is not None
        ]
    )


def _document_ids(encoded: Sequence[Encoded]) -> Int[Tensor, "batch seq"] | None:
    if all(one.document_ids is None for one in encoded):
        return None
    rows = [
        torch.zeros_like(one.input_ids) if one.document_ids is None else one.document_ids
        for one in encoded
    ]
    return _pad(rows, -1)


def _pad(rows: Sequence[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
