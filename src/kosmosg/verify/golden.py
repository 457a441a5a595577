"""A folder of golden data: the model of its sizes, its weights made from their names."""

import json
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from kosmosg.convert import their_name
from kosmosg.errors import ConfigError
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.image_decoder import ImageDecoder, scheduler
from kosmosg.model.kosmosg import KosmosG
from kosmosg.model.mllm import MLLM
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.tokenizer import Tokenizer

# The value of a weight by the authors' name of it and its shape.
Weight = Callable[[str, tuple[int, ...]], Tensor]
M = TypeVar("M", bound=nn.Module)

RULE = "FILL RULE (v1)"
_TABLES = (
    "embed_positions.weight",
    "token_embedding.weight",
    "position_embedding.weight",
    "positional_embedding",
)


class Golden:
    """The folder, and the parts of the model in evaluation mode, each made when first asked for.

    Args:
        directory: Holds `config.json`, `cases/` and whatever else the released code recorded.
        tokenizer_dir: The tokenizer that its ids are of; None: `tokenizer/` in the folder or
            beside it.
        weight: Where weights come from; None: the folder's rule. Here a checkpoint enters.
        with_reconstruction: Whether Kosmos-G has N; a checkpoint of stage 3 does not.

    Raises:
        ConfigError: If `config.json` is missing, or its weights follow from another rule.
    """

    def __init__(
        self,
        directory: Path,
        tokenizer_dir: Path | None = None,
        *,
        weight: Weight | None = None,
        with_reconstruction: bool = True,
    ) -> None:
        self.directory = directory
        self.config = _read_config(directory)
        self._tokenizer_dir = tokenizer_dir
        self._weight = weight or self.rule
        self._with_reconstruction = with_reconstruction

    @cached_property
    def model(self) -> KosmosG:
        """Kosmos-G."""
        return self.new_model()

    @cached_property
    def decoder(self) -> ImageDecoder:
        """The VAE and U-Net, with the noise schedule."""
        vae = AutoencoderKL(**self.config["vae_full"])
        unet = UNet2DConditionModel(**self.config["unet_full"])
        return ImageDecoder(self._fill(vae, "vae."), self._fill(unet, "unet.")).eval()

    @cached_property
    def text_encoder(self) -> CLIPTextModel:
        """What stage 2 imitates."""
        special = {f"{name}_token_id": self.config[name] for name in ("bos", "eos", "pad")}
        config = CLIPTextConfig.from_dict(self.config["text_full"] | special)
        return self._fill(CLIPTextModel(config), "text_encoder.").eval()

    @cached_property
    def pipeline(self) -> KosmosGPipeline:
        """All of it as users run it. No case asks it to read words, so it knows but one."""
        pipeline = KosmosGPipeline(
            mllm=self.model.mllm,
            aligner=self.model.aligner,
            unet=self.decoder.unet,
            vae=self.decoder.vae,
            scheduler=scheduler("dpms"),
            tokenizer=Tokenizer.from_words(["a"]),
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that recorded ids are of.

        Raises:
            ConfigError: If none was named and none lies in the folder or beside it.
        """
        if self._tokenizer_dir is not None:
            return Tokenizer.from_pretrained(self._tokenizer_dir)
        for parent in (self.directory, self.directory.resolve().parent):
            if (parent / "tokenizer").is_dir():
                return Tokenizer.from_pretrained(parent / "tokenizer")
        raise ConfigError(
            f"no tokenizer in {self.directory} or beside it; name its directory with --tokenizer"
        )

    def new_model(self) -> KosmosG:
        """Return Kosmos-G at the folder's sizes, in evaluation mode, to be spoilt."""
        config = self.config
        vision, aligner = config["vision"], config["aligner"]
        mllm = MLLM(
            vocab_size=config["vocab_size"],
            pad_id=config["pad"],
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
            with_reconstruction=self._with_reconstruction,
        )
        return self._fill(KosmosG(mllm, net), "").eval()

    def rule(self, key: str, shape: tuple[int, ...]) -> Float[Tensor, "..."]:
        """Return the value that the fill rule gives the weight of this (the authors') name."""
        return fill(key, shape, seed=self.config["fill_seed"])

    def _fill(self, module: M, prefix: str) -> M:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                key = their_name(prefix + name)
                value = self._weight(key, tuple(parameter.shape))
                if value.shape != parameter.shape:
                    raise ConfigError(
                        f"{key} is {tuple(value.shape)}, the model of config.json needs"
                        f" {tuple(parameter.shape)}; take both from one run"
                    )
                parameter.copy_(value)
        return module


def fill(key: str, shape: tuple[int, ...], *, seed: int) -> Float[Tensor, "..."]:
    """Return the value that the rule gives the weight of this (the authors') name and shape."""
    if key.endswith("_float_tensor"):
        return torch.zeros(shape)
    if key.endswith("self_attn_sope.scale"):
        head_dim = 2 * shape[0]
        return (torch.arange(0, head_dim, 2) + 0.4 * head_dim) / (1.4 * head_dim)
    if key.endswith("position_ids"):
        return torch.arange(shape[-1]).reshape(shape)
    random = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()) + seed))
    z = random.standard_normal(shape)
    if key.endswith(".weight") and len(shape) == 1:
        value = 1 + 0.1 * z
    elif len(shape) == 1 or key.endswith(".bias"):
        value = 0.1 * z
    elif key.endswith(_TABLES):
        value = 0.5 * z
    elif key.endswith("_query"):
        value = z
    else:
        value = z / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(value).float()


def read_json(path: Path) -> Any:  # noqa: ANN401 -- whatever the released code recorded
    """Return what a JSON file of the folder holds.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read {path} ({reason}); copy the folder again") from error


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"no golden data in {directory}: config.json is missing; name a folder that holds it"
        )
    config = read_json(path)
    if not isinstance(config, dict) or not str(config.get("fill_rule", "")).startswith(RULE):
        raise ConfigError(f"{path} does not hold {RULE!r}, the only rule known here for weights")
    return config
