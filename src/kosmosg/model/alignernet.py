"""AlignerNet: from the hidden states of words to the image decoder's conditions, and back."""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kosmosg.errors import ConfigError, PromptError
from kosmosg.model.magneto import MagnetoLayer

# The released tables start two rows in, an inheritance of their library.
FIRST_ROW = 2


class AlignerNet(ModelMixin, ConfigMixin):
    """M, which makes prompt embeds, and N, which makes hidden states of them again for stage 2.

    The defaults are the released sizes.

    Args:
        hidden_size: Width of the language model.
        embed_dim: Width of the U-Net's cross-attention, and of every layer here.
        num_layers: Layers of each of the two stacks of M and of N.
        dropout: On what each sub-layer adds; none in the release.
        stacks: "both" as released: a Transformer encoder, then a Transformer decoder. "queries",
            the decoder alone, and "none", one linear map of each position, are the paper's
            ablations.
        max_positions: Longest sequence plus 2.
        with_reconstruction: Whether N exists; only stage 2 needs it.

    Raises:
        ConfigError: If N is asked for where there are no stacks.

    Source:
        Paper sections 2.2 and 4.3; NUMERICS section 5.
    """

    @register_to_config
    def __init__(
        self,
        *,
        hidden_size: int = 2048,
        embed_dim: int = 768,
        intermediate_size: int = 3072,
        num_heads: int = 12,
        num_layers: int = 12,
        num_queries: int = 77,
        max_positions: int = 32768,
        with_reconstruction: bool = False,
        dropout: float = 0.0,
        stacks: Literal["both", "queries", "none"] = "both",
    ) -> None:
        super().__init__()
        if stacks == "none":
            if with_reconstruction:
                raise ConfigError(
                    "an aligner with stacks='none' has no N; set with_reconstruction=False"
                )
            self.encoder = LinearEncoder(hidden_size, embed_dim, num_queries=num_queries)
            self.decoder = None
            return
        sizes: dict[str, Any] = {
            "hidden_size": hidden_size,
            "embed_dim": embed_dim,
            "intermediate_size": intermediate_size,
            "num_heads": num_heads,
            "num_layers": num_layers,
            "num_plain_layers": num_layers if stacks == "both" else 0,
            "max_positions": max_positions,
            "dropout": dropout,
        }
        self.encoder = AlignerEncoder(num_queries=num_queries, **sizes)
        self.decoder = AlignerDecoder(**sizes) if with_reconstruction else None

    def forward(
        self,
        hidden_states: Float[Tensor, "batch seq hidden"],
        attention_mask: Bool[Tensor, "batch seq"],
    ) -> Float[Tensor, "batch queries embed"]:
        """Return M(hidden_states), the prompt embeds.

        Raises:
            PromptError: If the sequence is longer than the table of positions.
        """
        return self.encoder(hidden_states, attention_mask)

    def reconstruct(
        self,
        prompt_embeds: Float[Tensor, "batch queries embed"],
        length: int,
        attention_mask: Bool[Tensor, "batch {length}"] | None = None,
    ) -> Float[Tensor, "batch {length} hidden"]:
        """Return N(prompt_embeds): the hidden states of the first `length` positions.

        Args:
            attention_mask: True = real; real positions then do not depend on pads. None: all
                positions see one another, as released.

        Raises:
            ValueError: If the model was made without N.
            PromptError: If `length` is longer than the table of positions.
        """
        if self.decoder is None:
            raise ValueError("this AlignerNet has no N; make it with with_reconstruction=True")
        return self.decoder(prompt_embeds, length, attention_mask)


class AlignerEncoder(nn.Module):
    """M: a stack over the hidden states, then a stack of queries that read its output."""

    def __init__(
        self,
        *,
        hidden_size: int,
        embed_dim: int,
        intermediate_size: int,
        num_heads: int,
        num_layers: int,
        num_plain_layers: int,
        num_queries: int,
        max_positions: int,
        dropout: float,
    ) -> None:
        super().__init__()
        depth = math.log(3 * num_layers) * math.log(2 * num_layers) / 3
        sizes = (embed_dim, num_heads, intermediate_size)
        self.project = nn.Linear(hidden_size, embed_dim)
        self.positions = nn.Embedding(max_positions, embed_dim)
        self.layers = nn.ModuleList(
            MagnetoLayer(*sizes, gamma=math.sqrt(depth), dropout=dropout)
            for _ in range(num_plain_layers)
        )
        self.layer_norm = nn.LayerNorm(embed_dim)
        self.queries = nn.Parameter(torch.randn(num_queries, embed_dim))
        self.query_layers = _query_layers(*sizes, num_layers=num_layers, dropout=dropout)
        self.query_layer_norm = nn.LayerNorm(embed_dim)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch seq hidden"],
        attention_mask: Bool[Tensor, "batch seq"],
    ) -> Float[Tensor, "batch queries embed"]:
        """Return the prompt embeds; pads are zeroed and unseen."""
        visible = attention_mask[:, None, None, :]
        memory = self.project(hidden_states) + rows(self.positions, hidden_states.shape[1])
        memory = memory * attention_mask[..., None]
        for layer in self.layers:
            memory = layer(memory, mask=visible)
        memory = self.layer_norm(memory)

        queries = self.queries.expand(len(memory), -1, -1)
        for layer in self.query_layers:
            queries = layer(queries, memory, memory_mask=visible)
        return self.query_layer_norm(queries)


class AlignerDecoder(nn.Module):
    """N: a stack of queries, one a position, that read the prompt embeds; then a plain stack."""

    def __init__(
        self,
        *,
        hidden_size: int,
        embed_dim: int,
        intermediate_size: int,
        num_heads: int,
        num_layers: int,
        num_plain_layers: int,
        max_positions: int,
        dropout: float,
    ) -> None:
        super().__init__()
        sizes = (embed_dim, num_heads, intermediate_size)
        self.queries = nn.Parameter(torch.randn(max_positions, embed_dim))
        self.query_layers = _query_layers(*sizes, num_layers=num_layers, dropout=dropout)
        self.query_layer_norm = nn.LayerNorm(embed_dim)
        self.positions = nn.Embedding(max_positions, embed_dim)
        self.layers = nn.ModuleList(
            MagnetoLayer(*sizes, gamma=math.sqrt(math.log(2 * num_layers)), dropout=dropout)
            for _ in range(num_plain_layers)
        )
        self.layer_norm = nn.LayerNorm(embed_dim)
        self.project = nn.Linear(embed_dim, hidden_size)

    def forward(
        self,
        prompt_embeds: Float[Tensor, "batch queries embed"],
        length: int,
        attention_mask: Bool[Tensor, "batch {length}"] | None = None,
    ) -> Float[Tensor, "batch {length} hidden"]:
        """Return the hidden states of the first `length` positions, pads among them."""
        visible = None if attention_mask is None else attention_mask[:, None, None, :]
        positions = rows(self.positions, length)
        states = self.queries[:length].expand(len(prompt_embeds), -1, -1)
        for layer in self.query_layers:
            states = layer(states, prompt_embeds, mask=visible)
        states = self.query_layer_norm(states) + positions
        for layer in self.layers:
            states = layer(states, mask=visible)
        return self.project(self.layer_norm(states))


class LinearEncoder(nn.Module):
    """No AlignerNet: each position's hidden state, mapped to the width of the U-Net's condition.

    The U-Net takes as many positions as from CLIP: later ones are cut off, as CLIP does with long
    captions, and missing ones are zeros.

    Source:
        Paper section 4.3, "E2E w/o AlignerNet", which fails. How its widths and lengths were
        brought together is not said; this is the least that does it.
    """

    def __init__(self, hidden_size: int, embed_dim: int, *, num_queries: int) -> None:
        super().__init__()
        self.project = nn.Linear(hidden_size, embed_dim)
        self.num_queries = num_queries

    def forward(
        self,
        hidden_states: Float[Tensor, "batch seq hidden"],
        attention_mask: Bool[Tensor, "batch seq"],
    ) -> Float[Tensor, "batch queries embed"]:
        """Return the first positions' conditions."""
        kept = self.num_queries
        embeds = self.project(hidden_states[:, :kept]) * attention_mask[:, :kept, None]
        return F.pad(embeds, (0, 0, 0, kept - embeds.shape[1]))


def _query_layers(
    embed_dim: int, num_heads: int, intermediate_size: int, *, num_layers: int, dropout: float
) -> nn.ModuleList:
    gamma = math.sqrt(math.log(3 * num_layers))
    return nn.ModuleList(
        MagnetoLayer(
            *(embed_dim, num_heads, intermediate_size),
            gamma=gamma,
            cross_attention=True,
            dropout=dropout,
        )
        for _ in range(num_layers)
    )


def rows(positions: nn.Embedding, length: int) -> Float[Tensor, "{length} embed"]:
    """Return the learned positions of a sequence.

    Raises:
        PromptError: If the sequence is longer than the table.
    """
    longest = positions.num_embeddings - FIRST_ROW
    if length > longest:
        raise PromptError(
            f"the prompt has {length} positions, this model reads at most {longest}; "
            "use fewer words or pictures"
        )
    return positions.weight[FIRST_ROW : FIRST_ROW + length]
