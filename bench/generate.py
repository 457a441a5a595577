"""What does Kosmos-G add to a generation, beside plain Stable Diffusion with the same U-Net?

    python bench/generate.py [--dtype bfloat16] [--steps 20] [--rounds 2] [--threads 2]

Full-size random weights, 512 px, two pictures and words, guidance. Rounds alternate between
StableDiffusionPipeline, given ready embeds, and KosmosGPipeline, given the prompt; so one run
compares like with like. Prints a table and writes outputs/bench-generate.json.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.image_decoder import scheduler
from kosmosg.model.mllm import MLLM
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld.captions import words

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
# The toy world's words are the tokenizer that is at hand: what they say does not matter here.
TEXT = "a creature wearing a hat on the beach"


def build(dtype: torch.dtype) -> KosmosGPipeline:
    """Return a pipeline of the released sizes with random weights."""
    with torch.device("meta"):
        modules: list[Any] = [
            MLLM(),
            AlignerNet(),
            UNet2DConditionModel(cross_attention_dim=768, sample_size=64),
        ]
        vae = AutoencoderKL.from_config(VAE)
    generator = torch.Generator().manual_seed(0)
    made = []
    for module in [*modules, vae]:
        full = module.to(dtype).to_empty(device="cpu").eval().requires_grad_(False)
        for name, weight in full.named_parameters():
            if weight.ndim == 1:
                weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                weight.normal_(std=weight[0].numel() ** -0.5, generator=generator)
        for buffer in full.buffers():
            buffer.copy_(torch.arange(buffer.numel()).view_as(buffer))
        made.append(full)
    mllm, aligner, unet, vae = made
    return KosmosGPipeline(
        mllm=mllm,
        aligner=aligner,
        unet=unet,
        vae=vae,
        scheduler=scheduler("dpms"),
        tokenizer=Tokenizer.from_words(words()),
    )


def seconds(work: Callable[[], object]) -> float:
    """Return how long the work takes."""
    began = perf_counter()
    work()
    return perf_counter() - began


def main() -> None:
    """Alternate between the two and print the ratio of their best times."""
    parser = argparse.ArgumentParser(description="Kosmos-G beside plain Stable Diffusion.")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ours = build(getattr(torch, options.dtype))
    ours.set_progress_bar_config(disable=True)
    absent: dict[str, Any] = dict.fromkeys(
        ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    )
    theirs = StableDiffusionPipeline(
        vae=ours.vae,
        unet=ours.unet,
        scheduler=ours.scheduler,
        **absent,
        requires_safety_checker=False,
    )
    theirs.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (400, 300, 3), dtype=np.uint8)) for _ in range(2)
    ]
    prompt = [pictures[0], "and", pictures[1], TEXT]
    same: dict[str, Any] = {
        "num_inference_steps": options.steps,
        "guidance_scale": 6.0,
        "height": 512,
    }
    with torch.no_grad():
        embeds, negative = ours.encode_prompt(prompt)

    def plain() -> None:
        given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
        theirs(**given, **same, generator=torch.Generator().manual_seed(0))

    def whole() -> None:
        ours(prompt, **same, generator=torch.Generator().manual_seed(0))

    same["num_inference_steps"] = 1  # once, so that nothing is new to either
    plain()
    same["num_inference_steps"] = options.steps
    times: dict[str, list[float]] = {"plain": [], "whole": []}
    for _ in range(options.rounds):
        times["plain"].append(seconds(plain))
        times["whole"].append(seconds(whole))
    least = {name: min(values) for name, values in times.items()}  # each where nothing else ran
    with torch.no_grad():
        encode = seconds(lambda: ours.encode_prompt(prompt))
    ratio = least["whole"] / least["plain"]
    print(f"{'StableDiffusionPipeline, ready embeds':40}{least['plain']:8.1f} s")
    print(f"{'KosmosGPipeline, words and 2 pictures':40}{least['whole']:8.1f} s  {ratio:.3f}")
    print(f"{'encoding alone, null condition known':40}{encode:8.1f} s")
    report = {**vars(options), "seconds": times, "encode_s": encode, "ratio": ratio}
    out = Path("outputs") / "bench-generate.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
