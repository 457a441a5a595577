"""The multimodal language model: words and pictures to hidden states."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kosmosg.model.clip_vision import ClipVision
from kosmosg.model.magneto import KeyValueCache, MagnetoLayer, Rotation, causal_mask, sinusoid
from kosmosg.model.resampler import Resampler
from kosmosg.sequence import Batch


class MLLM(ModelMixin, ConfigMixin):
    """A causal Magneto decoder that reads pictures as words; the defaults are the released sizes.

    Args:
        positions: "sinusoidal" as released; "xpos" as in the Kosmos-1 recipe, instead of it.
        resampler_layers: 0 as released; above 0, a Perceiver of so many layers.
        attention_dropout: Of the decoder; the released flash kernel has none.
        resampler_dropout: Of the resampler's attention weights.

    Source:
        Paper section 2.1; NUMERICS section 4.
    """

    @register_to_config
    def __init__(
        self,
        *,
        vocab_size: int = 64007,
        pad_id: int = 1,
        hidden_size: int = 2048,
        intermediate_size: int = 8192,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 32,
        num_latents: int = 64,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        positions: Literal["sinusoidal", "xpos"] = "sinusoidal",
        resampler_layers: int = 0,
        resampler_dropout: float = 0.1,
        vision_hidden_size: int = 1024,
        vision_intermediate_size: int = 4096,
        vision_layers: int = 24,
        vision_heads: int = 16,
        image_size: int = 224,
        patch_size: int = 14,
    ) -> None:
        super().__init__()
        self.vision = ClipVision(
            hidden_size=vision_hidden_size,
            intermediate_size=vision_intermediate_size,
            num_hidden_layers=vision_layers,
            num_attention_heads=vision_heads,
            image_size=image_size,
            patch_size=patch_size,
        )
        self.resampler = Resampler(
            vision_size=vision_hidden_size,
            hidden_size=hidden_size,
            num_latents=num_latents,
            num_attention_heads=num_attention_heads,
            num_layers=resampler_layers,
            dropout=resampler_dropout,
        )
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size, padding_idx=pad_id)
        self.embed_dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            MagnetoLayer(
                hidden_size,
                num_attention_heads,
                intermediate_size,
                gamma=math.sqrt(math.log(2 * num_hidden_layers)),
                dropout=dropout,
                attention_dropout=attention_dropout,
            )
            for _ in range(num_hidden_layers)
        )
        self.layer_norm = nn.LayerNorm(hidden_size)
        self.pad_id = pad_id
        self.head_dim = hidden_size // num_attention_heads
        self.rotates = positions == "xpos"
        nn.init.normal_(self.embed_tokens.weight, std=hidden_size**-0.5)
        nn.init.zeros_(self.embed_tokens.weight[pad_id])

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch keys"],
        image_mask: Bool[Tensor, "batch seq"] | None = None,
        pixel_values: Float[Tensor, "pictures 3 height width"] | None = None,
        *,
        image_index: Int[Tensor, " images"] | None = None,
        image_weights: Float[Tensor, " images"] | None = None,
        image_features: Float[Tensor, "pictures latents hidden"] | None = None,
        document_ids: Int[Tensor, "batch seq"] | None = None,
        cache: list[KeyValueCache] | None = None,
    ) -> Float[Tensor, "batch seq hidden"]:
        """Return the hidden states after the last LayerNorm.

        Args:
            attention_mask: True = real. It sets positions and hides nothing: every position sees
                all before it, pads included (released). With a cache it covers the cached
                positions too and hides pads, so that new words may follow a padded prompt.
            image_mask: True where a picture's latents stand instead of a word.
            image_index: Which row of the pictures fills each run of slots; None: the next one.
            image_weights: What each run's latents are multiplied by; None: 1.
            image_features: `encode_images` of the pictures, instead of `pixel_values`.
            document_ids: Which document of a packed row each position is in: none then sees
                another document, and positions restart in each. None: a row is one sequence.
            cache: From `new_cache`; it grows by this call. Packed rows take none.

        Raises:
            ValueError: If the slots and the pictures' latents differ in number.
        """
        if pixel_values is not None:
            image_features = self.encode_images(pixel_values)
        if image_features is not None and image_index is not None:
            image_features = image_features[image_index]
        if image_features is not None and image_weights is not None:
            image_features = image_features * image_weights[:, None, None].to(image_features.dtype)
        embeds = self.embed(input_ids, image_mask, image_features)
        positions = position_ids(attention_mask, document_ids)[:, -input_ids.shape[1] :]
        hidden_states = math.sqrt(embeds.shape[-1]) * embeds
        if not self.rotates:
            hidden_states = hidden_states + sinusoid(positions, embeds.shape[-1]).to(embeds.dtype)
        hidden_states = self.embed_dropout(hidden_states)
        rotation = Rotation.at(positions, self.head_dim) if self.rotates else None
        mask = None if cache is None else _visible(input_ids, attention_mask)
        mask = mask if document_ids is None else _within(document_ids)
        for layer, seen in zip(self.layers, cache or [None] * len(self.layers), strict=True):
            hidden_states = layer(
                hidden_states, mask=mask, causal=mask is None, rotation=rotation, cache=seen
            )
        return self.layer_norm(hidden_states)

    def embed(
        self,
        input_ids: Int[Tensor, "batch seq"],
        image_mask: Bool[Tensor, "batch seq"] | None,
        image_features: Float[Tensor, "images latents hidden"] | None,
    ) -> Float[Tensor, "batch seq hidden"]:
        """Return word embeddings with the pictures' latents in their slots.

        Raises:
            ValueError: If the slots and the latents differ in number.
        """
        embeds = self.embed_tokens(input_ids)
        num_slots = 0 if image_mask is None else int(image_mask.sum())
        num_latents = 0 if image_features is None else image_features.shape[:2].numel()
        if num_slots != num_latents:
            raise ValueError(f"{num_slots} slots for {num_latents} latents of pictures")
        if image_mask is None or image_features is None:
            return embeds
        return embeds.masked_scatter(image_mask[..., None], image_features.to(embeds.dtype))

    def encode_images(
        self, pixel_values: Float[Tensor, "images 3 height width"]
    ) -> Float[Tensor, "images latents hidden"]:
        """Return what fills the slots of each picture."""
        return self.resampler(self.vision(pixel_values))

    def logits(
        self, hidden_states: Float[Tensor, "*batch hidden"]
    ) -> Float[Tensor, "*batch vocab"]:
        """Return the scores of the next word, with the embedding as output matrix."""
        return F.linear(hidden_states, self.embed_tokens.weight)

    def new_cache(self) -> list[KeyValueCache]:
        """Return an empty cache, one part a layer."""
        return [KeyValueCache() for _ in self.layers]

    @torch.no_grad()
    def generate(
        self, batch: Batch, *, max_new_tokens: int, eos_id: int
    ) -> Int[Tensor, "batch new"]:
        """Return the likeliest next words of each sequence, one by one, up to `</s>`.

        After a sequence's `</s>` its row holds pads. Rows do not influence one another.
        """
        cache, mask = self.new_cache(), batch.attention_mask
        hidden_states = self(
            batch.input_ids,
            mask,
            batch.image_mask,
            batch.pixel_values,
            image_index=batch.image_index,
            image_weights=batch.image_weights,
            cache=cache,
        )
        last = hidden_states[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1]
        running = torch.ones_like(mask[:, :1])
        new_ids = mask.new_empty(len(mask), 0, dtype=torch.long)
        for index in range(max_new_tokens):
            chosen = self.logits(last).argmax(-1, keepdim=True)
            new_ids = torch.cat([new_ids, chosen.where(running, self.pad_id)], 1)
            running = running & (chosen != eos_id)
            if index + 1 == max_new_tokens or not running.any():
                break
            mask = torch.cat([mask, running], 1)
            last = self(new_ids[:, -1:], mask, cache=cache)[:, -1]
        return new_ids


def position_ids(
    attention_mask: Bool[Tensor, "batch seq"],
    document_ids: Int[Tensor, "batch seq"] | None = None,
) -> Int[Tensor, "batch seq"]:
    """Return 2, 3, ... on real positions and 1 on pads (NUMERICS section 4).

    With documents, which must each lie in one piece, the count restarts where another begins.
    """
    count = attention_mask.cumsum(1)
    if document_ids is not None:
        opens = document_ids.diff(dim=1, prepend=document_ids[:, :1] - 1) != 0
        count = count - ((count - 1) * opens).cummax(1).values
    return count * attention_mask + 1


def _visible(
    input_ids: Int[Tensor, "batch seq"], attention_mask: Bool[Tensor, "batch keys"]
) -> Bool[Tensor, "batch 1 seq keys"]:
    """Return which keys each new position sees: earlier ones that are not pads."""
    causal = causal_mask(input_ids.shape[1], attention_mask.shape[1], input_ids.device)
    return causal & attention_mask[:, None, None, :]


def _within(document_ids: Int[Tensor, "batch seq"]) -> Bool[Tensor, "batch 1 seq seq"]:
    """Return which keys each position sees: its own and earlier ones of its document."""
    seq = document_ids.shape[1]
    same = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    return causal_mask(seq, seq, document_ids.device) & same
