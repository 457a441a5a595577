"""Stage 2: AlignerNet learns to speak the language of the image decoder, from text alone.

`AlignStage` is the paper's. `AlignPicturesStage` is an addition between stages 2 and 3: prompts
with pictures are aligned to the text states of their captions; no image decoder is needed.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kosmosg.data.compose import Composed
from kosmosg.data.records import Caption
from kosmosg.errors import DataError
from kosmosg.model.kosmosg import KosmosG
from kosmosg.sequence import Batch, Prompt, collate, encode
from kosmosg.tokenizer import Tokenizer
from kosmosg.train.cache import TensorCache, key_of
from kosmosg.train.lengths import group


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Stage 2, over a KosmosG with N.

    `padding` says what the reconstruction loss counts: `masked`, real positions only, so that it
    does not depend on the batch; `released`, pads too, scaled by the padded length. `mllm` says
    whether the frozen language model's dropout is on, as it was in the release.
    `reconstruction_weight` is that of equation 6 beside equation 5's 1: the paper names none, the
    release has 1. `length_groups` is how many groups of like length a micro-batch is computed in,
    to save padding. `cache` is a folder that keeps what the frozen models say of each caption, for
    runs that see captions more than once; losses are the same but for rounding.
    """

    kind: Literal["align"] = "align"
    trainable: tuple[str, ...] = ("aligner.*",)
    padding: Literal["masked", "released"]
    mllm: Literal["eval", "train"]
    reconstruction_weight: float = 1.0
    length_groups: int = 1
    cache: str | None = None


@dataclass(frozen=True, kw_only=True)
class AlignPicturesConfig:
    """The additional stage, over a KosmosG; what learns includes the language model."""

    kind: Literal["align_pictures"] = "align_pictures"
    trainable: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TextTower:
    """The image decoder's own text encoder, frozen: what stage 2 learns to imitate.

    `ids` turns texts into its input, padded as it was trained; `encoder` is transformers'
    CLIPTextModel.
    """

    encoder: nn.Module
    ids: Callable[[Sequence[str]], Int[Tensor, "batch queries"]]

    @torch.no_grad()
    def states(self, ids: Int[Tensor, "batch queries"]) -> Float[Tensor, "batch queries embed"]:
        """Return the last hidden states, float32, without an attention mask.

        Source:
            NUMERICS section 6: after the final LayerNorm; pads are seen.
        """
        if next(self.encoder.parameters()).device != ids.device:
            self.encoder.to(ids.device)
        self.encoder.eval()
        return self.encoder(input_ids=ids).last_hidden_state.float()

    def sharded(self, shard: Callable[[nn.Module], None]) -> "TextTower":
        """Return another, sharded."""
        encoder = copy.deepcopy(self.encoder)
        shard(encoder)
        return replace(self, encoder=encoder)


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionStates:
    """What the frozen models say of captions; what stands at pads has no meaning."""

    hidden: Float[Tensor, "batch seq hidden"]
    text: Float[Tensor, "batch queries embed"]

    def to(self, device: torch.device | str) -> "CaptionStates":
        """Return them on another device."""
        return CaptionStates(hidden=self.hidden.to(device), text=self.text.to(device))


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionGroup:
    """Captions of like length; `states` are there if the cache had all of them.

    `places` are the captions' in the micro-batch.
    """

    sequences: Batch
    text_ids: Int[Tensor, "batch queries"]
    places: Int[Tensor, " batch"]
    states: CaptionStates | None = None

    def to(self, device: torch.device | str) -> "CaptionGroup":
        """Return the group on another device."""
        return CaptionGroup(
            sequences=self.sequences.to(device),
            text_ids=self.text_ids.to(device),
            places=self.places.to(device),
            states=None if self.states is None else self.states.to(device),
        )


class AlignStage:
    """Two squared errors: M to the text states, and, with a weight, N back to the hidden states.

    Source:
        Paper equations 5 and 6; NUMERICS sections 6 and 13.
    """

    counts = "captions"

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        num_latents: int,
        image_size: int,
        text_tower: TextTower,
        trainable: tuple[str, ...],
        padding: Literal["masked", "released"],
        mllm: Literal["eval", "train"],
        reconstruction_weight: float,
        length_groups: int = 1,
        cache: TensorCache | None = None,
    ) -> None:
        self.trainable = trainable
        self._tokenizer = tokenizer
        self._sizes: dict[str, Any] = {"num_latents": num_latents, "image_size": image_size}
        self._text_tower = text_tower
        self._padding = padding
        self._mllm = mllm
        self._reconstruction_weight = reconstruction_weight
        self._length_groups = length_groups
        self._cache = cache

    def collate(self, records: Sequence[Caption]) -> tuple[CaptionGroup, ...]:
        """Return the captions in groups, as sequences and as the text tower's ids."""
        texts = [record.text for record in records]
        encoded = [encode([text], self._tokenizer, **self._sizes) for text in texts]
        sequences = group(encoded, num_groups=self._length_groups, pad_id=self._tokenizer.pad_id)
        text_ids = self._text_tower.ids(texts)
        sizes = [len(batch.input_ids) for batch in sequences.batches]
        groups = []
        for batch, places in zip(
            sequences.batches, sequences.rows.argsort().split(sizes), strict=True
        ):
            ids = text_ids[places]
            states = None if self._cache is None else _cached(self._cache, batch, ids)
            group_of = CaptionGroup(sequences=batch, text_ids=ids, places=places, states=states)
            groups.append(group_of)
        return tuple(groups)

    def weight(self, batch: tuple[CaptionGroup, ...]) -> int:
        """Return the number of captions."""
        return sum(len(one.text_ids) for one in batch)

    def sharded(self, shard: Callable[[nn.Module], None]) -> "AlignStage":
        """Return one like it whose text tower is sharded."""
        made = copy.copy(self)
        made._text_tower = self._text_tower.sharded(shard)
        return made

    def loss(
        self, model: KosmosG, batch: tuple[CaptionGroup, ...], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return both errors, each the mean over a caption's elements, summed over captions."""
        del generator  # nothing is drawn but dropout
        if self._mllm == "eval":
            model.mllm.eval()
        sums: dict[str, Tensor] = {}
        each: list[Tensor] = []
        for captions in batch:
            mask = captions.sequences.attention_mask
            states = captions.states or self._states(model, captions)
            prompt_embeds = model.aligner(states.hidden, mask)
            again = self._reconstruction(model, prompt_embeds, states.hidden, mask)
            again = self._reconstruction_weight * again
            errors = squared_errors(prompt_embeds, states.text)
            for name, values in (("mse", errors), ("reconstruction", again)):
                sums[name] = sums.get(name, 0.0) + values.sum()
            each.append((errors + again).detach())
        places = torch.cat([captions.places for captions in batch])
        return {**sums, "metric_each_loss": torch.cat(each)[places.argsort()]}

    @torch.no_grad()
    def _states(self, model: KosmosG, captions: CaptionGroup) -> CaptionStates:
        """Return what the frozen models say, without a graph, and keep it if there is a cache."""
        batch = captions.sequences
        hidden = model.mllm(
            batch.input_ids, batch.attention_mask, batch.image_mask, batch.pixel_values
        ).to(model.aligner.dtype)
        text = self._text_tower.states(captions.text_ids)
        states = CaptionStates(hidden=hidden, text=text)
        if self._cache is not None:
            self._cache.put(_entries(captions, states))
        return states

    def _reconstruction(
        self,
        model: KosmosG,
        prompt_embeds: Float[Tensor, "batch queries embed"],
        hidden_states: Float[Tensor, "batch seq hidden"],
        mask: Bool[Tensor, "batch seq"],
    ) -> Float[Tensor, " batch"]:
        num_queries, length = prompt_embeds.shape[1], hidden_states.shape[1]
        if self._padding == "released":
            restored = model.aligner.reconstruct(prompt_embeds, length)
            return squared_errors(restored, hidden_states) * num_queries / length
        restored = model.aligner.reconstruct(prompt_embeds, length, mask)
        errors = (restored.float() - hidden_states.float()).square().mean(-1) * mask
        lengths = mask.sum(1)
        # The released scale, 77 / length, for each caption's own length.
        return errors.sum(1) / lengths * num_queries / lengths


def _cached(
    cache: TensorCache, batch: Batch, text_ids: Int[Tensor, "batch queries"]
) -> CaptionStates | None:
    """Return the states of captions, or None if the cache lacks any."""
    found = [cache.get(key) for key in _keys(batch, text_ids)]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return None
    rows = [one["hidden"] for one in known]
    hidden = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return CaptionStates(hidden=hidden, text=torch.stack([one["text"] for one in known]))


def _entries(captions: CaptionGroup, states: CaptionStates) -> dict[str, dict[str, Tensor]]:
    lengths = captions.sequences.attention_mask.sum(1).tolist()
    keys = _keys(captions.sequences, captions.text_ids)
    return {
        key: {"hidden": hidden[:length], "text": text}
        for key, length, hidden, text in zip(keys, lengths, states.hidden, states.text, strict=True)
    }


def _keys(batch: Batch, text_ids: Int[Tensor, "batch queries"]) -> list[str]:
    """Return the captions' keys: both models' ids, which is what text and tokenizers come to."""
    lengths = batch.attention_mask.sum(1).tolist()
    rows = zip(batch.input_ids.cpu(), text_ids.cpu(), lengths, strict=True)
    return [key_of(ids[:length], text) for ids, text, length in rows]


class AlignPicturesStage:
    """Squared error of M's output, pictures among the words, to the text states of the caption.

    Source:
        Not in the paper: NANO section 4 ("stage 2b"). Where a picture stands for words, the target
        still has the words.
    """

    counts = "prompts"

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        num_latents: int,
        image_size: int,
        text_tower: TextTower,
        trainable: tuple[str, ...],
    ) -> None:
        self.trainable = trainable
        self._tokenizer = tokenizer
        self._sizes: dict[str, Any] = {"num_latents": num_latents, "image_size": image_size}
        self._text_tower = text_tower

    def collate(self, records: Sequence[Composed]) -> tuple[Batch, Int[Tensor, "batch queries"]]:
        """Return the prompts as sequences and their captions as the text tower's ids.

        Raises:
            DataError: If a record has no caption of its target.
        """
        prompts: list[Prompt] = []
        captions: list[str] = []
        for record in records:
            if record.caption is None:
                raise DataError(
                    f"{record.key} has no caption of its target; give edits an after_caption or"
                    " leave them out of this stage",
                    reason="no target caption",
                )
            prompts.append(record.prompt)
            captions.append(record.caption)
        encoded = [encode(prompt, self._tokenizer, **self._sizes) for prompt in prompts]
        return collate(encoded, pad_id=self._tokenizer.pad_id), self._text_tower.ids(captions)

    def weight(self, batch: tuple[Batch, Tensor]) -> int:
        """Return the number of prompts."""
        return len(batch[1])

    def sharded(self, shard: Callable[[nn.Module], None]) -> "AlignPicturesStage":
        """Return one like it whose text tower is sharded."""
        made = copy.copy(self)
        made._text_tower = self._text_tower.sharded(shard)
        return made

    def loss(
        self, model: KosmosG, batch: tuple[Batch, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the error, the mean over a prompt's elements, summed over prompts."""
        del generator  # nothing is drawn but dropout
        sequences, ids = batch
        errors = squared_errors(model.encode(sequences), self._text_tower.states(ids))
        return {"mse": errors.sum(), "metric_each_loss": errors.detach()}


def squared_error(given: Tensor, wanted: Tensor) -> Float[Tensor, ""]:
    """Return the mean squared error of each sample's elements, summed over samples, in float32."""
    return squared_errors(given, wanted).sum()


def squared_errors(given: Tensor, wanted: Tensor) -> Float[Tensor, " batch"]:
    """Return the mean squared error of each sample's elements, in float32."""
    return (given.float() - wanted.float()).square().flatten(1).mean(1)
