"""Encoders of pictures at toy size, in the layout of their published directories."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from kosmosg.evaluate.inception import Inception

_WORDS = ["a", "red", "blue", "dog", "cat", "in", "the", "jungle", ",", "beach", "on"]


def save_dino(directory: Path) -> Path:
    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        image_size=56, patch_size=14,
    )  # fmt: skip
    ViTModel(config, add_pooling_layer=False).save_pretrained(directory)
    return directory


def save_clip(directory: Path) -> Path:
    torch.manual_seed(2)
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    vocabulary = {f"{word}</w>": i for i, word in enumerate(_WORDS)}
    letters = sorted({letter for word in _WORDS for letter in word})
    for letter in letters:
        vocabulary.setdefault(letter, len(vocabulary))
        vocabulary.setdefault(f"{letter}</w>", len(vocabulary))
    merges = []
    for word in _WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merges.append(f"{pieces[0]} {pieces[1]}")
            pieces[:2] = [pieces[0] + pieces[1]]
            vocabulary.setdefault(pieces[0], len(vocabulary))
    start, end = len(vocabulary), len(vocabulary) + 1
    vocabulary |= {"<|startoftext|>": start, "<|endoftext|>": end}
    config = CLIPConfig(
        text_config={
            "vocab_size": len(vocabulary), "hidden_size": 16, "max_position_embeddings": 8,
            "bos_token_id": start, "eos_token_id": end, "pad_token_id": end, **tower,
        },
        vision_config={"hidden_size": 24, "image_size": 32, "patch_size": 8, **tower},
        projection_dim=12,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(directory)
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]))
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 8,
        "pad_token": "<|endoftext|>",
        **special,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def save_inception(path: Path) -> Path:
    torch.manual_seed(3)
    save_file(Inception().state_dict(), path)
    return path


def save_all(folder: Path) -> Path:
    """Write all encoders below a folder, as `find_weights` looks for them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_dino(folder / "dino-vits16")
    for name in ("clip-vit-base-patch32", "clip-vit-large-patch14"):
        save_clip(folder / name)
    save_inception(folder / "inception.safetensors")
    return folder
