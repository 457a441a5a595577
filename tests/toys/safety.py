"""Diffusers' safety checker with random weights, that flags what its thresholds say."""

from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessorPil

SIDE = 16
ALWAYS, NEVER = -2.0, 2.0  # cosines lie between


def toy_checker(threshold: float) -> tuple[Any, Any]:
    """It flags a picture if its cosine with any of 17 random concepts is above `threshold`."""
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    tower |= {"num_attention_heads": 2, "projection_dim": 8}
    vision = tower | {"image_size": SIDE, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        checker = StableDiffusionSafetyChecker(
            CLIPConfig(text_config=tower, vision_config=vision, projection_dim=8)
        )
        with torch.no_grad():
            for name, weight in checker.named_parameters():
                if name.endswith("_weights"):
                    weight.fill_(threshold if name.startswith("concept") else NEVER)
                else:
                    weight.normal_(std=0.5)
    size = {"shortest_edge": SIDE}
    crop = {"height": SIDE, "width": SIDE}
    return checker.eval(), CLIPImageProcessorPil(size=size, crop_size=crop)


def save_checker(folder: Path, threshold: float) -> Path:
    """As Stable Diffusion 1.5 has it: `safety_checker` and `feature_extractor` side by side."""
    checker, extractor = toy_checker(threshold)
    checker.save_pretrained(folder / "safety_checker")
    extractor.save_pretrained(folder / "feature_extractor")
    return folder / "safety_checker"
