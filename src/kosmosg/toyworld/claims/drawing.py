"""Questions to pictures: conditions from one of the readers, noise from the question's number."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from kosmosg.branches import pictures_of
from kosmosg.data.mixture import seed_of
from kosmosg.encoding import PromptEncoder
from kosmosg.images import to_pil
from kosmosg.model.kosmosg import KosmosG
from kosmosg.sequence import Prompt
from kosmosg.toyworld.claims.experiment import Setting
from kosmosg.toyworld.claims.questions import Question
from kosmosg.toyworld.evaluate import BATCH
from kosmosg.toyworld.foundation import pictures, text_ids
from kosmosg.toyworld.world import World

Pictures = Float[Tensor, "questions 3 height width"]
Embeds = Float[Tensor, "questions queries embed"]
# The decoder's own text tower, what ships after a stage, or a model that was just trained.
Reader = Literal["text_encoder", "stage2", "stage3"] | KosmosG
NUM_SHOWN = 8
GAP = 4


def conditions(
    world: World,
    reader: Reader,
    prompts: Sequence[Prompt],
    *,
    weights: Sequence[Sequence[float]] | None = None,
) -> tuple[Embeds, Float[Tensor, "1 queries embed"]]:
    """Return the prompt embeds of prompts, and those of the null prompt.

    Args:
        weights: Of each prompt's pictures.
    """
    tokenizer, device = world.pipe.tokenizer, world.pipe.device
    with torch.no_grad():
        if reader == "text_encoder":
            assert world.text_encoder is not None  # every experiment's world has it
            said = [" ".join(str(part) for part in prompt) for prompt in prompts]
            ids = text_ids([*said, ""], tokenizer).to(device)
            states = world.text_encoder(input_ids=ids).last_hidden_state
            return states[:-1], states[-1:]
        model = world.readers[reader] if isinstance(reader, str) else reader
        encoder = PromptEncoder()
        embeds = encoder.encode(prompts, model, tokenizer, device, weights=weights)
        return embeds, encoder.null(model, tokenizer, device)


def drawn(
    setting: Setting,
    asked: Sequence[Question],
    reader: Reader,
    *,
    weight: float = 1.0,
    controls: Mapping[str, Any] | None = None,
) -> Pictures:
    """Return a picture in [-1, 1] of each question, on the CPU.

    Args:
        weight: Of the prompts' pictures.
        controls: Further arguments of the pipeline's call.
    """
    made = []
    controls = dict(controls or {})
    for start in range(0, len(asked), BATCH):
        chosen = asked[start : start + BATCH]
        weights = None if weight == 1 else [[weight] * len(one.shown) for one in chosen]
        embeds, null = conditions(
            setting.world, reader, [one.prompt for one in chosen], weights=weights
        )
        if "picture_guidance_scale" in controls:
            alone = [pictures_of(one.prompt) for one in chosen]
            controls["picture_prompt_embeds"] = conditions(setting.world, reader, alone)[0]
        made.append(from_embeds(setting, chosen, embeds, null, **controls))
        setting.advance(len(chosen))
    return torch.cat(made)


def from_embeds(
    setting: Setting,
    asked: Sequence[Question],
    embeds: Embeds,
    null: Float[Tensor, "1 queries embed"],
    *,
    tool: Any = None,  # noqa: ANN401 -- a pipeline of diffusers
    **controls: Any,  # noqa: ANN401 -- of the pipeline's call
) -> Pictures:
    """Return the pictures of conditions; the noise is each question's.

    Args:
        tool: A pipeline that shares the U-Net; None is ours.
    """
    pipe, budget = tool or setting.world.pipe, setting.budget
    steps = budget.num_inference_steps or setting.world.pipe.generation_config.num_inference_steps
    with torch.autocast(pipe.device.type, torch.bfloat16, enabled=budget.precision == "bfloat16"):
        images = pipe(
            prompt_embeds=embeds,
            negative_prompt_embeds=null.expand_as(embeds),
            num_inference_steps=steps,
            generator=noise(budget.seed, asked),
            output_type="pt",
            **controls,
        ).images
    return (torch.as_tensor(images).float() * 2 - 1).clamp(-1, 1).cpu()


def noise(seed: int, asked: Sequence[Question]) -> list[torch.Generator]:
    """Return where each question's noise comes from: as `kosmosg evaluate toyworld` draws it."""
    return [torch.Generator().manual_seed(seed_of(seed, "noise", one.index)) for one in asked]


def wanted(asked: Sequence[Question], size: int) -> Pictures:
    """Return the renderer's pictures of what is asked for."""
    return pictures([one.target for one in asked], size)


def strip(asked: Sequence[Question], images: Pictures) -> Image.Image:
    """Return the first questions side by side: the pictures that are shown, then what came."""
    size = images.shape[-1]
    columns = [
        [*(picture.resize((size, size)) for picture in one.shown), to_pil(image)]
        for one, image in zip(asked[:NUM_SHOWN], images, strict=False)
    ]
    height = max(len(column) for column in columns)
    step = size + GAP
    page = Image.new("RGB", (len(columns) * step - GAP, height * step - GAP), "white")
    for number, column in enumerate(columns):
        for row, picture in enumerate(column):
            page.paste(picture, (number * step, row * step))
    return page
