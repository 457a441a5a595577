"""Kosmos-G: a prompt of words and pictures to the conditions of an image decoder."""

from jaxtyping import Float
from torch import Tensor, nn

from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.mllm import MLLM
from kosmosg.sequence import Batch, collate, null
from kosmosg.tokenizer import Tokenizer


class KosmosG(nn.Module):
    """The language model and M, which stand where Stable Diffusion has CLIP's text encoder.

    Source:
        Paper section 2 and figure 2.
    """

    def __init__(self, mllm: MLLM, aligner: AlignerNet) -> None:
        super().__init__()
        self.mllm = mllm
        self.aligner = aligner

    def encode(self, batch: Batch) -> Float[Tensor, "batch queries embed"]:
        """Return the prompt embeds of a batch."""
        hidden_states = self.mllm(
            batch.input_ids,
            batch.attention_mask,
            batch.image_mask,
            batch.pixel_values,
            image_index=batch.image_index,
            image_weights=batch.image_weights,
        )
        return self.aligner(hidden_states.to(self.aligner.dtype), batch.attention_mask)

    def null(self, tokenizer: Tokenizer) -> Float[Tensor, "1 queries embed"]:
        """Return the prompt embeds that guidance starts from: those of `<s>` alone."""
        batch = collate([null(tokenizer)], pad_id=tokenizer.pad_id)
        return self.encode(batch.to(self.mllm.device))
