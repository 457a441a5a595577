"""Prompts as a caller gives them, checked and read: to conditions, and to when each is used."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kosmosg.branches import Plan, plan
from kosmosg.controls import PictureWeights, PictureWindows, weights_of, windows_of
from kosmosg.encoding import Embeds, PromptEncoder
from kosmosg.model.kosmosg import KosmosG
from kosmosg.prompts import Prompts, as_batch, check_prompt, is_empty
from kosmosg.sequence import Prompt
from kosmosg.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """What reading takes: a model and its words, and the encoder that remembers."""

    model: KosmosG
    tokenizer: Tokenizer
    encoder: PromptEncoder
    device: torch.device
    max_pictures: int

    def encode(self, prompt: Prompts | None, weights: PictureWeights | None) -> Embeds:
        """Return the condition of each prompt.

        Raises:
            PromptError: If a prompt cannot be read, or the weights do not fit its pictures.
        """
        prompts = self._prompts(prompt)
        return self._encode(prompts, weights_of(weights, prompts))

    def plan(
        self,
        prompt: Prompts | None,
        weights: PictureWeights | None,
        windows: PictureWindows | None,
        *,
        num_steps: int,
        apart: bool,
    ) -> tuple[Plan, Embeds]:
        """Return when each reading of the prompts is used, and the condition of each.

        Raises:
            PromptError: As `encode`, or if the windows do not fit the pictures.
        """
        prompts = self._prompts(prompt)
        planned = plan(
            prompts,
            weights_of(weights, prompts),
            windows_of(windows, prompts),
            num_steps=num_steps,
            apart=apart,
        )
        readings, their_weights = zip(*planned.readings, strict=True)
        return planned, self._encode(readings, their_weights)

    def negative(self, prompt: Prompts | None, num_prompts: int) -> Embeds:
        """Return the conditions to guide away from: the null prompt's where nothing is given.

        One for all is repeated for each prompt.

        Raises:
            PromptError: If one cannot be read.
        """
        negative = [[""]] if prompt is None else as_batch(prompt)
        self._check([one for one in negative if not is_empty(one)])
        embeds = self.encoder.encode_negative(negative, self.model, self.tokenizer, self.device)
        return embeds.expand(num_prompts, -1, -1) if len(negative) == 1 else embeds

    def _prompts(self, prompt: Prompts | None) -> list[list]:
        prompts = as_batch([] if prompt is None else prompt)
        self._check(prompts)
        return prompts

    def _check(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            check_prompt(prompt, self.tokenizer, max_pictures=self.max_pictures)

    def _encode(self, prompts: Sequence[Prompt], weights: Sequence[Sequence[float]]) -> Embeds:
        return self.encoder.encode(
            prompts, self.model, self.tokenizer, self.device, weights=weights
        )
