"""A whole Kosmos-G of real classes with random weights, small enough to make in a moment."""

from typing import cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image

from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.image_decoder import scheduler
from kosmosg.model.mllm import MLLM
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.release import GenerationConfig
from kosmosg.tokenizer import Tokenizer

WORDS = "a an the photo picture of in on with and red blue green cat dog hat creature wearing snow"
MARKS = ",.!"
SIZE = 32
NUM_LATENTS = 4
NUM_QUERIES = 6
EMBED_DIM = 16


def toy_pipeline(seed: int = 0, words: str = WORDS) -> KosmosGPipeline:
    """Pictures of 32 x 32 in 3 steps; it knows these words."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = Tokenizer.from_words([*words.split(), *MARKS])
        mllm = MLLM(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_latents=NUM_LATENTS,
            vision_hidden_size=16,
            vision_intermediate_size=32,
            vision_layers=1,
            vision_heads=2,
            image_size=SIZE,
            patch_size=8,
        )
        aligner = AlignerNet(
            hidden_size=32,
            embed_dim=EMBED_DIM,
            intermediate_size=32,
            num_heads=2,
            num_layers=1,
            num_queries=NUM_QUERIES,
            max_positions=256,
        )
        unet = UNet2DConditionModel(
            sample_size=SIZE // 2,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=EMBED_DIM,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        vae = AutoencoderKL.from_config(
            {
                "block_out_channels": (8, 8),
                "down_block_types": ("DownEncoderBlock2D",) * 2,
                "up_block_types": ("UpDecoderBlock2D",) * 2,
                "norm_num_groups": 4,
                "sample_size": SIZE,
            }
        )
    pipeline = KosmosGPipeline(
        mllm=mllm.eval(),
        aligner=aligner.eval(),
        unet=unet.eval(),
        vae=cast(AutoencoderKL, vae).eval(),
        scheduler=scheduler("dpms"),
        tokenizer=tokenizer,
        generation_config=GenerationConfig(
            num_inference_steps=3, guidance_scale=3.0, height=SIZE, width=SIZE
        ),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def toy_picture(seed: int = 0, size: tuple[int, int] = (40, 48)) -> Image.Image:
    """Noise of some size."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)
