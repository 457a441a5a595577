"""Drawing pictures as `kosmosg generate`, a batch and a replay do: load once, then draw.

This is the seam where settings meet: what a picture was made with is a dict of arguments of `load`
and one of `draw`, which go into its note and come back to the same two functions. A new setting is
an argument of either, or of `KosmosGPipeline.__call__`, to which `draw` hands what it does not
know; pictures and files among them are `note.Picture` and `note.File`.
"""

import functools
import hashlib
import inspect
import json
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import InstanceOf

from kosmosg import conditions, devices, hashes, memory, release
from kosmosg.branches import pictures_of
from kosmosg.conditions import Condition
from kosmosg.controls import scales_of, weights_of
from kosmosg.devices import DType
from kosmosg.errors import ConfigError
from kosmosg.note import (
    VERSION,
    File,
    Machine,
    Model,
    Note,
    Picture,
    Scheduler,
    pack,
    prompt_of,
)
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.prompts import is_empty
from kosmosg.quantize import int8_weights
from kosmosg.samplers import sampler
from kosmosg.sequence import Prompt
from kosmosg.settings import checked

Parts = Sequence[str | Picture]
DECODER = ("unet", "vae")
ENCODER = ("mllm", "aligner", "tokenizer")


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """What to draw, in one pass.

    Args:
        prompt: Words and pictures; empty where `arguments` has `conditions`.
        seeds: One for each picture.
        arguments: Of `draw`, all else it takes.
    """

    prompt: Parts
    seeds: Sequence[int]
    arguments: Mapping[str, Any]


def load(
    model: str | Path,
    *,
    dtype: DType = "float32",
    device: str = "cpu",
    encoder: bool = True,
    quantize: Literal["int8"] | None = None,
    loras: Sequence[File] = (),
    lora_scales: Sequence[float] = (),
    adapter: InstanceOf[File] | None = None,
    adapter_scale: float = 1.0,
) -> KosmosGPipeline:
    """Return a model's pipeline on a device.

    Args:
        model: `nano`, or a directory.
        device: As torch names it: cpu, cuda, cuda:1, mps.
        encoder: False loads U-Net and VAE only, which is enough to draw from conditions; then the
            directory needs no mllm and no aligner.
        quantize: "int8" keeps the MLLM's matrices so.
        loras: Files for the U-Net, all at once.
        lora_scales: How much of each.
        adapter: A file for the MLLM and M, which needs `encoder`.
        adapter_scale: How much of it.

    Raises:
        CheckpointError: If the directory is not a whole model, or a LoRA not one for it.
        ConfigError: If there is no such device, no torchao to quantize, or the scales are not as
            many as the LoRAs.
    """
    devices.check(device, devices.find())
    if adapter is not None and not encoder:
        raise ConfigError(
            "an adapter changes how words and pictures are read, and a condition has been read; "
            "leave one of the two out"
        )
    options: dict[str, Any] = {} if encoder else {"mllm": None, "aligner": None}
    if quantize and encoder:
        options["quantization_config"] = int8_weights()
    pipe = KosmosGPipeline.from_pretrained(model, dtype=getattr(torch, dtype), **options)
    if quantize:
        memory.give_back()  # what the matrices took before
    if len(loras) != len(lora_scales):
        raise ConfigError(f"{len(loras)} LoRAs have {len(lora_scales)} scales; give each its own")
    names = [f"lora-{number}" for number in range(1, 1 + len(loras))]
    for name, file in zip(names, loras, strict=True):
        pipe.load_lora_weights(file.path, adapter_name=name)
    if names:
        pipe.set_adapters(names, list(lora_scales))
    if adapter is not None:
        pipe.load_adapter(adapter.path, scale=adapter_scale)
    # Where the weights are already, moving them would only have diffusers advise against float16.
    return pipe if device == "cpu" else typing.cast(KosmosGPipeline, pipe.to(device))


def encode_for(pipe: KosmosGPipeline, drawing: Drawing) -> Condition:
    """Return what `draw` needs to make a drawing when the encoder is gone.

    Raises:
        PromptError: If the model cannot read the prompt.
        ConfigError: If the drawing changes its condition on the way.
    """
    settings = checked(drawing.arguments, draw, KosmosGPipeline.__call__)
    if settings.get("picture_windows"):
        raise ConfigError(
            "windows of pictures need the language model while drawing; leave out --offload"
        )
    prompt = prompt_of(drawing.prompt)
    weights = weights_of(settings.get("picture_weights"), [prompt])[0]
    scale = settings.get("guidance_scale")
    text, picture = scales_of(
        pipe.generation_config.guidance_scale if scale is None else scale,
        settings.get("text_guidance_scale"),
        settings.get("picture_guidance_scale"),
    )
    # The readings of branches.plan, in one pass as there: what is in a pass decides the last bits.
    readings: list[Prompt] = [prompt]
    has_words = not is_empty([part for part in prompt if isinstance(part, str)])
    if text != picture and any(weights) and has_words:
        readings.append(pictures_of(prompt))
    with torch.no_grad():
        embeds, negative = pipe.encode_prompt(
            readings, settings.get("negative_prompt"), picture_weights=[weights] * len(readings)
        )
    assert negative is not None  # guidance was not turned off
    return Condition(
        prompt_embeds=embeds[:1],
        negative_prompt_embeds=negative[:1],
        # No picture says what the negative prompt says, and no words add nothing.
        picture_prompt_embeds=embeds[-1:] if any(weights) else negative[:1],
        provenance={},
    )


def encode(
    pipe: KosmosGPipeline,
    prompt: Parts,
    negative_prompt: str | None = None,
) -> Condition:
    """Return the condition of a prompt; its provenance lacks the model, which a pipe cannot name.

    Raises:
        PromptError: If the model cannot read the prompt.
    """
    pictures = [part for part in prompt if isinstance(part, Picture)]
    with torch.no_grad():
        embeds, negative = pipe.encode_prompt([prompt_of(prompt)], negative_prompt)
        alone = None
        if pictures and len(pictures) < len(prompt):
            alone = pipe.encode_prompt([prompt_of(pictures)], do_classifier_free_guidance=False)[0]
    assert negative is not None  # guidance was not turned off
    return Condition(
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        picture_prompt_embeds=alone,
        provenance={
            "prompt": pack(prompt),
            "negative_prompt": negative_prompt,
            "dtype": str(embeds.dtype).removeprefix("torch."),
            "shape": list(embeds.shape[1:]),
            "kosmosg": version("kosmosg"),
        },
    )


def draw(
    pipe: KosmosGPipeline,
    prompt: Parts,
    *,
    seeds: Sequence[int],
    encoded: Condition | None = None,
    scheduler: str | None = None,
    conditions: Sequence[File] = (),
    blend: float | None = None,
    init_image: InstanceOf[Picture] | None = None,
    strength: float | None = None,
    mask: InstanceOf[Picture] | None = None,
    controlnets: Sequence[File] = (),
    control_images: Sequence[InstanceOf[Picture]] = (),
    canny: bool = False,
    **arguments: Any,  # noqa: ANN401 -- of the pipeline's call
) -> Any:  # noqa: ANN401 -- diffusers' output
    """Return one picture for each seed, as `images`; noise is drawn on the CPU on any device.

    `nsfw_content_detected` says which are black because the pipe's safety checker flagged them.

    Args:
        pipe: Its sampler is another's only while drawing.
        prompt: Words and pictures; empty where there are conditions.
        seeds: One for each picture.
        encoded: From `encode_for`, instead of encoding now. It changes no bit.
        scheduler: One of `samplers.NAMES`; None is the model's own.
        conditions: One or two files that `kosmosg encode` wrote.
        blend: The share of the second of two.
        init_image: What to start from; its middle is scaled to the size drawn, as of all pictures
            here.
        strength: How much of it is given up; None is the canvas's own.
        mask: White is drawn anew, black stays.
        controlnets: The weights in the directories of ControlNets.
        control_images: What each of them reads.
        canny: Whether that is the edges of these pictures.
        arguments: Of the pipeline's call.

    Raises:
        KosmosGError: If the arguments cannot work.
    """
    call: Callable[..., Any] = pipe
    if init_image is not None or controlnets:
        from kosmosg.canvas import canvas_of, paint  # five pipelines of diffusers, seldom wanted

        defaults = pipe.generation_config
        width, height = arguments.get("width"), arguments.get("height")
        canvas = canvas_of(
            pipe,
            (width or defaults.width, height or defaults.height),
            init_image=None if init_image is None else init_image.image,
            strength=strength,
            mask=None if mask is None else mask.image,
            controlnets=[file.path.parent for file in controlnets],
            control_images=[picture.image for picture in control_images],
            canny=canny,
        )
        call = functools.partial(paint, pipe, canvas)
    condition = read_conditions(conditions, blend) if conditions else encoded
    given = {"prompt": [prompt_of(prompt)]} if condition is None else _embeds(condition)
    if condition is not None:
        arguments.pop("negative_prompt", None)  # it is in the condition
    if encoded is not None:
        arguments.pop("picture_weights", None)  # they are in there as well
    own = pipe.scheduler
    pipe.scheduler = sampler_of(pipe, scheduler, arguments)
    try:
        return call(
            **given,
            **arguments,
            num_images_per_prompt=len(seeds),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        )
    finally:
        pipe.scheduler = own


def check(pipe: KosmosGPipeline, drawing: Drawing) -> None:
    """Pass a drawing that `draw` can make, as far as can be said without working.

    Raises:
        KosmosGError: As `draw` would.
    """
    settings = checked(drawing.arguments, draw, KosmosGPipeline.__call__)
    sampler_of(pipe, settings.get("scheduler"), settings)
    given: dict[str, Any] = {"prompt": [prompt_of(drawing.prompt)]}
    if files := settings.get("conditions"):
        given = {"prompt": None} | _embeds(read_conditions(files, settings.get("blend")))
        settings.pop("negative_prompt", None)
    known = inspect.signature(pipe.check_inputs).parameters
    pipe.check_inputs(**given, **{name: value for name, value in settings.items() if name in known})
    if settings.get("init_image") is not None or settings.get("controlnets"):
        from kosmosg.canvas import check_ours, paint

        taken = {name for taker in (draw, paint) for name in inspect.signature(taker).parameters}
        check_ours({name: value for name, value in settings.items() if name not in taken})


def note(
    pipe: KosmosGPipeline,
    drawing: Drawing,
    *,
    model: str | Path,
    load: Mapping[str, Any],
    index: int | None,
    flagged: Sequence[bool] | None = None,
) -> Note:
    """Return what a picture's PNG says: all that `replay` needs and compares.

    Args:
        pipe: That drew it.
        drawing: What was drawn.
        model: As `load` was called with.
        load: What else `load` was called with; of the device its kind is noted.
        index: Which picture of the drawing this is; None is the sheet of all.
        flagged: What a safety checker said of each, if there was one.

    Raises:
        CheckpointError: If the model's files cannot be read.
    """
    directory = release.find(model)
    from_conditions = bool(drawing.arguments.get("conditions"))
    parts = DECODER if from_conditions else (*ENCODER, *DECODER)
    chosen = sampler_of(pipe, drawing.arguments.get("scheduler"), drawing.arguments)
    return Note(
        version=VERSION,
        prompt=pack(drawing.prompt),
        seeds=list(drawing.seeds),
        index=index,
        arguments=pack(drawing.arguments),
        load={**pack(load), "device": pipe.device.type},
        model=Model(name=directory.resolve().name, parts=hashes.of_parts(directory, parts)),
        scheduler=Scheduler(name=type(chosen).__name__, sha256=_sha256_of_config(chosen)),
        machine=Machine(
            device=_device_name(pipe.device),
            instructions=torch.backends.cpu.get_cpu_capability(),
            threads=torch.get_num_threads(),
        ),
        nsfw_content_detected=None
        if flagged is None
        else any(flagged if index is None else [flagged[index]]),
        versions={
            name: version(name) for name in ("kosmosg", "torch", "diffusers", "transformers")
        },
    )


def sheet(images: Sequence[Image.Image], gap: int = 4) -> Image.Image:
    """Return the pictures side by side, as square an arrangement as their number allows."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    page = Image.new(
        "RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), (255, 255, 255)
    )
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        page.paste(image, (column * (width + gap), row * (height + gap)))
    return page


def sampler_of(pipe: KosmosGPipeline, name: str | None, arguments: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- any sampler of diffusers
    """Return the sampler of that name, or the pipeline's own where there is none.

    Raises:
        ConfigError: If there is no such sampler, or it cannot make so many steps.
    """
    if name is None:
        return pipe.scheduler
    steps = arguments.get("num_inference_steps") or pipe.generation_config.num_inference_steps
    return sampler(name, pipe.scheduler.config, num_inference_steps=steps)


def read_conditions(files: Sequence[File], blend: float | None) -> Condition:
    """Return the condition in a file, or what lies between those in two.

    Raises:
        CheckpointError: If a file is not a condition.
        ConfigError: If there are more than two, or two and no blend.
    """
    if len(files) != 1 + (blend is not None):
        raise ConfigError(
            f"there are {len(files)} conditions and {'no' if blend is None else 'a'} blend; "
            "give one condition, or two and the share of the second"
        )
    read = [conditions.load(file.path) for file in files]
    return read[0] if blend is None else conditions.blend(read[0], read[1], blend)


def _embeds(condition: Condition) -> dict[str, Any]:
    given = {
        "prompt_embeds": condition.prompt_embeds,
        "negative_prompt_embeds": condition.negative_prompt_embeds,
    }
    if condition.picture_prompt_embeds is not None:
        given["picture_prompt_embeds"] = condition.picture_prompt_embeds
    return given


def _sha256_of_config(scheduler: Any) -> str:  # noqa: ANN401 -- any sampler of diffusers
    settings = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
