"""CLIP's vision tower: one picture to one normalised feature a patch."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, CLIPVisionConfig, CLIPVisionModel

from kosmosg.model.magneto import attend

ATTENTION = "kosmosg"


def _attend(
    _: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    **__: object,
) -> tuple[Tensor, None]:
    """Return what transformers asks of an attention, from the one that all parts share."""
    assert attention_mask is None
    return attend(query, key, value, dropout=dropout).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attend)


class ClipVision(nn.Module):
    """The features of the class token and all patches, each of length 1.

    Source:
        NUMERICS section 3.2: CLIP's last LayerNorm on every token, no projection, QuickGELU.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        intermediate_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        image_size: int,
        patch_size: int,
    ) -> None:
        super().__init__()
        self.clip = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=hidden_size,
                intermediate_size=intermediate_size,
                num_hidden_layers=num_hidden_layers,
                num_attention_heads=num_attention_heads,
                image_size=image_size,
                patch_size=patch_size,
                hidden_act="quick_gelu",
                attn_implementation=ATTENTION,  # pyright: ignore[reportCallIssue]
            )
        )

    def forward(
        self, pixel_values: Float[Tensor, "images 3 height width"]
    ) -> Float[Tensor, "images patches vision"]:
        """Return `patches` = 1 + number of patches features a picture."""
        hidden_states = self.clip(pixel_values).last_hidden_state
        return F.normalize(self.clip.post_layernorm(hidden_states), dim=-1)
