"""Tuning to one subject: stage 3's loss on its prompts, and others' conditions kept as they were.

What an adapter learns of a subject it must not do to other prompts. Their conditions, with the
adapter, are held to those without it: a pass of the language model and M, and none of the U-Net.

Source:
    Not in the paper. Learning without forgetting, with the model itself as the teacher; DreamBooth
    has pictures of other things learned beside the subject instead.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kosmosg import adapter
from kosmosg.data.compose import Composed
from kosmosg.data.mixture import Stream
from kosmosg.model.kosmosg import KosmosG
from kosmosg.sequence import Prompt, encode, null, with_values
from kosmosg.tokenizer import Tokenizer
from kosmosg.train.lengths import Groups, group
from kosmosg.train.stage2_align import squared_errors
from kosmosg.train.stage3_instruct import InstructBatch, InstructStage


@dataclass(frozen=True, kw_only=True, eq=False)
class Beside:
    """A prompt of the subject with its target, and prompts of other things beside it."""

    shown: Composed
    kept: tuple[Prompt, ...]

    @property
    def key(self) -> str:
        """Return the key of the subject's prompt."""
        return self.shown.key


class BesideStream:
    """The subject's prompts, each with the next `count` of the prior beside it.

    Args:
        subject: Gives `Composed`.
        prior: Too; of its records the prompts alone are used. None: nothing stands beside.
        count: Prompts of the prior on each of the subject.
    """

    def __init__(self, subject: Stream, prior: Stream | None, *, count: int) -> None:
        self._subject = subject
        self._prior = prior
        self._count = count

    def batch(self, step: int, size: int) -> list[Beside]:
        """Return records number `step * size` to `(step + 1) * size - 1`."""
        shown = self._subject.batch(step, size)
        return [
            Beside(shown=one, kept=self._kept(index))
            for index, one in enumerate(shown, step * size)
        ]

    def _kept(self, index: int) -> tuple[Prompt, ...]:
        if self._prior is None:
            return ()
        return tuple(record.prompt for record in self._prior.batch(index, self._count))


@dataclass(frozen=True, kw_only=True, eq=False)
class SubjectBatch:
    """Stage 3's batch of the subject's prompts; the others' prompts, the null prompt last."""

    shown: InstructBatch
    kept: Groups

    def to(self, device: torch.device | str) -> "SubjectBatch":
        """Return the batch on another device."""
        return SubjectBatch(shown=self.shown.to(device), kept=self.kept.to(device))


class SubjectStage:
    """Stage 3's loss on the subject, and the squared error of others' conditions to what they were.

    Dropout is off: it would blur what is to be kept. The null prompt is kept too, as guidance
    leads away from what is drawn under it.

    Args:
        instruct: Stage 3, for the subject's prompts.
        tokenizer: Of the others' prompts.
        num_latents: Positions of a picture.
        image_size: Side of a picture as the vision tower sees it.
        keep_weight: What the error of the kept conditions is multiplied by.
    """

    counts = "pictures"

    def __init__(
        self,
        instruct: InstructStage,
        *,
        tokenizer: Tokenizer,
        num_latents: int,
        image_size: int,
        keep_weight: float,
    ) -> None:
        self.trainable = instruct.trainable
        self._instruct = instruct
        self._tokenizer = tokenizer
        self._sizes: dict[str, Any] = {"num_latents": num_latents, "image_size": image_size}
        self._keep_weight = keep_weight

    def collate(self, records: Sequence[Beside]) -> SubjectBatch:
        """Return the subject's prompts and targets, and the others' prompts."""
        prompts = [prompt for record in records for prompt in record.kept]
        encoded = [encode(one, self._tokenizer, **self._sizes, as_bytes=True) for one in prompts]
        return SubjectBatch(
            shown=self._instruct.collate([record.shown for record in records]),
            kept=group(
                [*encoded, null(self._tokenizer)], num_groups=1, pad_id=self._tokenizer.pad_id
            ),
        )

    def weight(self, batch: SubjectBatch) -> int:
        """Return the number of the subject's pictures."""
        return self._instruct.weight(batch.shown)

    def sharded(self, shard: Callable[[nn.Module], None]) -> "SubjectStage":
        """Return one like it whose U-Net and VAE are sharded."""
        made = copy.copy(self)
        made._instruct = self._instruct.sharded(shard)
        return made

    def loss(
        self, model: KosmosG, batch: SubjectBatch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return both, summed over the subject's prompts.

        What is kept beside one of them is a mean, over the others' prompts and the null prompt.
        """
        model.eval()
        with torch.no_grad(), adapter.left_out(model):
            wanted = _conditions(model, batch.kept)
        errors = squared_errors(_conditions(model, batch.kept), wanted)
        count = self.weight(batch)
        kept = errors[:-1].sum() + count * errors[-1]
        beside = (len(errors) - 1) / count + 1
        return {
            "loss/diffusion": self._instruct.loss(model, batch.shown, generator)["diffusion"],
            "loss/keep": self._keep_weight * kept / beside,
        }


def _conditions(model: KosmosG, sequences: Groups) -> Float[Tensor, "batch queries embed"]:
    parts = [model.encode(with_values(batch)) for batch in sequences.batches]
    return torch.cat(parts)[sequences.rows]
