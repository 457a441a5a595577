"""Each stage's products in shape alone: its parts on torch's meta device, run without weights."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from kosmosg import adapter
from kosmosg.adapter import AdapterConfig
from kosmosg.convert.sizes import TEXT_ENCODER, UNET, VAE
from kosmosg.data.sources import DataConfig
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.kosmosg import KosmosG
from kosmosg.model.mllm import MLLM
from kosmosg.train.run import StageConfig
from kosmosg.train.stage import freeze_except
from kosmosg.train.stage1_language import LanguageConfig
from kosmosg.train.stage2_align import AlignConfig
from kosmosg.train.stage3_instruct import InstructConfig
from kosmosg.train.units import Unit, frozen_units, learning_units


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Constructor arguments of each part where they differ from the release's."""

    mllm: Mapping[str, Any] = field(default_factory=dict)
    aligner: Mapping[str, Any] = field(default_factory=dict)
    unet: Mapping[str, Any] = field(default_factory=lambda: UNET)
    vae: Mapping[str, Any] = field(default_factory=lambda: VAE)
    text_encoder: Mapping[str, Any] = field(default_factory=lambda: TEXT_ENCODER)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a record is taken to hold: positions of its sequence, and pictures among them."""

    positions: int
    pictures: float


# Positions without padding. Packed rows of stage 1, with the pictures that fit between captions of
# 18 pieces and in pages (bench/packing.py). Stage 2: 20 pieces. Stage 3: examples of 20 pieces and
# two pictures, edits of 18 and one.
RECORDS: Mapping[str, Record] = {
    "text": Record(positions=2048, pictures=0.0),
    "pairs": Record(positions=2048, pictures=24.0),
    "interleaved": Record(positions=2048, pictures=10.0),
    "captions": Record(positions=21, pictures=0.0),
    "constructed": Record(positions=153, pictures=2.0),
    "edits": Record(positions=85, pictures=1.0),
}
# A picture of the subject and a few words: "a photo of my dog", with the picture's own.
SUBJECT = Record(positions=85, pictures=1.0)
# What a source of another name is taken to hold.
USUAL = {
    "language": "interleaved",
    "align": "captions",
    "align_pictures": "constructed",
    "instruct": "constructed",
}


def mean_record(stage: StageConfig, data: DataConfig | None) -> Record:
    """Return what a record of these sources is taken to hold: by name, in their proportions."""
    usual = RECORDS[USUAL[stage.kind]]
    weights = {} if data is None else {name: one.weight for name, one in data.sources.items()}
    total = sum(weights.values())
    if not total:
        return usual
    held = [(RECORDS.get(name, usual), weight / total) for name, weight in weights.items()]
    return Record(
        positions=round(sum(record.positions * share for record, share in held)),
        pictures=sum(record.pictures * share for record, share in held),
    )


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What tuning to a subject adds to stage 3: an adapter, and prompts whose conditions are kept.

    `beside` prompts that hold `kept` come on each of the subject, and the null prompt on all.
    """

    adapter: AdapterConfig
    beside: int = 0
    kept: Record = RECORDS["constructed"]


@dataclass(frozen=True, kw_only=True)
class PartSize:
    """How many numbers of a part learn, and how many do not."""

    name: str
    learns: int
    frozen: int


class StageShapes:
    """The parts of a stage on the meta device; what learns is marked so.

    Args:
        stage: What learns, and from which loss.
        sizes: Of the parts.
        dtype: Of every weight and product.
        tuning: To a subject, over stage 3.

    Raises:
        ConfigError: If a pattern of the stage matches nothing.
    """

    def __init__(
        self, stage: StageConfig, sizes: Sizes, dtype: torch.dtype, tuning: Tuning | None = None
    ) -> None:
        self.stage, self.dtype, self.tuning = stage, dtype, tuning
        kind = stage.kind
        arguments = {**sizes.aligner, "with_reconstruction": kind == "align"}
        with torch.device("meta"):
            self.mllm = MLLM(**sizes.mllm)
            self.aligner = None if kind == "language" else AlignerNet(**arguments)
            instructs = isinstance(stage, InstructConfig)
            self.unet = _made(UNet2DConditionModel, sizes.unet) if instructs else None
            self.vae = _made(AutoencoderKL, sizes.vae) if instructs else None
            aligns = kind in {"align", "align_pictures"}
            text = CLIPTextModel(CLIPTextConfig(**sizes.text_encoder)) if aligns else None
            model = self.mllm if self.aligner is None else KosmosG(self.mllm, self.aligner)
            if tuning is not None and isinstance(model, KosmosG):
                adapter.add(model, tuning.adapter)
        self.text_encoder = text
        beside = [part for part in (self.unet, self.vae, text) if part is not None]
        self.modules: list[nn.Module] = [model, *beside]
        for part in self.modules:
            nn.Module.to(part, dtype)  # not the parts' own, which would note what it does
        for part in beside:
            part.requires_grad_(False).eval()
        freeze_except(model, stage.trainable)
        model.train(tuning is None)
        if isinstance(stage, AlignConfig) and stage.mllm == "eval":
            self.mllm.eval()

    def sizes(self) -> tuple[PartSize, ...]:
        """Return how many numbers each part has."""
        mllm, aligner = self.mllm, self.aligner
        named = {
            "vision tower": [mllm.vision],
            "resampler": [mllm.resampler],
            "language model": [mllm.embed_tokens, mllm.layers, mllm.layer_norm],
            "aligner M": [] if aligner is None else [aligner.encoder],
            "aligner N": [] if aligner is None or aligner.decoder is None else [aligner.decoder],
            "U-Net": [self.unet] if self.unet is not None else [],
            "VAE": [self.vae] if self.vae is not None else [],
            "text tower": [self.text_encoder] if self.text_encoder is not None else [],
        }
        return tuple(
            PartSize(
                name=name,
                learns=sum(_count(module, learns=True) for module in modules),
                frozen=sum(_count(module, learns=False) for module in modules),
            )
            for name, modules in named.items()
            if modules
        )

    @property
    def frozen_bytes(self) -> int:
        """Return what all that does not learn takes on one GPU.

        What stands beside the model is held in the type of the products, and so is the model where
        none of its own weights learn; else the vision tower's first layers are float32 like the
        last.
        """
        model, *beside = (_count(module, learns=False) for module in self.modules)
        if not isinstance(self.stage, AlignConfig) and self.tuning is None:
            return model * torch.float32.itemsize + sum(beside) * self.dtype.itemsize
        return (model + sum(beside)) * self.dtype.itemsize

    def units(self, frozen: Literal["whole", "sharded"]) -> list[Unit]:
        """Return what travels together where several GPUs share the weights."""
        beside: list[nn.Module] = []
        if frozen == "sharded":
            vae = [] if self.vae is None else list(self.vae.children())
            others = [part for part in (self.unet, self.text_encoder) if part is not None]
            beside = [*others, *vae]
        return [
            *learning_units(self.modules[0], frozen),
            *(unit for part in beside for unit in frozen_units(part)),
        ]

    def passes(self, unit: Unit, count: int) -> int:
        """Return in how many passes a run computes so many records, once called or not.

        Stages 2 and 3 read in groups of like length; of stage 3's the null prompt is one more.
        """
        match self.stage:
            case AlignConfig():
                return min(self.stage.length_groups, count)
            case InstructConfig() if unit.kind != "frozen":
                groups = self.stage.length_groups
                return 2 if groups is None else min(groups, count + 1)
        return 1

    @property
    def num_terms(self) -> int:
        """Return how many values of the loss the loop adds up."""
        return 2 if isinstance(self.stage, LanguageConfig | AlignConfig) else 1

    # ------------------------------------------------------------------- each stage's products

    def loss(self, count: int, record: Record) -> Tensor:
        """Return the loss of so many records; what it took is `Tally`'s to count."""
        pictures = round(count * record.pictures)
        hidden_states, mask = self._read(count, record.positions, pictures=pictures)
        total = self._pictures(pictures) if pictures else self._zeros(1).sum()
        match self.stage:
            case LanguageConfig():
                # All but pictures, brackets included, is words: each predicted, and `</s>`.
                inside = pictures * (2 + self.mllm.config["num_latents"])
                predicted = hidden_states.flatten(0, 1)[: count * record.positions - inside]
                logits = self.mllm.logits(predicted).float()
                labels = torch.zeros(len(logits), dtype=torch.long, device="meta")
                return total + F.cross_entropy(logits, labels, reduction="sum")
            case InstructConfig():
                total = total + self._noise_error(count, hidden_states, mask)
                return total if self.tuning is None else total + self._kept_error(count)
        assert self.aligner is not None  # stage 2 has one
        assert self.text_encoder is not None
        embeds = self.aligner(hidden_states, mask)
        ids = torch.zeros(count, embeds.shape[1], dtype=torch.long, device="meta")
        with torch.no_grad():
            wanted = self.text_encoder(input_ids=ids).last_hidden_state
        total = total + (embeds - wanted).square().sum()
        if self.aligner.decoder is None:
            return total
        restored = self.aligner.reconstruct(embeds, record.positions, mask)
        return total + (restored - hidden_states).square().sum()

    def _read(self, count: int, positions: int, *, pictures: int = 0) -> tuple[Tensor, Tensor]:
        ids = torch.zeros(count, positions, dtype=torch.long, device="meta")
        mask = torch.ones_like(ids, dtype=torch.bool)
        with ExitStack() as held:
            # Gradients go on to the latents of pictures, which the layers' own norms, where they
            # learn, ask for anyway.
            if pictures and self.tuning is not None and torch.is_grad_enabled():
                hook = self.mllm.embed_tokens.register_forward_hook(_learned_through)
                held.callback(hook.remove)
            return self.mllm(ids, mask), mask

    def _pictures(self, count: int) -> Tensor:
        """Return a sum over the latents of pictures, whose gradient costs what that of slots does.

        How many slots there are, the model would have to ask the device.
        """
        side = self.mllm.config["image_size"]
        return self.mllm.encode_images(self._zeros(count, 3, side, side)).sum()

    def _noise_error(self, count: int, hidden_states: Tensor, mask: Tensor) -> Tensor:
        assert self.aligner is not None
        assert self.unet is not None
        assert self.vae is not None
        null_states, null_mask = self._read(1, 1)
        null_embeds = self.aligner(null_states, null_mask)
        side = self.unet.config["sample_size"]
        pixels = side * 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        with torch.no_grad():
            self.vae.encode(self._zeros(count, 3, pixels, pixels), return_dict=False)
        dropped = torch.zeros(count, 1, 1, dtype=torch.bool, device="meta")
        embeds = torch.where(dropped, null_embeds, self.aligner(hidden_states, mask))
        noise = self._zeros(count, self.unet.config["in_channels"], side, side)
        timesteps = torch.zeros(count, dtype=torch.long, device="meta")
        noise_pred = self.unet(noise, timesteps, embeds, return_dict=False)[0]
        return (noise_pred.float() - noise).square().sum()

    def _kept_error(self, count: int) -> Tensor:
        assert self.tuning is not None
        held = self.tuning.kept if self.tuning.beside else Record(positions=1, pictures=0.0)
        prompts = count * self.tuning.beside
        with torch.no_grad(), adapter.left_out(self.modules[0]):
            wanted = self._condition(prompts + 1, held.positions, round(prompts * held.pictures))
        kept = self._condition(prompts + 1, held.positions, round(prompts * held.pictures))
        return (kept - wanted).square().sum()

    def _condition(self, count: int, positions: int, pictures: int) -> Tensor:
        assert self.aligner is not None
        embeds = self.aligner(*self._read(count, positions, pictures=pictures))
        return embeds + self._pictures(pictures) if pictures else embeds

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=self.dtype, device="meta")


def _learned_through(_module: nn.Module, _given: Any, result: Tensor) -> Tensor:  # noqa: ANN401
    return result.requires_grad_()


def _count(module: nn.Module, *, learns: bool) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad == learns)


def _made(cls: Any, config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - diffusers says a tuple too
    return cls.from_config(dict(config))
