"""Stable Diffusion's text tower, frozen, as stage 2 asks it; and how texts become its ids."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from kosmosg.errors import CheckpointError
from kosmosg.tokenizer import Tokenizer
from kosmosg.train.stage2_align import TextTower

FOLDER = "text_encoder"
_CLIP_FILES = ("vocab.json", "merges.txt")
Ids = Callable[[Sequence[str]], Int[Tensor, "batch queries"]]


def own_ids(
    texts: Sequence[str], tokenizer: Tokenizer, length: int
) -> Int[Tensor, "batch {length}"]:
    """Return the ids of texts for a tower that shares the language model's tokenizer.

    Begin, words, end, and ends as padding; the end is the id after the last of the tokenizer's.
    """
    end = tokenizer.vocab_size
    rows = []
    for text in texts:
        row = [tokenizer.bos_id, *tokenizer.encode(text)][: length - 1]
        rows.append(row + [end] * (length - len(row)))
    return torch.tensor(rows)


def clip_ids(
    texts: Sequence[str], tokenizer: CLIPTokenizer, length: int
) -> Int[Tensor, "batch {length}"]:
    """Return the ids of texts for CLIP's own tower, cut and padded to its length.

    Source:
        NUMERICS section 6: 77 ids, pads are seen.
    """
    found = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True)
    return torch.tensor(found["input_ids"])


def load(
    folders: Sequence[Path], clip_folders: Sequence[Path], tokenizer: Tokenizer, dtype: torch.dtype
) -> TextTower:
    """Return the text tower in the first of these folders that has one.

    Args:
        folders: Of CLIPTextModel, such as `text_encoder/` of Stable Diffusion.
        clip_folders: Where CLIP's vocab.json and merges.txt may be.
        tokenizer: The language model's, which a toy's tower shares.
        dtype: Of its weights.

    Raises:
        CheckpointError: If there is none, or nothing says how texts become its ids.
    """
    folder = next((one for one in folders if (one / "config.json").is_file()), None)
    if folder is None:
        raise CheckpointError(
            "stage 2 imitates Stable Diffusion's text tower, and there is none in"
            f" {' or '.join(map(str, folders)) or 'what was given'}; name a directory of Stable"
            " Diffusion 1.5: model.base=DIR"
        )
    try:
        encoder = CLIPTextModel.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"cannot load {folder}: {reason}; copy it again") from None
    encoder.requires_grad_(False).eval()
    return TextTower(encoder=encoder, ids=_ids(encoder, folder, clip_folders, tokenizer))


def _ids(
    encoder: CLIPTextModel, folder: Path, clip_folders: Sequence[Path], tokenizer: Tokenizer
) -> Ids:
    length = encoder.config.max_position_embeddings
    for found in (folder, *clip_folders):
        if all((found / name).is_file() for name in _CLIP_FILES):
            clip = CLIPTokenizer.from_pretrained(found, local_files_only=True)
            return lambda texts: clip_ids(texts, clip, length)
    if encoder.config.vocab_size == tokenizer.vocab_size + 1:
        return lambda texts: own_ids(texts, tokenizer, length)
    raise CheckpointError(
        f"{folder} has no {' and '.join(_CLIP_FILES)}, by which texts become the ids of CLIP; name"
        " a directory of Stable Diffusion 1.5, whose tokenizer/ has them: model.base=DIR"
    )
