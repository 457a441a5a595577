"""Stage 3: instruction tuning, the diffusion loss through the frozen image decoder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from kosmosg.data.compose import Composed
from kosmosg.images import decoder_pixels, scaled
from kosmosg.model.image_decoder import ImageDecoder
from kosmosg.model.kosmosg import KosmosG
from kosmosg.sequence import Batch, collate, encode
from kosmosg.tokenizer import Tokenizer
from kosmosg.train.stage import Draws
from kosmosg.train.weighting import LossWeighting, loss_weights


@dataclass(frozen=True, kw_only=True)
class InstructConfig:
    """Stage 3, over a KosmosG.

    `condition_drop` is how often a prompt is replaced by the null prompt, for guidance.
    `loss_weighting` says how much each timestep counts (`loss_weights`); all alike as released.
    `min_snr_gamma` is for `min_snr` alone.
    """

    kind: Literal["instruct"] = "instruct"
    trainable: tuple[str, ...]
    condition_drop: float = 0.1
    loss_weighting: LossWeighting = "uniform"
    min_snr_gamma: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class InstructBatch:
    """Sequences and their targets: pictures, or latents where the stream gave them.

    Pictures travel as bytes, and are scaled to [-1, 1] where they are used. `timesteps` are given
    for validation, and drawn else.
    """

    sequences: Batch
    target_pixels: UInt8[Tensor, "batch height width 3"] | None
    latents: Float[Tensor, "batch channels latent_height latent_width"] | None
    timesteps: Int[Tensor, " batch"] | None = None

    @property
    def target_images(self) -> Float[Tensor, "batch 3 height width"] | None:
        """Return the pictures in [-1, 1]."""
        return None if self.target_pixels is None else scaled(self.target_pixels)

    def to(self, device: torch.device | str) -> "InstructBatch":
        """Return the batch on another device."""
        pictures, latents = self.target_pixels, self.latents
        return InstructBatch(
            sequences=self.sequences.to(device),
            target_pixels=None if pictures is None else pictures.to(device),
            latents=None if latents is None else latents.to(device),
            timesteps=None if self.timesteps is None else self.timesteps.to(device),
        )


class InstructStage:
    """The squared error of the noise that the frozen U-Net predicts under Kosmos-G's condition.

    The U-Net does not learn, yet its gradient reaches the prompt embeds.

    Source:
        Paper section 2.3; NUMERICS section 6 (stage 3).
    """

    counts = "pictures"

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        num_latents: int,
        image_size: int,
        target_size: int,
        image_decoder: ImageDecoder,
        trainable: tuple[str, ...],
        condition_drop: float,
        loss_weighting: LossWeighting,
        min_snr_gamma: float | None,
    ) -> None:
        self.trainable = trainable
        self._tokenizer = tokenizer
        self._sizes: dict[str, Any] = {"num_latents": num_latents, "image_size": image_size}
        self._target_size = target_size
        self._image_decoder = image_decoder.requires_grad_(False).eval()
        self._condition_drop = condition_drop
        self._timestep_weights = loss_weights(
            loss_weighting, image_decoder.alphas_cumprod, min_snr_gamma=min_snr_gamma
        )

    def collate(self, records: Sequence[Composed]) -> InstructBatch:
        """Return the prompts as sequences, and their targets."""
        encoded = [encode(record.prompt, self._tokenizer, **self._sizes) for record in records]
        sequences = collate(encoded, pad_id=self._tokenizer.pad_id)
        latents = [record.latents for record in records if record.latents is not None]
        if len(latents) == len(records):
            return InstructBatch(
                sequences=sequences, target_pixels=None, latents=torch.stack(latents)
            )
        pictures = [decoder_pixels(record.target, self._target_size) for record in records]
        pixels = torch.from_numpy(np.stack(pictures))
        return InstructBatch(sequences=sequences, target_pixels=pixels, latents=None)

    def weight(self, batch: InstructBatch) -> int:
        """Return the number of pictures."""
        return len(batch.sequences.input_ids)

    def spread(self, batch: InstructBatch, *, first: int, count: int) -> InstructBatch:
        """Return the batch with timesteps in the middle of `count` equal parts of their range."""
        numbers = torch.arange(first, first + self.weight(batch))
        total = len(self._image_decoder.alphas_cumprod)
        return replace(batch, timesteps=(2 * numbers + 1) * total // (2 * count))

    def loss(
        self, model: KosmosG, batch: InstructBatch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the error, the mean over a picture's latents, summed over pictures."""
        sequences = batch.sequences
        count, device = len(sequences.input_ids), sequences.input_ids.device
        decoder = self._image_decoder.to(device)
        draws = Draws(generator, count=count)
        timesteps = draws.integers(len(decoder.alphas_cumprod), device=device)
        if batch.timesteps is not None:
            timesteps = batch.timesteps
        dropped = draws.coin(self._condition_drop, device=device)

        latents = batch.latents
        if (target_images := batch.target_images) is not None:
            latents = decoder.encode_images(target_images, draws.generators())
        assert latents is not None  # a batch has the one or the other
        latents = latents.float()
        noise = draws.normal(*latents.shape[1:], device=device)
        noisy_latents = decoder.add_noise(latents, noise, timesteps)

        prompt_embeds = model.encode(sequences)
        null_embeds = model.null(self._tokenizer)
        prompt_embeds = torch.where(dropped[:, None, None], null_embeds, prompt_embeds)
        noise_pred = decoder.noise_pred(noisy_latents, timesteps, prompt_embeds)
        errors = (noise_pred.float() - noise).square().flatten(1).mean(1)
        errors = errors * self._timestep_weights.to(device)[timesteps]
        return {"diffusion": errors.sum(), "metric_each_loss": errors.detach()}
