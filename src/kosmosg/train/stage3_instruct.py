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
from kosmosg.sequence import encode, null, with_values
from kosmosg.tokenizer import Tokenizer
from kosmosg.train.cache import TensorCache, key_of
from kosmosg.train.lengths import Groups, group
from kosmosg.train.stage import Draws
from kosmosg.train.weighting import LossWeighting, loss_weights


@dataclass(frozen=True, kw_only=True)
class InstructConfig:
    """Stage 3, over a KosmosG.

    `condition_drop` is how often a prompt is replaced by the null prompt, for guidance.
    `loss_weighting` says how much each timestep counts (`loss_weights`); all alike as released.
    `min_snr_gamma` is for `min_snr` alone. `length_groups` is how many groups of like length a
    micro-batch's prompts are read in, to save padding, the null prompt among them; None: in one,
    and the null prompt by itself. `cache` is a folder that keeps the distribution of each target's
    latents, from which each step draws anew; losses are the same but for rounding.
    `unet_activations` are "recomputed" in the backward pass where memory is short.
    """

    kind: Literal["instruct"] = "instruct"
    trainable: tuple[str, ...]
    condition_drop: float = 0.1
    loss_weighting: LossWeighting = "uniform"
    min_snr_gamma: float | None = None
    length_groups: int | None = None
    cache: str | None = None
    unet_activations: Literal["kept", "recomputed"] = "kept"


@dataclass(frozen=True, kw_only=True, eq=False)
class InstructBatch:
    """Prompts and their targets: pictures, what the VAE makes of them, or the stream's latents.

    Pictures travel as bytes, and are scaled to their ranges where they are used. `keys` are the
    targets' in the cache that lacks any of them. `posterior` holds mean and deviation of each. With
    `null_among`, the last prompt is the null prompt. `timesteps` are given for validation, and
    drawn else.
    """

    sequences: Groups
    null_among: bool = False
    target_pixels: UInt8[Tensor, "batch height width 3"] | None = None
    keys: tuple[str, ...] = ()
    posterior: Float[Tensor, "batch 2 channels latent_height latent_width"] | None = None
    latents: Float[Tensor, "batch channels latent_height latent_width"] | None = None
    timesteps: Int[Tensor, " batch"] | None = None

    @property
    def target_images(self) -> Float[Tensor, "batch 3 height width"] | None:
        """Return the pictures in [-1, 1]."""
        return None if self.target_pixels is None else scaled(self.target_pixels)

    @property
    def count(self) -> int:
        """Return the number of targets."""
        return len(self.sequences.rows) - self.null_among

    def to(self, device: torch.device | str) -> "InstructBatch":
        """Return the batch on another device."""
        tensors = {
            name: None if (value := getattr(self, name)) is None else value.to(device)
            for name in ("target_pixels", "posterior", "latents", "timesteps")
        }
        return replace(self, sequences=self.sequences.to(device), **tensors)


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
        length_groups: int | None = None,
        cache: TensorCache | None = None,
        unet_activations: Literal["kept", "recomputed"] = "kept",
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
        self._length_groups = length_groups
        self._cache = cache
        if unet_activations == "recomputed":
            image_decoder.unet.enable_gradient_checkpointing()

    def collate(self, records: Sequence[Composed]) -> InstructBatch:
        """Return the prompts as sequences, and their targets."""
        encoded = [
            encode(record.prompt, self._tokenizer, **self._sizes, as_bytes=True)
            for record in records
        ]
        null_among = self._length_groups is not None
        sequences = group(
            [*encoded, null(self._tokenizer)] if null_among else encoded,
            num_groups=self._length_groups or 1,
            pad_id=self._tokenizer.pad_id,
        )
        batch = InstructBatch(sequences=sequences, null_among=null_among)
        latents = [record.latents for record in records if record.latents is not None]
        if len(latents) == len(records):
            return replace(batch, latents=torch.stack(latents))
        pictures = [decoder_pixels(record.target, self._target_size) for record in records]
        pixels = torch.from_numpy(np.stack(pictures))
        if self._cache is None:
            return replace(batch, target_pixels=pixels)
        keys = tuple(key_of(picture) for picture in pixels)
        found = [self._cache.get(key) for key in keys]
        known = [one["posterior"] for one in found if one is not None]
        if len(known) < len(keys):
            return replace(batch, target_pixels=pixels, keys=keys)
        return replace(batch, posterior=torch.stack(known))

    def weight(self, batch: InstructBatch) -> int:
        """Return the number of pictures."""
        return batch.count

    def spread(self, batch: InstructBatch, *, first: int, count: int) -> InstructBatch:
        """Return the batch with timesteps in the middle of `count` equal parts of their range."""
        numbers = torch.arange(first, first + self.weight(batch))
        total = len(self._image_decoder.alphas_cumprod)
        return replace(batch, timesteps=(2 * numbers + 1) * total // (2 * count))

    def loss(
        self, model: KosmosG, batch: InstructBatch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the error, the mean over a picture's latents, summed over pictures."""
        device = batch.sequences.rows.device
        decoder = self._image_decoder.to(device)
        draws = Draws(generator, count=batch.count)
        timesteps = draws.integers(len(decoder.alphas_cumprod), device=device)
        if batch.timesteps is not None:
            timesteps = batch.timesteps
        dropped = draws.coin(self._condition_drop, device=device)

        latents = batch.latents
        if latents is None:
            mean, std = self._posterior(batch).unbind(1)
            latents = decoder.sample_latents(mean, std, draws.generators())
        latents = latents.float()
        noise = draws.normal(*latents.shape[1:], device=device)
        noisy_latents = decoder.add_noise(latents, noise, timesteps)

        prompt_embeds, null_embeds = self._conditions(model, batch)
        prompt_embeds = torch.where(dropped[:, None, None], null_embeds, prompt_embeds)
        noise_pred = decoder.noise_pred(noisy_latents, timesteps, prompt_embeds)
        errors = (noise_pred.float() - noise).square().flatten(1).mean(1)
        errors = errors * self._timestep_weights.to(device)[timesteps]
        return {"diffusion": errors.sum(), "metric_each_loss": errors.detach()}

    def _posterior(
        self, batch: InstructBatch
    ) -> Float[Tensor, "batch 2 channels latent_height latent_width"]:
        """Return mean and deviation of each target's latents, and keep new ones."""
        if batch.posterior is not None:
            return batch.posterior
        assert batch.target_images is not None  # a batch has one of the three
        posterior = torch.stack(self._image_decoder.posterior(batch.target_images), 1)
        if self._cache is not None:
            named = zip(batch.keys, posterior, strict=True)
            self._cache.put({key: {"posterior": one} for key, one in named})
        return posterior

    def _conditions(
        self, model: KosmosG, batch: InstructBatch
    ) -> tuple[Float[Tensor, "batch queries embed"], Float[Tensor, "1 queries embed"]]:
        """Return the prompt embeds, and those of the null prompt."""
        parts = [model.encode(with_values(sequences)) for sequences in batch.sequences.batches]
        embeds = torch.cat(parts)[batch.sequences.rows]
        if batch.null_among:
            return embeds[:-1], embeds[-1:]
        return embeds, model.null(self._tokenizer)
