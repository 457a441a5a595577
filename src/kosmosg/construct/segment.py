"""Words to pixels: which part of a picture a phrase means, and that part cut out."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageOps

from kosmosg.errors import CheckpointError
from kosmosg.images import clip_view, to_rgb
from kosmosg.tokenizer import DICTIONARY_FILE, Tokenizer

# Of pictures and as many phrases: how likely each pixel is the phrase's, at the model's resolution.
Segmenter: TypeAlias = Callable[[Sequence[Image.Image], Sequence[str]], list[np.ndarray]]
Box: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom; the last two are outside

THRESHOLD = 0.3
# A probability this close to 0 or 1 has no logit worth telling apart.
_MARGIN = 1e-6


def clipseg(directory: Path, *, device: torch.device, dtype: torch.dtype) -> Segmenter:
    """Return CLIPSeg of a directory as a segmenter.

    A CLIPSeg of ours, such as nano's, has no processor of its own: it reads what our CLIP sees and
    the ids of our tokenizer, which lies beside it.

    Raises:
        CheckpointError: If the directory has neither a processor nor our tokenizer beside it.

    Source:
        Paper section 3.1, NUMERICS section 9.
    """
    from transformers import CLIPSegForImageSegmentation

    model: Any = CLIPSegForImageSegmentation.from_pretrained(
        directory, local_files_only=True, dtype=dtype, use_safetensors=True
    )
    model.eval().requires_grad_(False).to(device)
    if (directory.parent / "tokenizer" / DICTIONARY_FILE).is_file():
        prepare = _prepare_ours(directory, model.config.vision_config.image_size)
    else:
        prepare = _prepare_theirs(directory, model.config.text_config.max_position_embeddings)

    def segment(images: Sequence[Image.Image], phrases: Sequence[str]) -> list[np.ndarray]:
        if not images:
            return []
        inputs = {name: value.to(device) for name, value in prepare(images, phrases).items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        with torch.inference_mode():
            logits = model(**inputs).logits.float()
        side = logits.shape[-1]  # of one picture alone the model drops the batch
        return list(logits.sigmoid().reshape(-1, side, side).cpu().numpy())

    return segment


Inputs: TypeAlias = dict[str, torch.Tensor]


def _prepare_theirs(
    directory: Path, max_length: int
) -> Callable[[Sequence[Image.Image], Sequence[str]], Inputs]:
    from transformers import CLIPSegProcessor

    try:
        processor: CLIPSegProcessor = CLIPSegProcessor.from_pretrained(
            directory, local_files_only=True, backend="pil"
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{directory} has no processor that can be read"
            f" ({' '.join(str(error).split())[:120]}); fetch the whole directory again"
        ) from None

    def prepare(images: Sequence[Image.Image], phrases: Sequence[str]) -> Inputs:
        words = processor.tokenizer(
            list(phrases),
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        rgb = [to_rgb(image) for image in images]
        pixels = processor.image_processor(rgb, return_tensors="pt")["pixel_values"]
        return {**words, "pixel_values": pixels}

    return prepare


def _prepare_ours(
    directory: Path, image_size: int
) -> Callable[[Sequence[Image.Image], Sequence[str]], Inputs]:
    tokenizer = Tokenizer.from_pretrained(directory.parent / "tokenizer")

    def prepare(images: Sequence[Image.Image], phrases: Sequence[str]) -> Inputs:
        end = tokenizer.vocab_size  # the end of a text has the id after the last word
        rows = [[tokenizer.bos_id, *tokenizer.encode(phrase), end] for phrase in phrases]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [end] * (longest - len(row)) for row in rows])
        pixels = torch.stack([clip_view(image, image_size) for image in images])
        return {"input_ids": ids, "pixel_values": pixels}

    return prepare


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """A thing of a picture: its pixels there, and cut out with and without its background."""

    mask: Bool[np.ndarray, "height width"]
    crop: Image.Image
    cutout: Image.Image


def cut(
    image: Image.Image,
    probabilities: Float[np.ndarray, "rows columns"],
    *,
    threshold: float,
    size: int,
) -> Cut | None:
    """Return what a segmenter found in a picture, cut out; None if it found nothing.

    Args:
        image: In RGB.
        probabilities: Of its pixels, at any resolution.
        threshold: Between 0 and 1; pixels above it count.
        size: Of both crops, in pixels.

    Source:
        NUMERICS section 9.
    """
    mask = largest_part(dilate(mask_of(probabilities, image.size, threshold=threshold)))
    if not mask.any():
        return None
    box = square_box(mask)
    crop = image.crop(box)
    alpha = Image.fromarray(mask).crop(box)
    cutout = Image.composite(crop, Image.new("RGB", crop.size, "white"), alpha)
    return Cut(mask=mask, crop=_square(crop, size), cutout=_square(cutout, size))


def mask_of(
    probabilities: Float[np.ndarray, "rows columns"], size: tuple[int, int], *, threshold: float
) -> Bool[np.ndarray, "height width"]:
    """Return which pixels of a picture of this size (width, height) are likelier than a threshold.

    Between the model's pixels logits are interpolated, not probabilities, as in the release: it
    moves the edge by a fraction of one of them.
    """
    inside = np.clip(probabilities.astype(np.float64), _MARGIN, 1 - _MARGIN)
    logits = Image.fromarray(np.log(inside / (1 - inside)).astype(np.float32))
    larger = np.asarray(logits.resize(size, Image.Resampling.BILINEAR))
    return larger > np.float32(np.log(threshold / (1 - threshold)))


def dilate(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Return the mask with a margin: each pixel spreads over a square of a hundredth of the side.

    Of an even square the larger half lies above and to the left, as in scipy's grey_dilation, which
    the release uses and which nothing else here needs. Below 200 pixels nothing changes.
    """
    width = min(mask.shape) // 100
    for axis in (0, 1):
        grown = mask.copy()
        for step in range(1, width // 2 + 1):
            grown |= _shifted(mask, -step, axis)
        for step in range(1, (width - 1) // 2 + 1):
            grown |= _shifted(mask, step, axis)
        mask = grown
    return mask


def _shifted(mask: np.ndarray, by: int, axis: int) -> np.ndarray:
    moved = np.roll(mask, by, axis)
    edge = [slice(None)] * mask.ndim
    edge[axis] = slice(by, None) if by < 0 else slice(0, by)
    moved[tuple(edge)] = False
    return moved


def largest_part(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Return the largest of the mask's parts that hang together by sides; the first of equals.

    Deviation: the release counts what lies in a part's bounding box, other parts included.
    """
    rows, starts, ends = _runs(mask)
    parents = list(range(len(rows)))

    def root(one: int) -> int:
        while parents[one] != one:
            parents[one] = parents[parents[one]]
            one = parents[one]
        return one

    above = 0  # the first run of the row above that may touch
    for one in range(len(rows)):
        while above < one and (
            rows[above] < rows[one] - 1
            or (rows[above] == rows[one] - 1 and ends[above] <= starts[one])
        ):
            above += 1
        other = above
        while other < one and rows[other] == rows[one] - 1 and starts[other] < ends[one]:
            first, second = sorted((root(other), root(one)))
            parents[second] = first
            other += 1
    if not rows:
        return np.zeros_like(mask)
    roots = np.array([root(one) for one in range(len(rows))])
    areas = np.bincount(roots, np.subtract(ends, starts))
    part = np.zeros_like(mask)
    for one in np.flatnonzero(roots == areas.argmax()):
        part[rows[one], starts[one] : ends[one]] = True
    return part


def _runs(mask: np.ndarray) -> tuple[list[int], list[int], list[int]]:
    """Return row, first and last + 1 column of each run of True, row by row."""
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), np.int8)
    padded[:, 1:-1] = mask
    changes = np.diff(padded, axis=1)
    rows, starts = np.nonzero(changes == 1)
    ends = np.nonzero(changes == -1)[1]
    return rows.tolist(), starts.tolist(), ends.tolist()


def largest_overlap(masks: Sequence[Bool[np.ndarray, "height width"]]) -> float:
    """Return the largest overlap of any two masks of a picture, 0 to 1; 0 of fewer than two.

    It is intersection over union: near 1 only where both are nearly the same pixels. Over the
    smaller of the two instead, a hat would be taken for the man who wears it.
    """
    pairs = itertools.combinations(masks, 2)
    return max((float((a & b).sum() / max(1, (a | b).sum())) for a, b in pairs), default=0.0)


def square_box(mask: Bool[np.ndarray, "height width"]) -> Box:
    """Return the square around the mask's pixels, moved into the picture where it leaves it.

    Where the thing is longer than the picture's other side, the box is clipped to the picture.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    side = max(bottom - top, right - left)
    start_x, end_x = _span((left + right) // 2, side, mask.shape[1])
    start_y, end_y = _span((top + bottom) // 2, side, mask.shape[0])
    return start_x, start_y, end_x, end_y


def _span(centre: int, side: int, most: int) -> tuple[int, int]:
    start = max(0, min(centre - side // 2, most - side))
    return start, min(start + side, most)


def _square(image: Image.Image, size: int) -> Image.Image:
    """Return the picture resized to a square; a clipped one stands on white, not stretched."""
    if image.width == image.height:
        return image.resize((size, size), Image.Resampling.BICUBIC)
    return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, color="white")
