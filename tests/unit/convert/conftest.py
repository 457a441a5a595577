from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from kosmosg import KosmosGPipeline
from kosmosg.convert import Architecture, to_original
from kosmosg.model.alignernet import AlignerNet
from toys.files import toy_architecture
from toys.model import EMBED_DIM, NUM_QUERIES

TEXT = {
    "vocab_size": 20,
    "hidden_size": EMBED_DIM,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": NUM_QUERIES,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


@pytest.fixture(scope="session")
def architecture() -> Architecture:
    return toy_architecture(text_encoder=TEXT)


@pytest.fixture(scope="session")
def final(toy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model as the authors would have saved it after stage 3, its tokenizer beside it."""
    path = tmp_path_factory.mktemp("final") / "final.pt"
    to_original(toy_dir, path)
    KosmosGPipeline.from_pretrained(toy_dir).tokenizer.save_pretrained(path.parent)
    return path


@pytest.fixture(scope="session")
def stage2(toy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with N and a text tower, as after stage 2."""
    folder = tmp_path_factory.mktemp("stage2")
    pipe = KosmosGPipeline.from_pretrained(toy_dir)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        sizes = {k: v for k, v in pipe.aligner.config.items() if not k.startswith("_")}
        pipe.register_modules(aligner=AlignerNet(**(sizes | {"with_reconstruction": True})))
        tower = CLIPTextModel(CLIPTextConfig(**TEXT))
    pipe.save_pretrained(folder / "model")
    tower.save_pretrained(folder / "model" / "text_encoder")
    to_original(folder / "model", folder / "stage2.pt")
    pipe.tokenizer.save_pretrained(folder)
    return folder / "stage2.pt"


@pytest.fixture
def changed(final: Path, tmp_path: Path) -> Any:
    """Write the toy checkpoint with its weights or options changed by a function.

    `changed.tokenizer` is its tokenizer.
    """

    def write(change: Callable[[dict[str, Any]], object], source: Path = final) -> Path:
        data = torch.load(source, weights_only=True)
        data["model"] = dict(data["model"])
        change(data)
        path = tmp_path / "changed.pt"
        torch.save(data, path)
        return path

    write.tokenizer = final.parent
    return write
