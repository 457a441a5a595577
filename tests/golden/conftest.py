"""The released model at its tiny golden size, its weights rebuilt from their names."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from kosmosg.convert import their_name
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.image_decoder import ImageDecoder
from kosmosg.model.kosmosg import KosmosG
from kosmosg.model.mllm import MLLM
from kosmosg.tokenizer import Tokenizer

Case = dict[str, Tensor]
DATA = Path(__file__).parent / "data"
M = TypeVar("M", bound=nn.Module)


@pytest.fixture(scope="session")
def golden(shared_dir: Path) -> Path:
    """The released model's outputs; without the shared folder these tests are skipped."""
    return shared_dir / "golden"


@pytest.fixture(scope="session")
def golden_file(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """A file of the golden data, or the copy that lies here; without either the test is skipped."""

    def find(name: str) -> Path:
        kept = DATA / name
        return kept if kept.is_file() else request.getfixturevalue("golden") / name

    return find


@pytest.fixture(scope="session")
def golden_json(golden_file: Callable[[str], Path]) -> Callable[[str], Any]:
    return lambda name: json.loads(golden_file(name).read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def golden_config(golden_json: Callable[[str], Any]) -> dict[str, Any]:
    return golden_json("config.json")


@pytest.fixture(scope="session")
def golden_case(golden_file: Callable[[str], Path]) -> Callable[[str], Case]:
    return lambda name: load_file(golden_file(f"cases/{name}.safetensors"))


@pytest.fixture(scope="session")
def tokenizer(shared_dir: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(shared_dir / "tokenizer")


@pytest.fixture(scope="session")
def golden_model(golden_config: dict[str, Any]) -> KosmosG:
    """Kosmos-G with N, in evaluation mode."""
    config, vision, aligner = (
        golden_config,
        golden_config["vision"],
        golden_config["aligner"],
    )
    mllm = MLLM(
        vocab_size=config["vocab_size"],
        hidden_size=config["decoder_embed_dim"],
        intermediate_size=config["decoder_ffn_embed_dim"],
        num_hidden_layers=config["decoder_layers"],
        num_attention_heads=config["decoder_attention_heads"],
        num_latents=config["latent_query_num"],
        vision_hidden_size=vision["width"],
        vision_intermediate_size=4 * vision["width"],
        vision_layers=vision["layers"],
        vision_heads=vision["width"] // vision["head_width"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
    )
    net = AlignerNet(
        hidden_size=config["decoder_embed_dim"],
        embed_dim=aligner["dim"],
        intermediate_size=aligner["ffn"],
        num_heads=aligner["heads"],
        num_layers=aligner["layers"],
        num_queries=aligner["n_query"],
        max_positions=aligner["n_pos"],
        with_reconstruction=True,
    )
    return fill(KosmosG(mllm, net), "").eval()


@pytest.fixture(scope="session")
def golden_decoder(golden_config: dict[str, Any]) -> ImageDecoder:
    vae = AutoencoderKL(**golden_config["vae_full"])
    unet = UNet2DConditionModel(**golden_config["unet_full"])
    return ImageDecoder(fill(vae, "vae."), fill(unet, "unet.")).eval()


@pytest.fixture(scope="session")
def golden_text_encoder(golden_config: dict[str, Any]) -> CLIPTextModel:
    special = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    config = CLIPTextConfig.from_dict(golden_config["text_full"] | special)
    return fill(CLIPTextModel(config), "text_encoder.").eval()


def fill(module: M, prefix: str) -> M:
    """Give each parameter the value that config.json's fill rule (v1) makes of its name."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(golden_value(their_name(prefix + name), tuple(parameter.shape)))
    return module


def golden_value(key: str, shape: tuple[int, ...]) -> Tensor:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    z = generator.standard_normal(shape)
    tables = ("embed_positions.weight", "token_embedding.weight", "position_embedding.weight")
    if key.endswith(".weight") and len(shape) == 1:
        value = 1 + 0.1 * z
    elif len(shape) == 1 or key.endswith(".bias"):
        value = 0.1 * z
    elif key.endswith((*tables, "positional_embedding")):
        value = 0.5 * z
    elif key.endswith("_query"):
        value = z
    else:
        value = z / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(value).float()
