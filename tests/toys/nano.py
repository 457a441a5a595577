"""A directory laid out as nano's, with random weights: what the toy world's evaluation reads."""

from pathlib import Path
from typing import cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.image_decoder import scheduler
from kosmosg.model.mllm import MLLM
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.release import GenerationConfig
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld.captions import words
from kosmosg.toyworld.foundation import TEXT_LENGTH
from kosmosg.toyworld.judge import Judge

SIZE = 32
WIDTH = 16


def save_toy_nano(directory: Path) -> None:
    """Pictures of 32 x 32 in 2 steps; every part that nano has."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = Tokenizer.from_words(words())
        _pipeline(tokenizer).save_pretrained(directory)
        _mllm(tokenizer).save_pretrained(directory / "stage2" / "mllm")
        _aligner().save_pretrained(directory / "stage2" / "aligner")
        Judge(width=8).save_pretrained(directory / "judge")
        CLIPTextModel(
            CLIPTextConfig(
                vocab_size=tokenizer.vocab_size + 1,
                hidden_size=WIDTH,
                intermediate_size=WIDTH,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=TEXT_LENGTH,
                bos_token_id=0,
                eos_token_id=tokenizer.vocab_size,
                pad_token_id=tokenizer.vocab_size,
            )
        ).save_pretrained(directory / "text_encoder")


def _mllm(tokenizer: Tokenizer) -> MLLM:
    return MLLM(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_latents=2,
        vision_hidden_size=16,
        vision_intermediate_size=16,
        vision_layers=1,
        vision_heads=2,
        image_size=SIZE,
        patch_size=8,
    )


def _aligner() -> AlignerNet:
    return AlignerNet(
        hidden_size=32,
        embed_dim=WIDTH,
        intermediate_size=16,
        num_heads=2,
        num_layers=1,
        num_queries=TEXT_LENGTH,
        max_positions=128,
    )


def _pipeline(tokenizer: Tokenizer) -> KosmosGPipeline:
    unet = UNet2DConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
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
    return KosmosGPipeline(
        mllm=_mllm(tokenizer),
        aligner=_aligner(),
        unet=unet,
        vae=cast(AutoencoderKL, vae),
        scheduler=scheduler("dpms"),
        tokenizer=tokenizer,
        generation_config=GenerationConfig(
            num_inference_steps=2, guidance_scale=3.0, height=SIZE, width=SIZE
        ),
    )
