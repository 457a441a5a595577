"""The resampler: however many patch features to a fixed number of latents."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kosmosg.model.magneto import Attention


class Resampler(nn.Module):
    """Latent queries that gather a picture's features; they are among their own keys.

    Args:
        num_layers: 0 is the released form: one cross-attention alone. Above 0, a Perceiver of so
            many layers: cross-attention and feed-forward, each normed first and added to the
            latents, and a last norm.
        dropout: Of attention weights.

    Source:
        NUMERICS section 3.3 and 8; the Perceiver is what the paper cites (Flamingo).
    """

    def __init__(
        self,
        *,
        vision_size: int,
        hidden_size: int,
        num_latents: int,
        num_attention_heads: int,
        num_layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.project = nn.Linear(vision_size, hidden_size)
        self.latents = nn.Parameter(torch.randn(num_latents, hidden_size))
        if num_layers == 0:
            self.attention = _attention(hidden_size, num_attention_heads, dropout)
        else:
            self.layers = nn.ModuleList(
                PerceiverLayer(hidden_size, num_attention_heads, dropout=dropout)
                for _ in range(num_layers)
            )
            self.layer_norm = nn.LayerNorm(hidden_size)
        self.num_layers = num_layers

    def forward(
        self, features: Float[Tensor, "images patches vision"]
    ) -> Float[Tensor, "images latents hidden"]:
        """Return what the language model reads in the slots of each picture."""
        features = self.project(features)
        shared = self.latents.to(features.dtype)[None]
        latents = shared.expand(len(features), -1, -1)
        if self.num_layers == 0:
            return self.attention(shared, torch.cat([features, latents], 1))
        for layer in self.layers:
            latents = layer(latents, features)
        return self.layer_norm(latents)


class PerceiverLayer(nn.Module):
    """One step of a Perceiver: the latents read the picture and themselves, then think."""

    def __init__(self, hidden_size: int, num_attention_heads: int, *, dropout: float) -> None:
        super().__init__()
        self.features_layer_norm = nn.LayerNorm(hidden_size)
        self.latents_layer_norm = nn.LayerNorm(hidden_size)
        self.attention = _attention(hidden_size, num_attention_heads, dropout)
        self.ffn = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, 4 * hidden_size),
            nn.GELU(),
            nn.Linear(4 * hidden_size, hidden_size),
        )

    def forward(
        self,
        latents: Float[Tensor, "images latents hidden"],
        features: Float[Tensor, "images patches hidden"],
    ) -> Float[Tensor, "images latents hidden"]:
        """Return the latents after reading once more."""
        normed = self.latents_layer_norm(latents)
        memory = torch.cat([self.features_layer_norm(features), normed], 1)
        latents = latents + self.attention(normed, memory)
        return latents + self.ffn(latents)


def _attention(hidden_size: int, num_heads: int, dropout: float) -> Attention:
    """Return attention with the initialisation of the released connector (NUMERICS section 8)."""
    attention = Attention(hidden_size, num_heads, inner_norm=False, dropout=dropout)
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        nn.init.xavier_uniform_(linear.weight, gain=2**-0.5)
    nn.init.xavier_uniform_(attention.out_proj.weight)
    nn.init.zeros_(attention.out_proj.bias)
    return attention
