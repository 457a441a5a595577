"""What was trained on the U-Net with words alone, used with pictures in the prompt.

A ControlNet learns to follow a creature's outline, a LoRA to draw in pastel, both from captions
through the decoder's own text tower. Then they are handed to Kosmos-G as they are.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from jaxtyping import Float
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from kosmosg.construct.segment import THRESHOLD, largest_part
from kosmosg.controlnet import load_controlnet
from kosmosg.images import to_pil
from kosmosg.model.image_decoder import ImageDecoder
from kosmosg.release import find
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld import nano
from kosmosg.toyworld.captions import FULL, SOME, describe
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
from kosmosg.toyworld.evaluate import BATCH
from kosmosg.toyworld.foundation import in_range, text_ids
from kosmosg.toyworld.losses import MIN_SNR_GAMMA
from kosmosg.toyworld.render import render
from kosmosg.toyworld.scenes import Scene, stand
from kosmosg.toyworld.streams import SceneStream
from kosmosg.toyworld.workspace import plain
from kosmosg.train.loop import fit
from kosmosg.train.optim import EmaConfig
from kosmosg.train.stage import Draws

STYLE = "pastel"
SEED = 11
CONTROL_STEPS, LORA_STEPS = 1000, 400
STEP_S = 1.6  # of 32 pictures, one core
RANK = 8
# What diffusers' pipeline has besides.
_ABSENT = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


class Steered(nn.Module):
    """A frozen text tower and decoder; what learns is a ControlNet, or a LoRA in the U-Net."""

    def __init__(
        self,
        text_encoder: CLIPTextModel,
        decoder: ImageDecoder,
        controlnet: ControlNetModel | None,
    ) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.decoder = decoder
        self.controlnet = controlnet


@dataclass(frozen=True, kw_only=True)
class SteeredStage:
    """The diffusion loss on captions; of `style`, which all pictures have, they say nothing."""

    tokenizer: Tokenizer
    trainable: tuple[str, ...]
    style: str | None
    size: int

    def collate(self, records: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the scenes, tokenise a caption of each, and draw its creatures' outline."""
        captions = []
        for scene in records:
            rng = np.random.default_rng([scene.seed, 1])
            caption = describe(
                replace(scene, style="plain"), rng, FULL if rng.random() < 0.75 else SOME
            )
            captions.append("" if rng.random() < 0.1 else caption)
        styled = [replace(s, style=self.style or s.style) for s in records]
        pixels, masks = render(styled, self.size)
        return in_range(pixels), text_ids(captions, self.tokenizer), outline(masks)

    def weight(self, batch: tuple[Tensor, Tensor, Tensor]) -> int:
        """Return the number of pictures."""
        return len(batch[0])

    def loss(
        self, model: Steered, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the error of the predicted noise, weighed by min-SNR, summed over pictures."""
        images, ids, control = batch
        decoder, draws = model.decoder, Draws(generator, count=len(images))
        latents = decoder.encode_images(images, draws.generators()).float()
        noises = draws.normal(*latents.shape[1:], device=latents.device)
        timesteps = draws.integers(len(decoder.alphas_cumprod), device=latents.device)
        noisy = decoder.add_noise(latents, noises, timesteps)
        with torch.no_grad():
            states = model.text_encoder(input_ids=ids).last_hidden_state
        residuals: dict[str, Any] = {}
        if model.controlnet is not None:
            down, middle = model.controlnet(
                noisy, timesteps, states, controlnet_cond=control, return_dict=False
            )
            residuals = {
                "down_block_additional_residuals": down,
                "mid_block_additional_residual": middle,
            }
        unet: Any = decoder.unet
        predicted = unet(noisy, timesteps, states, return_dict=False, **residuals)[0]
        kept = decoder.alphas_cumprod[timesteps]
        weights = (MIN_SNR_GAMMA * (1 - kept) / kept).clamp(max=1)
        errors = (predicted.float() - noises).square().flatten(1).mean(1)
        return {"diffusion": (weights * errors).sum()}


def outline(masks: np.ndarray) -> Float[Tensor, "scenes 3 size size"]:
    """Return where creatures are, 1 on 0."""
    return torch.from_numpy(masks.any(1, keepdims=True)).float().expand(-1, 3, -1, -1).contiguous()


def train(setting: Setting, what: Literal["controlnet", "lora"]) -> Path:
    """Return the directory of a ControlNet, or the file of a LoRA, trained on captions."""
    world, budget = setting.world, setting.budget
    out = setting.work_dir / ("controlnet" if what == "controlnet" else "style.safetensors")
    assert world.text_encoder is not None  # every experiment's world has it
    unet = plain(copy.deepcopy(world.pipe.unet))
    controlnet, style, trainable = None, None, ("controlnet.*",)
    whole = CONTROL_STEPS
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        if what == "controlnet":
            controlnet = ControlNetModel.from_unet(
                unet, conditioning_embedding_out_channels=channels(setting)
            )
        else:
            lora = LoraConfig(
                r=RANK, lora_alpha=RANK, target_modules=ATTENTION, init_lora_weights="gaussian"
            )
            unet.add_adapter(lora)
            style, trainable, whole = STYLE, ("decoder.unet.*lora_*",), LORA_STEPS
    model = Steered(
        copy.deepcopy(world.text_encoder),
        ImageDecoder(copy.deepcopy(world.pipe.vae), unet),
        controlnet,
    )
    stage = SteeredStage(
        tokenizer=world.pipe.tokenizer, trainable=trainable, style=style, size=setting.size
    )
    base, steps = nano.unet().train, budget.steps(whole)
    config = replace(
        base,
        seed=SEED,
        steps=steps,
        optim=replace(base.optim, lr=1e-3, warmup_steps=min(100, 1 + steps // 10)),
        ema=EmaConfig(decay=0.99, every=4),
        samples_every=steps + 1,
        keep_checkpoints=1,
    )
    run_dir = setting.work_dir / "run"
    fit(model, stage, SceneStream(seed=SEED), config, run_dir, resume=run_dir.exists())
    if controlnet is not None:
        controlnet.save_pretrained(out)
    else:
        save_lora(unet, out)
    return out


def channels(setting: Setting) -> tuple[int, ...]:
    """Return the channels by which a ControlNet shrinks its picture as the VAE does."""
    factor = setting.world.pipe.vae_scale_factor
    return tuple(16 * 2**level for level in range(factor.bit_length()))


def save_lora(unet: UNet2DConditionModel, path: Path) -> None:
    """Write the U-Net's LoRA as diffusers does: a file that `load_lora_weights` takes."""
    named = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    save_file({f"unet.{name}": value.contiguous() for name, value in named.items()}, path)


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
