"""The Magneto block, with a LayerNorm inside each sub-layer, which MLLM and AlignerNet share.

LayerNorm, softmax and GELU need no casts: in half precision their kernels compute in float32 and
round once (tested).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

# Of one attention: 256 MiB in float32. More, as dozens of pictures have, go to the fused kernel.
MAX_SCORES = 2**26
Hidden = Float[Tensor, "batch seq hidden"]
Heads = Float[Tensor, "batch heads seq head_dim"]


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """xPos: queries and keys turned by their position and scaled, so that only distance counts.

    Source:
        NUMERICS section 4, the formulas that the released code holds but never calls. Positions
        count from 0 without its centring, which cancels in the product and would differ between
        cached and new keys; without its scale beyond 2048 keys.
    """

    cos: Float[Tensor, "batch 1 seq half"]
    sin: Float[Tensor, "batch 1 seq half"]
    scale: Float[Tensor, "batch 1 seq half"]

    @classmethod
    def at(cls, positions: Int[Tensor, "batch seq"], head_dim: int) -> "Rotation":
        """Return the rotation of these positions."""
        pair = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
        angle = positions[:, None, :, None] * 10000 ** (-pair / head_dim)
        zeta = (pair + 0.4 * head_dim) / (1.4 * head_dim)
        scale = zeta ** (positions[:, None, :, None] / 512)
        return cls(cos=angle.cos(), sin=angle.sin(), scale=scale)

    def __call__(self, query: Heads, key: Heads) -> tuple[Heads, Heads]:
        """Return query and key, turned and scaled."""
        return self._turn(query, self.scale), self._turn(key, 1 / self.scale)

    def _turn(self, states: Heads, scale: Float[Tensor, "batch 1 seq half"]) -> Heads:
        even, odd = states[..., 0::2].float(), states[..., 1::2].float()
        turned = (even * self.cos - odd * self.sin, odd * self.cos + even * self.sin)
        return torch.stack([half * scale for half in turned], dim=-1).flatten(-2).to(states.dtype)


class KeyValueCache:
    """The keys and values that one self-attention has seen so far."""

    def __init__(self) -> None:
        self._seen: tuple[Tensor, Tensor] | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return all keys and values, these included."""
        if self._seen is not None:
            key, value = torch.cat([self._seen[0], key], 2), torch.cat([self._seen[1], value], 2)
        self._seen = key, value
        return key, value


def attend(
    query: Heads,
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys head_dim"],
    *,
    mask: Bool[Tensor, "#batch 1 #seq keys"] | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Heads:
    """Return softmax(query key^T / sqrt(head_dim)) value.

    Args:
        mask: True where a key is seen; not together with `causal`.

    Source:
        NUMERICS section 4.1: both ways are one function, but dropout draws differ. On a CPU plain
        products are faster than the fused kernel, learning (NANO section 1) and reading
        (bench/encode.py), as long as all scores fit a moderate piece of memory.
    """
    num_scores = query.shape[:3].numel() * key.shape[2]
    if query.device.type == "cpu" and num_scores <= MAX_SCORES:
        return _attend_by_products(query, key, value, mask=mask, causal=causal, dropout=dropout)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal
    )


def _attend_by_products(
    query: Heads,
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys head_dim"],
    *,
    mask: Bool[Tensor, "#batch 1 #seq keys"] | None,
    causal: bool,
    dropout: float,
) -> Heads:
    """Return what `attend` does, as two batched products that need no transposed copies."""
    batch, heads, seq, head_dim = query.shape
    flat_query, flat_key, flat_value = (part.flatten(0, 1) for part in (query, key, value))
    if causal:
        mask = causal_mask(seq, key.shape[2], query.device)
    bias = query.new_zeros(1)
    if mask is not None:
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -math.inf)
        each = len(mask) > 1
        bias = bias.expand(-1, heads, -1, -1).flatten(0, 1) if each else bias[0]
    scores = torch.baddbmm(bias, flat_query, flat_key.transpose(1, 2), alpha=head_dim**-0.5)
    weights = F.dropout(scores.softmax(-1), dropout)
    return (weights @ flat_value).unflatten(0, (batch, heads))


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Bool[Tensor, "1 1 q k"]:
    """Return which keys each of the last `num_queries` positions sees: its own and earlier ones."""
    mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return mask.tril(num_keys - num_queries)[None, None]


class Attention(nn.Module):
    """Multi-head attention with biases; `inner_norm` adds Magneto's LayerNorm before the output."""

    def __init__(
        self, hidden_size: int, num_heads: int, *, inner_norm: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.inner_layer_norm = nn.LayerNorm(hidden_size) if inner_norm else nn.Identity()
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        hidden_states: Float[Tensor, "_rows seq hidden"],
        memory: Float[Tensor, "batch keys hidden"] | None = None,
        *,
        mask: Bool[Tensor, "#batch 1 #seq keys"] | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
        cache: KeyValueCache | None = None,
    ) -> Hidden:
        """Return what each position gathers from `memory` (None: from its own sequence).

        One row of positions may read many memories; its queries are then made once.
        """
        memory = hidden_states if memory is None else memory
        query = self._heads(self.q_proj(hidden_states))
        key, value = self._heads(self.k_proj(memory)), self._heads(self.v_proj(memory))
        if rotation is not None:
            query, key = rotation(query, key)
        if cache is not None:
            key, value = cache.extend(key, value)
        dropout = self.dropout if self.training else 0.0
        query = query.expand(len(key), -1, -1, -1)
        gathered = attend(query, key, value, mask=mask, causal=causal, dropout=dropout)
        gathered = rearrange(gathered, "batch heads seq head_dim -> batch seq (heads head_dim)")
        return self.out_proj(self.inner_layer_norm(gathered))

    def _heads(self, states: Float[Tensor, "batch keys hidden"]) -> Tensor:
        return rearrange(states, "b seq (heads dim) -> b heads seq dim", heads=self.num_heads)


class FeedForward(nn.Module):
    """Two linear maps around GELU and Magneto's inner LayerNorm."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.inner_layer_norm = nn.LayerNorm(intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: Hidden) -> Hidden:
        """Return each position's new state, the residual not yet added."""
        return self.fc2(self.inner_layer_norm(F.gelu(self.fc1(hidden_states))))


class MagnetoLayer(nn.Module):
    """Self-attention, cross-attention if asked for, feed-forward; each normed first, then added.

    Args:
        gamma: Factor on the initial values and output projections (`magneto_gamma`), not on
            cross-attention.
        dropout: On what each sub-layer adds.

    Source:
        Paper section 2.1 (Magneto); NUMERICS sections 4, 5 and 8.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        *,
        gamma: float,
        cross_attention: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(hidden_size)
        self.self_attn = Attention(
            hidden_size, num_heads, inner_norm=True, dropout=attention_dropout
        )
        if cross_attention:
            self.cross_attn_layer_norm = nn.LayerNorm(hidden_size)
            self.cross_attn = Attention(hidden_size, num_heads, inner_norm=False)
        self.ffn_layer_norm = nn.LayerNorm(hidden_size)
        self.ffn = FeedForward(hidden_size, intermediate_size)
        self.dropout = nn.Dropout(dropout)
        scale_parameters(
            (self.self_attn.v_proj, self.self_attn.out_proj, self.ffn.fc1, self.ffn.fc2), gamma
        )

    def forward(
        self,
        hidden_states: Hidden,
        memory: Float[Tensor, "batch keys hidden"] | None = None,
        *,
        mask: Bool[Tensor, "#batch 1 #seq _"] | None = None,
        memory_mask: Bool[Tensor, "#batch 1 1 keys"] | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
        cache: KeyValueCache | None = None,
    ) -> Hidden:
        """Return the next layer's input; `memory` is what cross-attention reads."""
        gathered = self.self_attn(
            self.self_attn_layer_norm(hidden_states),
            mask=mask,
            causal=causal,
            rotation=rotation,
            cache=cache,
        )
        hidden_states = hidden_states + self.dropout(gathered)
        if memory is not None:
            normed = self.cross_attn_layer_norm(hidden_states)
            gathered = self.cross_attn(normed, memory, mask=memory_mask)
            hidden_states = hidden_states + self.dropout(gathered)
        return hidden_states + self.dropout(self.ffn(self.ffn_layer_norm(hidden_states)))


@torch.no_grad()
def scale_parameters(modules: Sequence[nn.Linear], gamma: float) -> None:
    """Multiply weights and biases by gamma: Magneto's initialisation as released.

    Source:
        NUMERICS section 8, measured on fresh official models; the paper's xavier is never called.
    """
    for module in modules:
        module.weight.mul_(gamma)
        module.bias.mul_(gamma)


def sinusoid(
    positions: Int[Tensor, "batch seq"], hidden_size: int
) -> Float[Tensor, "batch seq {hidden_size}"]:
    """Return fixed absolute positions: sines, then cosines; zero at position 1, which pads have.

    Source:
        NUMERICS section 4.
    """
    half = hidden_size // 2
    steps = torch.arange(half, device=positions.device, dtype=torch.float32)
    angles = positions[..., None] * torch.exp(steps * (-math.log(10000) / (half - 1)))
    return torch.cat([angles.sin(), angles.cos()], -1) * (positions != 1)[..., None]
