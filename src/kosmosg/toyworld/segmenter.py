"""The toy world's CLIPSeg: words that name a creature to the pixels that are it.

transformers' own class at toy size, trained from nothing on drawn scenes and the renderer's masks.
A prompt's mask is every creature of the picture that the words are true of, so one name may have
two masks' pixels, and words for what is not there have none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from kosmosg.errors import CheckpointError
from kosmosg.images import CLIP_MEAN, CLIP_STD, clip_view
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld.captions import Detail, name
from kosmosg.toyworld.foundation import TEXT_LENGTH, text_ids
from kosmosg.toyworld.render import render
from kosmosg.toyworld.scenes import Scene, Subject, sample_subject

SIZE = 64
PROMPTS = 2  # of each scene in training: the vision tower's work is shared
ABSENT = 0.2  # how many of them name some other creature
THRESHOLD = 0.3  # NUMERICS section 9
BATCH = 64
# How often a prompt says each attribute; captions say most of them.
_SAID = {"shape": 0.92, "colour": 0.93, "pattern": 0.85, "accessory": 0.85, "size": 0.3}
Batch = tuple[Tensor, Tensor, Tensor]


def build_segmenter(vocab_size: int) -> CLIPSegForImageSegmentation:
    """Return a CLIPSeg for 64 px, 1.2M parameters; end-of-text has the highest id."""
    end = vocab_size
    config = CLIPSegConfig(
        text_config={
            "vocab_size": vocab_size + 1,
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": TEXT_LENGTH,
            "bos_token_id": 0,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        vision_config={
            "hidden_size": 144,
            "intermediate_size": 576,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": SIZE,
            "patch_size": 8,
        },
        projection_dim=64,
        extract_layers=[0, 1, 2],
        reduce_dim=72,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=144,
    )
    model = CLIPSegForImageSegmentation(config)
    model.set_attn_implementation("eager")  # 65 positions: plain products are faster on a CPU
    return model


def mask_logits(
    model: CLIPSegForImageSegmentation,
    pixel_values: Float[Tensor, "images 3 size size"],
    input_ids: Int[Tensor, "prompts seq"],
) -> Float[Tensor, "prompts size size"]:
    """Return what the model's own `forward` gives, with gradients; each image has equally many.

    `forward` keeps both towers under `no_grad`: the class is made for a finished CLIP.
    """
    vision = model.clip.vision_model
    each = len(input_ids) // len(pixel_values)
    hidden_states = vision.pre_layrnorm(vision.embeddings(pixel_values))
    activations = []
    for layer in vision.encoder.layers:
        hidden_states = layer(hidden_states, None)
        activations.append(hidden_states.repeat_interleave(each, 0))
    pooled = model.clip.text_model(input_ids).pooler_output
    chosen = [activations[index] for index in model.config.extract_layers]
    return model.decoder(chosen, model.clip.text_projection(pooled)).logits


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Words, and which of a scene's subjects they are true of."""

    words: str
    slots: tuple[int, ...]


def asked(scene: Scene) -> list[Asked]:
    """Return the prompts of a scene; they follow from it. None names a held-out combination."""
    rng = np.random.default_rng([scene.seed, 3])
    first = int(rng.integers(len(scene.subjects)))
    return [
        _asked(scene, scene.subjects[(first + number) % len(scene.subjects)], rng)
        for number in range(PROMPTS)
    ]


def _asked(scene: Scene, subject: Subject, rng: np.random.Generator) -> Asked:
    if rng.random() < ABSENT:
        subject = sample_subject(rng)
    coins = dict(zip(_SAID, rng.random(len(_SAID)).tolist(), strict=True))
    said = {what for what, probability in _SAID.items() if coins[what] < probability}
    detail = Detail(**{what: float(what in said) for what in _SAID})
    words = name(subject, rng, detail, alone=len(scene.subjects) == 1)
    slots = (slot for slot, other in enumerate(scene.subjects) if _true(subject, said, other))
    return Asked(words=words, slots=tuple(slots))


def _true(subject: Subject, said: set[str], other: Subject) -> bool:
    """Return whether words that say this much of `subject` are true of `other`, size aside."""
    if subject.pattern == "plain":
        said = said - {"pattern"}  # no word says so
    if subject.accessory == "none":
        said = said - {"accessory"}
    if "pattern" in said and subject.pattern_colour != other.pattern_colour:
        return False
    return all(getattr(subject, what) == getattr(other, what) for what in said - {"size"})


@dataclass(frozen=True, kw_only=True)
class SegmenterStage:
    """Cross entropy of pixels and the Dice loss, each a mean over a prompt's picture."""

    tokenizer: Tokenizer
    # Not CLIP's last norm and projection of pictures: masks do not come from there.
    trainable: tuple[str, ...] = (
        "clip.text_model.*",
        "clip.text_projection.*",
        "clip.vision_model.embeddings.*",
        "clip.vision_model.pre_layrnorm.*",
        "clip.vision_model.encoder.*",
        "decoder.*",
    )

    def collate(self, records: Sequence[Scene]) -> Batch:
        """Draw the scenes; return pixels, the prompts' ids and their masks."""
        drawn, masks = render(records, SIZE)
        pixels = (drawn.astype(np.float32) / 255 - CLIP_MEAN) / CLIP_STD
        prompts = [asked(scene) for scene in records]
        targets = [
            masks[index, list(prompt.slots)].any(0)
            for index, of_scene in enumerate(prompts)
            for prompt in of_scene
        ]
        words = [prompt.words for of_scene in prompts for prompt in of_scene]
        return (
            torch.from_numpy(pixels).permute(0, 3, 1, 2).float(),
            _ids(words, self.tokenizer),
            torch.from_numpy(np.stack(targets)).float(),
        )

    def weight(self, batch: Batch) -> int:
        """Return the number of prompts."""
        return len(batch[1])

    def loss(
        self,
        model: CLIPSegForImageSegmentation,
        batch: Batch,
        generator: torch.Generator,  # noqa: ARG002 - nothing here is random
    ) -> dict[str, Tensor]:
        """Return the losses summed over prompts, and how far masks and truth overlap."""
        pixels, ids, targets = batch
        logits = mask_logits(model, pixels, ids).float()
        errors = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        found = logits.sigmoid()
        both = (found * targets).sum((1, 2))
        dice = 1 - (2 * both + 1) / (found.sum((1, 2)) + targets.sum((1, 2)) + 1)
        with torch.no_grad():
            seen, there = found > THRESHOLD, targets > 0.5
            union = (seen | there).sum((1, 2))
            overlap = torch.where(union > 0, (seen & there).sum((1, 2)) / union.clamp(min=1), 1.0)
        return {
            "pixels": errors.mean((1, 2)).sum(),
            "dice": 0.2 * dice.sum(),
            "metric_overlap": overlap.sum(),
        }


def _ids(words: Sequence[str], tokenizer: Tokenizer) -> Int[Tensor, "prompts seq"]:
    """Return what the text tower reads, without the ends that pad every row."""
    ids = text_ids(words, tokenizer)
    return ids[:, : int((ids != tokenizer.vocab_size).sum(1).max()) + 1]


Segmenter = Callable[[Sequence[Image.Image], Sequence[str]], list[np.ndarray]]


def nano_segmenter(directory: Path) -> Segmenter:
    """Return a function from pictures and one phrase each to probability maps, 64 x 64 float32.

    Args:
        directory: A model's, with the parts segmenter/ and tokenizer/.

    Raises:
        CheckpointError: If the segmenter is not there.
    """
    folder = directory / "segmenter"
    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(
            f"{folder} has no weights: train it (kosmosg train nano-segmenter), or give a model"
            " that has it (nano has)"
        )
    model = CLIPSegForImageSegmentation.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
    ).eval()
    tokenizer = Tokenizer.from_pretrained(directory / "tokenizer")

    @torch.no_grad()
    def segment(pictures: Sequence[Image.Image], phrases: Sequence[str]) -> list[np.ndarray]:
        maps: list[np.ndarray] = []
        for start in range(0, len(pictures), BATCH):
            shown = [clip_view(picture, SIZE) for picture in pictures[start : start + BATCH]]
            ids = _ids(phrases[start : start + BATCH], tokenizer)
            logits = model(input_ids=ids, pixel_values=torch.stack(shown)).logits
            maps += list(logits.sigmoid().reshape(-1, SIZE, SIZE).numpy())
        return maps

    return segment
