"""Pictures to captions: BLIP-2, or a language model of ours."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image

from kosmosg import release, sequence
from kosmosg.errors import CheckpointError
from kosmosg.images import to_rgb
from kosmosg.model.mllm import MLLM
from kosmosg.tokenizer import Tokenizer

Captioner: TypeAlias = Callable[[Sequence[Image.Image]], list[str]]


def blip2(
    directory: Path, *, device: torch.device, dtype: torch.dtype, max_new_tokens: int
) -> Captioner:
    """Return BLIP-2 of a directory as a captioner: greedy, without words to begin with.

    Its pictures are resized by Pillow wherever it runs, so that captions do not depend on whether
    torchvision is installed.

    Raises:
        CheckpointError: If the directory is no BLIP-2 with a language model that goes on writing,
            such as OPT.

    Source:
        Paper section 3.1, NUMERICS section 9.
    """
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    processor: Blip2Processor = Blip2Processor.from_pretrained(
        directory, local_files_only=True, backend="pil"
    )
    model: Any = Blip2ForConditionalGeneration.from_pretrained(
        directory, local_files_only=True, dtype=dtype, use_safetensors=True
    )
    config = model.config
    if config.image_token_index is None or config.text_config.is_encoder_decoder:
        raise CheckpointError(
            f"{directory}: config.json has no image_token_index, or its language model reads before"
            " it writes; fetch a BLIP-2 with OPT as it is on the hub today"
        )
    model.eval().requires_grad_(False).to(device)
    start = [config.image_token_index] * config.num_query_tokens + [config.text_config.bos_token_id]

    def caption(images: Sequence[Image.Image]) -> list[str]:
        rgb = [to_rgb(image) for image in images]
        pixels = processor.image_processor(rgb, return_tensors="pt")["pixel_values"]
        words = torch.tensor([start] * len(images), device=device)
        with torch.inference_mode():
            ids = model.generate(
                pixel_values=pixels.to(device, model.vision_model.dtype),
                input_ids=words,
                attention_mask=torch.ones_like(words),
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
        texts = processor.batch_decode(ids[:, len(start) :], skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    return caption


def mllm_captioner(
    directory: Path, *, max_new_tokens: int, device: torch.device | None = None
) -> Captioner:
    """Return our own language model, which learnt to describe pictures in stage 1, as a captioner.

    Args:
        directory: A whole model's, such as `release.find("nano")`.
        max_new_tokens: Word pieces after which a caption ends in any case.
        device: None is the CPU.

    Raises:
        CheckpointError: If the directory is no model of ours, or damaged.
    """
    release.read_generation_config(directory)
    tokenizer = Tokenizer.from_pretrained(directory / "tokenizer")
    mllm: Any = load_speaker(directory)
    mllm.eval().requires_grad_(False).to(device or "cpu")
    num_latents, image_size = mllm.config["num_latents"], mllm.config["image_size"]

    def caption(images: Sequence[Image.Image]) -> list[str]:
        encoded = [
            sequence.encode([image], tokenizer, num_latents=num_latents, image_size=image_size)
            for image in images
        ]
        batch = sequence.collate(encoded, pad_id=tokenizer.pad_id).to(device or "cpu")
        rows = mllm.generate(batch, max_new_tokens=max_new_tokens, eos_id=tokenizer.eos_id).tolist()
        return [tokenizer.decode(row) for row in rows]

    return caption


def load_speaker(directory: Path) -> MLLM:
    """Return the MLLM that last learnt to predict words: stage 3 teaches it to paint instead.

    That is a captioner, if there is one, or the MLLM as it was before stage 3.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    part = speaker_part(directory)
    release.check_part(directory, part)
    mllm = MLLM.from_pretrained(directory / part, local_files_only=True).float()
    release.check_weights(directory, {part: mllm.state_dict()})
    return mllm


def speaker_part(directory: Path) -> str:
    """Return which part of a model's directory `load_speaker` reads."""
    parts = ("captioner", "stage2/mllm")
    return next((part for part in parts if (directory / part).is_dir()), "mllm")
