"""Stage 1: multimodal language modelling, which teaches the MLLM to read words and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kosmosg.data.records import Document
from kosmosg.data.rows import Row
from kosmosg.errors import ConfigError
from kosmosg.model.mllm import MLLM
from kosmosg.sequence import IGNORED, Batch, collate, encode_document, encode_row
from kosmosg.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Stage 1, over an MLLM.

    `word_weights` multiplies the loss of a word's pieces, for words that matter more than they are
    frequent; words not named weigh 1. `attention` is about packed rows: over the whole "row", as
    in Kosmos-1's full-sentence format, or within each "document" alone, whose positions then
    restart.
    """

    kind: Literal["language"] = "language"
    trainable: tuple[str, ...]
    word_weights: Mapping[str, float] = field(default_factory=dict)
    attention: Literal["row", "document"] = "row"


class LanguageStage:
    """Next-token cross-entropy, summed over the labels.

    Source:
        Paper section 2.1: only discrete tokens are predicted, never what is inside a picture.
    """

    counts = "tokens"

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        num_latents: int,
        image_size: int,
        trainable: tuple[str, ...],
        word_weights: Mapping[str, float],
        attention: Literal["row", "document"],
    ) -> None:
        self.trainable = trainable
        self._tokenizer = tokenizer
        self._sizes = {"num_latents": num_latents, "image_size": image_size}
        self._weights = _weight_table(tokenizer, word_weights)
        self._attention = attention

    def collate(self, records: Sequence[Document | Row]) -> Batch:
        """Return the sequences of documents, and of packed rows, with labels."""
        encoded = [
            encode_row(record.segments, self._tokenizer, **self._sizes)
            if isinstance(record, Row)
            else encode_document(record.parts, self._tokenizer, **self._sizes)
            for record in records
        ]
        return collate(encoded, pad_id=self._tokenizer.pad_id)

    def weight(self, batch: Batch) -> int:
        """Return the number of tokens that are predicted."""
        assert batch.labels is not None  # collate made them
        return int((batch.labels != IGNORED).sum())

    def loss(self, model: MLLM, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the summed cross-entropy, and how many tokens were guessed right."""
        del generator  # nothing is drawn but dropout
        assert batch.labels is not None
        hidden_states = model(
            batch.input_ids,
            batch.attention_mask,
            batch.image_mask,
            batch.pixel_values,
            document_ids=batch.document_ids if self._attention == "document" else None,
        )
        predicted = batch.labels != IGNORED
        labels = batch.labels[predicted]
        # Logits of the predicted positions alone: slots would double the widest product.
        logits = model.logits(hidden_states[predicted]).float()
        losses = F.cross_entropy(logits, labels, reduction="none")
        right = (logits.argmax(-1) == labels).sum()
        losses = losses * self._weights.to(labels.device)[labels]
        each = torch.zeros(predicted.shape, device=labels.device)
        each[predicted] = losses.detach()
        return {
            "cross_entropy": losses.sum(),
            "metric_accuracy": right,
            "metric_each_loss": each.sum(1),
            "metric_each_weight": predicted.sum(1),
        }


def _weight_table(tokenizer: Tokenizer, word_weights: Mapping[str, float]) -> Tensor:
    table = torch.ones(tokenizer.vocab_size)
    for word, weight in word_weights.items():
        unknown = tokenizer.unknown_words(word)
        if unknown:
            raise ConfigError(
                f"word_weights.{word}: the tokenizer does not know {unknown[0]!r}; remove it"
            )
        table[tokenizer.encode(word)] = weight
    return table
