"""Checkpoints at toy size. kosmosg is imported inside: this file is read before tests/conftest.py
has shut the network."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TEXT = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 6,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


@pytest.fixture(scope="session")
def architecture() -> Any:
    from toys.files import toy_architecture

    return toy_architecture(text_encoder=TEXT)


@pytest.fixture(scope="session")
def final(toy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model as the authors would have saved it after stage 3, its tokenizer beside it."""
    from kosmosg.convert import to_original
    from toys.model import toy_pipeline

    path = tmp_path_factory.mktemp("final") / "final.pt"
    to_original(toy_dir, path)
    toy_pipeline().tokenizer.save_pretrained(path.parent)
    return path


@pytest.fixture(scope="session")
def stage2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with N and a text tower, as after stage 2."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    from kosmosg.convert import to_original
    from kosmosg.model.alignernet import AlignerNet
    from toys.files import public
    from toys.model import toy_pipeline

    folder = tmp_path_factory.mktemp("stage2")
    pipe = toy_pipeline()
    with torch.random.fork_rng():
        torch.manual_seed(4)
        sizes = public(pipe.aligner.config) | {"with_reconstruction": True}
        pipe.register_modules(aligner=AlignerNet(**sizes))
        tower = CLIPTextModel(CLIPTextConfig(**TEXT))
    pipe.save_pretrained(folder / "model")
    tower.save_pretrained(folder / "model" / "text_encoder")
    to_original(folder / "model", folder / "stage2.pt")
    pipe.tokenizer.save_pretrained(folder)
    return folder / "stage2.pt"


@pytest.fixture
def changed(final: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write the toy checkpoint with its weights or options changed by a function."""

    import torch

    def write(change: Callable[[dict[str, Any]], object], source: Path = final) -> Path:
        data = torch.load(source, weights_only=True)
        data["model"] = dict(data["model"])
        change(data)
        path = tmp_path / "changed.pt"
        torch.save(data, path)
        for name in ("sentencepiece.bpe.model", "dict.txt"):
            shutil.copyfile(final.parent / name, tmp_path / name)
        return path

    return write
