"""From prompts to the U-Net's condition: sequence, MLLM, AlignerNet."""

import hashlib
import weakref
from collections import OrderedDict
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
REMEMBERED = 16


class PromptEncoder:
    """Encodes prompts with the model it is handed; remembers the last few to guide away from."""

    def __init__(self) -> None:
        # Of which weights, and what: one value, so that threads never mix two models.
        self._memory: tuple[list[object], OrderedDict[bytes, Tensor]] = ([], OrderedDict())

    def encode(
        self,
        prompts: Sequence[Prompt],
        model: KosmosG,
        tokenizer: Tokenizer,
        device: torch.device | str,
        *,
        weights: Sequence[Sequence[float]] | None = None,
    ) -> Embeds:
        """Return the condition of each prompt, whatever their lengths, in one pass.

        A prompt in which nothing is left has the null condition. A picture that occurs several
        times goes through the vision tower once.

        Args:
            weights: Of each prompt's pictures, 0 for one that is left out; None: 1.

        Raises:
            PromptError: If a prompt is longer than the model reads.

        Source:
            NUMERICS sections 2.1 and 7.
        """
        asked = [
            sequence.shown(prompt, None if weights is None else weights[index])
            for index, prompt in enumerate(prompts)
        ]
        said = [(parts, kept) for parts, kept in asked if not is_empty(parts)]
        if not said:
            return self.null(model, tokenizer, device).expand(len(prompts), -1, -1)
        views: dict[int, Tensor] = {}
        encoded = [_encoded(parts, model, tokenizer, kept, views) for parts, kept in said]
        embeds = self._run(encoded, model, tokenizer, device)
        if len(said) == len(prompts):
            return embeds
        null, rows = self.null(model, tokenizer, device)[0], iter(embeds)
        return torch.stack([null if is_empty(parts) else next(rows) for parts, _ in asked])

    def encode_negative(
        self,
        prompts: Sequence[Prompt],
        model: KosmosG,
        tokenizer: Tokenizer,
        device: torch.device | str,
    ) -> Embeds:
        """Return the condition of each prompt, from memory where it was asked for lately.

        Each is encoded alone, so that what it is does not depend on what is remembered.
        """
        return torch.cat(
            [
                self.null(model, tokenizer, device)
                if is_empty(prompt)
                else self._remembered(_encoded(prompt, model, tokenizer), model, tokenizer, device)
                for prompt in prompts
            ]
        )

    def null(self, model: KosmosG, tokenizer: Tokenizer, device: torch.device | str) -> Embeds:
        """Return the condition of `<s>`, one row, computed again only when a weight has changed."""
        return self._remembered(sequence.null(tokenizer), model, tokenizer, device)

    def _remembered(
        self,
        encoded: Encoded,
        model: KosmosG,
        tokenizer: Tokenizer,
        device: torch.device | str,
    ) -> Embeds:
        if torch.is_grad_enabled() or model.mllm.training or model.aligner.training:
            return self._run([encoded], model, tokenizer, device)
        state = _state(model)
        known, remembered = self._memory
        if known != state:
            remembered = OrderedDict()
            self._memory = state, remembered
        key = _key(encoded)
        embeds = remembered.pop(key, None)
        if embeds is None:
            embeds = self._run([encoded], model, tokenizer, device)
        remembered[key] = embeds  # the latest comes last
        if len(remembered) > REMEMBERED:
            remembered.popitem(last=False)
        return embeds

    def _run(
        self,
        encoded: Sequence[Encoded],
        model: KosmosG,
        tokenizer: Tokenizer,
        device: torch.device | str,
    ) -> Embeds:
        batch = sequence.share_pictures(sequence.collate(encoded, pad_id=tokenizer.pad_id))
        return model.encode(batch.to(device, model.mllm.dtype))


def _encoded(
    prompt: Prompt,
    model: KosmosG,
    tokenizer: Tokenizer,
    weights: Sequence[float] | None = None,
    views: dict[int, Tensor] | None = None,
) -> Encoded:
    config = model.mllm.config
    encoded = sequence.encode(
        prompt,
        tokenizer,
        num_latents=config["num_latents"],
        image_size=config["image_size"],
        image_weights=weights,
        views=views,
    )
    # Before the MLLM has spent minutes and gigabytes on it.
    check_length(len(encoded.input_ids), model.aligner.config["max_positions"] - FIRST_ROW)
    return encoded


def _state(model: KosmosG) -> list[object]:
    """Return what differs once a weight of the model has changed."""
    return [
        *(weakref.ref(part) for part in (model.mllm, model.aligner)),
        *(
            (weight.data_ptr(), weight.dtype, 0 if weight.is_inference() else weight._version)
            for weight in model.parameters()
        ),
    ]


def _key(encoded: Encoded) -> bytes:
    """Return a digest of all that the model sees of a sequence."""
    seen = hashlib.sha256(encoded.input_ids.numpy().tobytes())
    if encoded.pixel_values is not None:
        seen.update(encoded.pixel_values.numpy().tobytes())
    return seen.digest()
