"""AlignerNet: from the hidden states of words to the image decoder's conditions, and back."""

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kosmosg.errors import PromptError
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
        max_positions: Longest sequence plus 2.
        with_reconstruction: Whether N exists; only stage 2 needs it.

    Source:
        Paper section 2.2; NUMERICS section 5.
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
    ) -> None:
        super().__init__()
        sizes = {
            "hidden_size": hidden_size,
            "embed_dim": embed_dim,
            "intermediate_size": intermediate_size,
            "num_heads": num_heads,
            "num_layers": num_layers,
            "max_positions": max_positions,
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
        num_queries: int,
        max_positions: int,
    ) -> None:
        super().__init__()
        depth = math.log(3 * num_layers) * math.log(2 * num_layers) / 3
        sizes = (embed_dim, num_heads, intermediate_size)
        self.project = nn.Linear(hidden_size, embed_dim)
        self.positions = nn.Embedding(max_positions, embed_dim)
        self.layers = nn.ModuleList(
            MagnetoLayer(*sizes, gamma=math.sqrt(depth)) for _ in range(num_layers)
        )
        self.layer_norm = nn.LayerNorm(embed_dim)
        self.queries = nn.Parameter(torch.randn(num_queries, embed_dim))
        self.query_layers = nn.ModuleList(
            MagnetoLayer(*sizes, gamma=math.sqrt(math.log(3 * num_layers)), cross_attention=True)
            for _ in range(num_layers)
        )
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
        max_positions: int,
    ) -> None:
        super().__init__()
        sizes = (embed_dim, num_heads, intermediate_size)
        self.queries = nn.Parameter(torch.randn(max_positions, embed_dim))
        self.query_layers = nn.ModuleList(
            MagnetoLayer(*sizes, gamma=math.sqrt(math.log(3 * num_layers)), cross_attention=True)
            for _ in range(num_layers)
        )
        self.query_layer_norm = nn.LayerNorm(embed_dim)
        self.positions = nn.Embedding(max_positions, embed_dim)
        self.layers = nn.ModuleList(
            MagnetoLayer(*sizes, gamma=math.sqrt(math.log(2 * num_layers)))
            for _ in range(num_layers)
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
