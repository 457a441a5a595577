"""From prompts to the U-Net's condition: sequence, MLLM, AlignerNet."""

import weakref
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kosmosg import sequence
from kosmosg.model.alignernet import FIRST_ROW
from kosmosg.model.kosmosg import KosmosG
from kosmosg.prompts import check_length, is_empty
from kosmosg.sequence import Encoded, Prompt
from kosmosg.tokenizer import Tokenizer

Embeds = Float[Tensor, "prompts queries embed"]


class PromptEncoder:
    """Encodes prompts with the model it is handed, and remembers the null prompt's condition."""

    def __init__(self) -> None:
        self._null: tuple[object, Tensor] | None = None

    def encode(
        self,
        prompts: Sequence[Prompt],
        model: KosmosG,
        tokenizer: Tokenizer,
        device: torch.device | str,
    ) -> Embeds:
        """Return the condition of each prompt, whatever their lengths, in one pass.

        An empty prompt has the null condition.

        Raises:
            PromptError: If a prompt is longer than the model reads.

        Source:
            NUMERICS sections 2.1 and 7.
        """
        said = [prompt for prompt in prompts if not is_empty(prompt)]
        if not said:
            return self.null(model, tokenizer, device).expand(len(prompts), -1, -1)
        config = model.mllm.config
        longest = model.aligner.config["max_positions"] - FIRST_ROW
        for prompt in said:  # before the MLLM has spent minutes and gigabytes on it
            length = sequence.length(prompt, tokenizer, num_latents=config["num_latents"])
            check_length(length, longest)
        encoded = [
            sequence.encode(
                prompt,
                tokenizer,
                num_latents=config["num_latents"],
                image_size=config["image_size"],
            )
            for prompt in said
        ]
        embeds = self._run(encoded, model, tokenizer, device)
        if len(said) == len(prompts):
            return embeds
        null, rows = self.null(model, tokenizer, device)[0], iter(embeds)
        return torch.stack([null if is_empty(prompt) else next(rows) for prompt in prompts])

    def null(self, model: KosmosG, tokenizer: Tokenizer, device: torch.device | str) -> Embeds:
        """Return the condition of `<s>`, one row, computed again only when a weight has changed."""
        if torch.is_grad_enabled() or model.mllm.training or model.aligner.training:
            return self._run([sequence.null(tokenizer)], model, tokenizer, device)
        state = [
            *(weakref.ref(part) for part in (model.mllm, model.aligner)),
            *(
                (weight.data_ptr(), weight.dtype, 0 if weight.is_inference() else weight._version)
                for weight in model.parameters()
            ),
        ]
        if self._null is None or self._null[0] != state:
            self._null = (state, self._run([sequence.null(tokenizer)], model, tokenizer, device))
        return self._null[1]

    def _run(
        self,
        encoded: Sequence[Encoded],
        model: KosmosG,
        tokenizer: Tokenizer,
        device: torch.device | str,
    ) -> Embeds:
        batch = sequence.collate(encoded, pad_id=tokenizer.pad_id)
        return model.encode(batch.to(device, model.mllm.dtype))
