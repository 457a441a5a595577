"""What was trained on the U-Net with words alone, used with pictures in the prompt.

A ControlNet learns to follow a creature's outline, a LoRA to draw in pastel, both from captions
through the decoder's own text tower. Then they are handed to Kosmos-G as they are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from PIL import Image

from kosmosg.construct.segment import THRESHOLD, largest_part
from kosmosg.controlnet import load_controlnet
from kosmosg.images import to_pil
from kosmosg.release import find
from kosmosg.toyworld.cases import cases, full_name
from kosmosg.toyworld.chain import nano_segmenter
from kosmosg.toyworld.claims import questions, scoring
from kosmosg.toyworld.claims.drawing import (
    Pictures,
    Reader,
    conditions,
    drawn,
    from_embeds,
    strip,
    wanted,
)
from kosmosg.toyworld.claims.experiment import DRAWING, Budget, Experiment, Measured, Setting
from kosmosg.toyworld.claims.questions import Question
from kosmosg.toyworld.claims.rows import Values, scores_of
from kosmosg.toyworld.claims.steering import CONTROL_STEPS, LORA_STEPS, SEED, STEP_S, STYLE, train
from kosmosg.toyworld.evaluate import BATCH
from kosmosg.toyworld.render import render
from kosmosg.toyworld.scenes import Scene, stand

# What diffusers' pipeline has besides.
_ABSENT = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")


def controlled(setting: Setting) -> Measured:
    """Train the ControlNet, then draw outlines with captions, with pictures, and without it."""
    path = train(setting, "controlnet")
    world, budget = setting.world, setting.budget
    asked, told = standing(budget.prompts, budget.seed, setting.shown_size)
    scenes = [one.target for one in asked]
    _, masks = render(scenes, setting.size)
    lines = [Image.fromarray((mask.any(0) * 255).astype(np.uint8)).convert("RGB") for mask in masks]
    controlnet = load_controlnet(path, world.pipe)
    made = {
        "words": _painted(setting, told, "text_encoder", controlnet, lines),
        "pictures": _painted(setting, asked, "stage3", controlnet, lines),
        "without": drawn(setting, asked, "stage3"),
        "renderer": wanted(asked, setting.size),
    }
    values = {
        name: scoring.answered(world.judge, images, asked) | {"overlap": overlap(images, scenes)}
        for name, images in made.items()
    }
    return _compared(values, asked, made["pictures"], steps=budget.steps(CONTROL_STEPS))


def styled(setting: Setting) -> Measured:
    """Train the LoRA, then draw with captions, with pictures, and without it."""
    path = train(setting, "lora")
    world, budget = setting.world, setting.budget
    given = (budget.prompts, budget.seed, setting.shown_size)
    asked, told = (
        [replace(one, target=replace(one.target, style=STYLE)) for one in ask(*given)]
        for ask in (questions.pictured, questions.captioned)
    )
    made = {"without": drawn(setting, asked, "stage3"), "renderer": wanted(asked, setting.size)}
    with _lora(setting, path):
        made["words"] = drawn(setting, told, "text_encoder")
        made["pictures"] = drawn(setting, asked, "stage3")
    values = {
        name: scoring.answered(world.judge, images, asked)
        | {"style": scoring.styled(world.judge, images, asked)}
        for name, images in made.items()
    }
    return _compared(values, asked, made["pictures"], steps=budget.steps(LORA_STEPS))


def standing(count: int, seed: int, size: int) -> tuple[list[Question], list[Question]]:
    """Return the questions of `pictured`, and in words, of creatures anywhere and of any size."""
    asked, told = [], []
    shown = questions.pictured(count, seed, size)
    for one, case in zip(shown, cases(count, seed=seed), strict=True):
        rng = np.random.default_rng([seed, 60, one.index])
        radius = float(rng.uniform(0.19, 0.29))
        (subject,) = stand((replace(one.target.subjects[0], radius=radius),), rng)
        target = replace(one.target, subjects=(subject,))
        asked.append(replace(one, target=target))
        told.append(replace(one, target=target, prompt=[case.caption]))
    return asked, told


def overlap(images: Pictures, scenes: Sequence[Scene]) -> Values:
    """Return how well each creature fills its outline: intersection over union, 0 to 1.

    Where a creature is, nano's segmenter says, told its name.
    """
    segment = nano_segmenter(find("nano"))
    found = []
    for start in range(0, len(images), BATCH):
        names = [full_name(scene.subjects[0]) for scene in scenes[start : start + BATCH]]
        pictures = [to_pil(image) for image in images[start : start + BATCH]]
        maps = [np.asarray(one) for one in segment(pictures, names)]
        _, masks = render(scenes[start : start + BATCH], maps[0].shape[-1])
        for one, mask in zip(maps, masks, strict=True):
            seen, right = largest_part(one > THRESHOLD), mask.any(0)
            found.append((seen & right).sum() / max(1, (seen | right).sum()))
    return np.array(found, dtype=float)


def _painted(
    setting: Setting,
    asked: Sequence[Question],
    reader: Reader,
    controlnet: ControlNetModel,
    lines: Sequence[Image.Image],
) -> Pictures:
    pipe, made = setting.world.pipe, []
    kind: Any = StableDiffusionControlNetPipeline  # its annotations know of no None
    tool = kind(
        unet=pipe.unet,
        vae=pipe.vae,
        scheduler=pipe.scheduler,
        controlnet=controlnet,
        **dict.fromkeys(_ABSENT),
        requires_safety_checker=False,
    )
    tool.set_progress_bar_config(disable=True)
    given = {"height": setting.size, "width": setting.size}
    given |= {"guidance_scale": pipe.generation_config.guidance_scale}
    for start in range(0, len(asked), BATCH):
        chosen = asked[start : start + BATCH]
        embeds, null = conditions(setting.world, reader, [one.prompt for one in chosen])
        control = list(lines[start : start + BATCH])
        made.append(from_embeds(setting, chosen, embeds, null, tool=tool, image=control, **given))
        setting.advance(len(chosen))
    return torch.cat(made)


@contextmanager
def _lora(setting: Setting, path: Path) -> Iterator[None]:
    pipe = setting.world.pipe
    pipe.load_lora_weights(path)
    try:
        yield
    finally:
        pipe.unload_lora_weights()


def _compared(
    values: dict[str, dict[str, Values]], asked: Sequence[Question], images: Pictures, *, steps: int
) -> Measured:
    ways = {way: each for way, each in values.items() if way != "renderer"}
    truth = scoring.means(values["renderer"])
    return Measured(
        scores={
            f"{way}/{name}": score
            for way, each in ways.items()
            for name, score in scores_of(each).items()
        },
        judge={f"{way}/{name}": value for way in ways for name, value in truth.items()},
        n=len(asked),
        seeds=(SEED,),
        picture=strip(asked, images),
        config={"steps": steps},
    )


def _experiment(name: str, says: str, steps: int, dearer: int) -> Experiment:
    def seconds(budget: Budget) -> int | float:
        return budget.steps(steps) * STEP_S

    return Experiment(
        name=f"unet-{name}",
        claim="unet",
        says=says,
        measure={"controlnet": controlled, "lora": styled}[name],
        pictures=lambda budget: dearer * budget.prompts,
        seconds=seconds,
        budget=("prompts", "scale", *DRAWING),
    )


EXPERIMENTS = (
    _experiment(
        "controlnet", "a ControlNet of outlines, trained with captions alone", CONTROL_STEPS, 4
    ),
    _experiment("lora", "a LoRA of pastel pictures, trained with captions alone", LORA_STEPS, 3),
)
