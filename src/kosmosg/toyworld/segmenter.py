"""The toy world's CLIPSeg: words that name a creature to the pixels that are it.

transformers' own class at toy size, trained from nothing on drawn scenes and the renderer's masks.
A prompt's mask is the creature that its words fit best, or all that they fit alike; words of which
neither the shape nor the colour is there have none. Masks alone teach such a small vision
tower no words for long: as in `vision.py` each patch also says which creature it shows, and each
prompt which one it names.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from kosmosg.construct.segment import THRESHOLD
from kosmosg.images import CLIP_MEAN, CLIP_STD
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld.captions import Detail, name
from kosmosg.toyworld.foundation import TEXT_LENGTH, text_ids
from kosmosg.toyworld.render import render
from kosmosg.toyworld.scenes import Scene, Subject, is_held_out, sample_subject
from kosmosg.toyworld.vision import IGNORED, SUBJECT_WIDTHS, patch_words, subject_words

SIZE = 64
PATCH = 8
WIDTH = 144  # of the vision tower
PROJECTION = 64  # of prompts
PROMPTS = 2  # of each scene in training: the vision tower's work is shared
ABSENT = 0.2  # how many of them name some other creature
MISTAKEN = 0.3  # how many say of a creature what is true of another one, as captions do
# How often a prompt says each attribute; captions say most of them.
_SAID = {"shape": 0.92, "colour": 0.93, "pattern": 0.85, "accessory": 0.85, "size": 0.3}
_WORN = ("pattern", "pattern_colour", "accessory")
Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


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
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": SIZE,
            "patch_size": PATCH,
        },
        projection_dim=PROJECTION,
        extract_layers=[0, 1, 2],
        reduce_dim=72,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=144,
    )
    model = CLIPSegForImageSegmentation(config)
    # The class draws these with a deviation of 1, thirty times too much to learn words through.
    for path, module in model.decoder.named_modules():
        if isinstance(module, nn.Linear | nn.ConvTranspose2d) and not path.startswith("layers."):
            module.reset_parameters()
    model.set_attn_implementation("eager")  # 65 positions: plain products are faster on a CPU
    return model


class GroundedSegmenter(nn.Module):
    """The segmenter, and linear readers of its patches and prompts that only training needs.

    The segmenter's own `forward` keeps both towers under `no_grad`: the class is made for a
    finished CLIP. This one gives the same logits, with gradients.
    """

    def __init__(self, segmenter: CLIPSegForImageSegmentation) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.shown = nn.Linear(WIDTH, sum(SUBJECT_WIDTHS))
        self.said = nn.Linear(PROJECTION, sum(SUBJECT_WIDTHS))

    def forward(
        self,
        pixel_values: Float[Tensor, "images 3 size size"],
        input_ids: Int[Tensor, "prompts seq"],
    ) -> tuple[
        Float[Tensor, "prompts size size"],
        Float[Tensor, "images patches words"],
        Float[Tensor, "prompts words"],
    ]:
        """Return the logits of masks, equally many for each image, and of words.

        Of the words that each patch shows, and those that each prompt says.
        """
        clip, decoder = self.segmenter.clip, self.segmenter.decoder
        each = len(input_ids) // len(pixel_values)
        hidden_states = clip.vision_model.embeddings(pixel_values)
        hidden_states = clip.vision_model.pre_layrnorm(hidden_states)
        activations = []
        for layer in clip.vision_model.encoder.layers:
            hidden_states = layer(hidden_states, None)
            activations.append(hidden_states.repeat_interleave(each, 0))
        prompts = clip.text_projection(clip.text_model(input_ids).pooler_output)
        chosen = [activations[index] for index in self.segmenter.config.extract_layers]
        masks = decoder(chosen, prompts).logits
        patches = clip.vision_model.post_layernorm(hidden_states[:, 1:])
        return masks, self.shown(patches), self.said(prompts)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Words, which of a scene's subjects they mean, and what they say of each kind of word."""

    words: str
    slots: tuple[int, ...]
    said: tuple[int, ...]


def asked(scene: Scene) -> list[Asked]:
    """Return the prompts of a scene; they follow from it. None names a held-out combination."""
    rng = np.random.default_rng([scene.seed, 3])
    first = int(rng.integers(len(scene.subjects)))
    return [_asked(scene, first + number, rng) for number in range(PROMPTS)]


def _asked(scene: Scene, number: int, rng: np.random.Generator) -> Asked:
    subjects = scene.subjects
    subject, other = subjects[number % len(subjects)], subjects[(number + 1) % len(subjects)]
    coins = rng.random(3 + len(_SAID)).tolist()
    if len(subjects) == 1 or coins[0] < ABSENT:
        other = sample_subject(rng)
    if coins[0] < ABSENT:
        subject = other
    elif coins[1] < MISTAKEN:
        subject = _mistaken(subject, other, ("shape",) if coins[2] < 0.2 else _WORN)
    said = {
        what
        for (what, probability), coin in zip(_SAID.items(), coins[3:], strict=True)
        if coin < probability
    }
    detail = Detail(**{what: float(what in said) for what in _SAID})
    words = name(subject, rng, detail, alone=len(subjects) == 1)
    slots = _meant(subject, said, subjects)
    return Asked(words=words, slots=slots, said=_said(subject, said))


def _said(subject: Subject, said: set[str]) -> tuple[int, ...]:
    """Return the number of each word that is said, `IGNORED` where none is."""
    shape, colour, pattern, pattern_colour, accessory = subject_words(subject)
    has_pattern = "pattern" in said and subject.pattern != "plain"
    return (
        shape if "shape" in said else IGNORED,
        colour if "colour" in said else IGNORED,
        pattern if has_pattern else IGNORED,
        pattern_colour if has_pattern else IGNORED,
        accessory if "accessory" in said and subject.accessory != "none" else IGNORED,
    )


def _mistaken(subject: Subject, other: Subject, what: tuple[str, ...]) -> Subject:
    changed = replace(subject, **{attribute: getattr(other, attribute) for attribute in what})
    unseen = is_held_out(changed.shape, changed.colour, changed.pattern)
    return subject if unseen else changed


def _meant(subject: Subject, said: set[str], others: Sequence[Subject]) -> tuple[int, ...]:
    """Return which subjects fit words best that say this much of `subject`: first by the body."""
    body = said & {"shape", "colour"}
    worn = said & {"accessory"} if subject.accessory != "none" else set[str]()
    if "pattern" in said and subject.pattern != "plain":  # no word says plain
        worn |= {"pattern", "pattern_colour"}
    slots = list(range(len(others)))
    for words in (body, worn):
        fits = [
            sum(getattr(subject, w) == getattr(others[slot], w) for w in words) for slot in slots
        ]
        if words and max(fits) == 0 and (words is body or not body):
            return ()
        slots = [slot for slot, fit in zip(slots, fits, strict=True) if fit == max(fits)]
    return tuple(slots)


@dataclass(frozen=True, kw_only=True)
class SegmenterStage:
    """Cross entropy of pixels and the Dice loss, and the words of patches and prompts."""

    tokenizer: Tokenizer
    # Not CLIP's projection of pictures and its temperature: nothing comes from there.
    trainable: tuple[str, ...] = (
        "segmenter.clip.text_*",
        "segmenter.clip.vision_model.*",
        "segmenter.decoder.*",
        "shown.*",
        "said.*",
    )

    def collate(self, records: Sequence[Scene]) -> Batch:
        """Draw the scenes; return pixels, prompts' ids and masks, what is shown, what is said."""
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
            patch_words(records, masks, SIZE // PATCH),
            torch.tensor([prompt.said for of_scene in prompts for prompt in of_scene]),
        )

    def weight(self, batch: Batch) -> int:
        """Return the number of prompts."""
        return len(batch[1])

    def loss(
        self,
        model: GroundedSegmenter,
        batch: Batch,
        generator: torch.Generator,  # noqa: ARG002 - nothing here is random
    ) -> dict[str, Tensor]:
        """Return the losses summed over prompts, and how far masks and truth overlap."""
        pixels, ids, targets, shown, said = batch
        logits, read_shown, read_said = (made.float() for made in model(pixels, ids))
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
            "shown": 0.1 * len(ids) * _words_loss(read_shown.flatten(0, 1), shown.flatten(0, 1)),
            "said": 0.1 * len(ids) * _words_loss(read_said, said),
            "metric_overlap": overlap.sum(),
        }


def _words_loss(
    scores: Float[Tensor, "places words"], known: Int[Tensor, "places kinds"]
) -> Float[Tensor, ""]:
    """Return the cross entropy, the mean of each kind of word where it is known, summed."""
    kinds = zip(scores.split(SUBJECT_WIDTHS, dim=-1), known.unbind(-1), strict=True)
    losses = [
        F.cross_entropy(one, right, ignore_index=IGNORED, reduction="sum")
        / (right != IGNORED).sum().clamp(min=1)  # plain creatures alone have no second colour
        for one, right in kinds
    ]
    return torch.stack(losses).sum()


def _ids(words: Sequence[str], tokenizer: Tokenizer) -> Int[Tensor, "prompts seq"]:
    """Return what the text tower reads, without the ends that pad every row."""
    ids = text_ids(words, tokenizer)
    return ids[:, : int((ids != tokenizer.vocab_size).sum(1).max()) + 1]
