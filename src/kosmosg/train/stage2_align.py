"""Stage 2: AlignerNet learns to speak the language of the image decoder, from text alone.

`AlignStage` is the paper's. `AlignPicturesStage` is an addition between stages 2 and 3: prompts
with pictures are aligned to the text states of their captions; no image decoder is needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kosmosg.data.compose import Composed
from kosmosg.data.records import Caption
from kosmosg.errors import DataError
from kosmosg.model.kosmosg import KosmosG
from kosmosg.sequence import Batch, Prompt, collate, encode
from kosmosg.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Stage 2, over a KosmosG with N.

    `padding` says what the reconstruction loss counts: `masked`, real positions only, so that it
    does not depend on the batch; `released`, pads too, scaled by the padded length. `mllm` says
    whether the frozen language model's dropout is on, as it was in the release.
    `reconstruction_weight` is that of equation 6 beside equation 5's 1: the paper names none, the
    release has 1.
    """

    kind: Literal["align"] = "align"
    trainable: tuple[str, ...] = ("aligner.*",)
    padding: Literal["masked", "released"]
    mllm: Literal["eval", "train"]
    reconstruction_weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class AlignPicturesConfig:
    """The additional stage, over a KosmosG; what learns includes the language model."""

    kind: Literal["align_pictures"] = "align_pictures"
    trainable: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TextTower:
    """The image decoder's own text encoder, frozen: what stage 2 learns to imitate.

    `ids` turns texts into its input, padded as it was trained; `encoder` is transformers'
    CLIPTextModel.
    """

    encoder: nn.Module
    ids: Callable[[Sequence[str]], Int[Tensor, "batch queries"]]

    @torch.no_grad()
    def states(self, ids: Int[Tensor, "batch queries"]) -> Float[Tensor, "batch queries embed"]:
        """Return the last hidden states, float32, without an attention mask.

        Source:
            NUMERICS section 6: after the final LayerNorm; pads are seen.
        """
        self.encoder.to(ids.device).eval()
        return self.encoder(input_ids=ids).last_hidden_state.float()


class AlignStage:
    """Two squared errors: M to the text states, and, with a weight, N back to the hidden states.

    Source:
        Paper equations 5 and 6; NUMERICS sections 6 and 13.
    """

    counts = "captions"

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        num_latents: int,
        image_size: int,
        text_tower: TextTower,
        trainable: tuple[str, ...],
        padding: Literal["masked", "released"],
        mllm: Literal["eval", "train"],
        reconstruction_weight: float,
    ) -> None:
        self.trainable = trainable
        self._tokenizer = tokenizer
        self._sizes: dict[str, Any] = {"num_latents": num_latents, "image_size": image_size}
        self._text_tower = text_tower
        self._padding = padding
        self._mllm = mllm
        self._reconstruction_weight = reconstruction_weight

    def collate(self, records: Sequence[Caption]) -> tuple[Batch, Int[Tensor, "batch queries"]]:
        """Return the captions as sequences and as the text tower's ids."""
        texts = [record.text for record in records]
        encoded = [encode([text], self._tokenizer, **self._sizes) for text in texts]
        return collate(encoded, pad_id=self._tokenizer.pad_id), self._text_tower.ids(texts)

    def weight(self, batch: tuple[Batch, Tensor]) -> int:
        """Return the number of captions."""
        return len(batch[1])

    def loss(
        self, model: KosmosG, batch: tuple[Batch, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return both errors, each the mean over a caption's elements, summed over captions."""
        del generator  # nothing is drawn but dropout
        sequences, ids = batch
        if self._mllm == "eval":
            model.mllm.eval()
        mask = sequences.attention_mask
        hidden_states = model.mllm(
            sequences.input_ids, mask, sequences.image_mask, sequences.pixel_values
        )
        prompt_embeds = model.aligner(hidden_states, mask)
        again = self._reconstruction(model, prompt_embeds, hidden_states, mask)
        errors = squared_errors(prompt_embeds, self._text_tower.states(ids))
        return {
            "mse": errors.sum(),
            "reconstruction": self._reconstruction_weight * again.sum(),
            "metric_each_loss": (errors + self._reconstruction_weight * again).detach(),
        }

    def _reconstruction(
        self,
        model: KosmosG,
        prompt_embeds: Float[Tensor, "batch queries embed"],
        hidden_states: Float[Tensor, "batch seq hidden"],
        mask: Bool[Tensor, "batch seq"],
    ) -> Float[Tensor, " batch"]:
        num_queries, length = prompt_embeds.shape[1], hidden_states.shape[1]
        if self._padding == "released":
            restored = model.aligner.reconstruct(prompt_embeds, length)
            return squared_errors(restored, hidden_states) * num_queries / length
        restored = model.aligner.reconstruct(prompt_embeds, length, mask)
        errors = (restored.float() - hidden_states.float()).square().mean(-1) * mask
        lengths = mask.sum(1)
        # The released scale, 77 / length, for each caption's own length.
        return errors.sum(1) / lengths * num_queries / lengths


class AlignPicturesStage:
    """Squared error of M's output, pictures among the words, to the text states of the caption.

    Source:
        Not in the paper: NANO section 4 ("stage 2b"). Where a picture stands for words, the target
        still has the words.
    """

    counts = "prompts"

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        num_latents: int,
        image_size: int,
        text_tower: TextTower,
        trainable: tuple[str, ...],
    ) -> None:
        self.trainable = trainable
        self._tokenizer = tokenizer
        self._sizes: dict[str, Any] = {"num_latents": num_latents, "image_size": image_size}
        self._text_tower = text_tower

    def collate(self, records: Sequence[Composed]) -> tuple[Batch, Int[Tensor, "batch queries"]]:
        """Return the prompts as sequences and their captions as the text tower's ids.

        Raises:
            DataError: If a record has no caption of its target.
        """
        prompts: list[Prompt] = []
        captions: list[str] = []
        for record in records:
            if record.caption is None:
                raise DataError(
                    f"{record.key} has no caption of its target; give edits an after_caption or"
                    " leave them out of this stage",
                    reason="no target caption",
                )
            prompts.append(record.prompt)
            captions.append(record.caption)
        encoded = [encode(prompt, self._tokenizer, **self._sizes) for prompt in prompts]
        return collate(encoded, pad_id=self._tokenizer.pad_id), self._text_tower.ids(captions)

    def weight(self, batch: tuple[Batch, Tensor]) -> int:
        """Return the number of prompts."""
        return len(batch[1])

    def loss(
        self, model: KosmosG, batch: tuple[Batch, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the error, the mean over a prompt's elements, summed over prompts."""
        del generator  # nothing is drawn but dropout
        sequences, ids = batch
        errors = squared_errors(model.encode(sequences), self._text_tower.states(ids))
        return {"mse": errors.sum(), "metric_each_loss": errors.detach()}


def squared_error(given: Tensor, wanted: Tensor) -> Float[Tensor, ""]:
    """Return the mean squared error of each sample's elements, summed over samples, in float32."""
    return squared_errors(given, wanted).sum()


def squared_errors(given: Tensor, wanted: Tensor) -> Float[Tensor, " batch"]:
    """Return the mean squared error of each sample's elements, in float32."""
    return (given.float() - wanted.float()).square().flatten(1).mean(1)
