"""The model's parts with random weights, a few thousand numbers each."""

from typing import Any

import torch

from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.mllm import MLLM
from kosmosg.sequence import Batch, Prompt, collate, encode
from kosmosg.tokenizer import Tokenizer

NUM_LATENTS = 3
IMAGE_SIZE = 16
WORDS = ["a", "red", "blue", "cat", "dog", "in", "the", "snow", "with", "hat", ",", "."]
TOKENIZER = Tokenizer.from_words(WORDS)


def tiny_mllm(seed: int = 0, **options: Any) -> MLLM:
    sizes: dict[str, Any] = {
        "vocab_size": TOKENIZER.vocab_size,
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_latents": NUM_LATENTS,
        "vision_hidden_size": 16,
        "vision_intermediate_size": 32,
        "vision_layers": 2,
        "vision_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MLLM(**(sizes | options)).eval()


def tiny_aligner(seed: int = 0, **options: Any) -> AlignerNet:
    sizes: dict[str, Any] = {
        "hidden_size": 24,
        "embed_dim": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "num_layers": 2,
        "num_queries": 5,
        "max_positions": 64,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AlignerNet(**(sizes | options)).eval()


def batch_of(*prompts: Prompt) -> Batch:
    encoded = [
        encode(prompt, TOKENIZER, num_latents=NUM_LATENTS, image_size=IMAGE_SIZE)
        for prompt in prompts
    ]
    return collate(encoded, pad_id=TOKENIZER.pad_id)
