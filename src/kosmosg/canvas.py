"""What a picture keeps to besides its prompt: an init picture, a mask, ControlNets.

The denoising loops here are diffusers' own, with our U-Net, VAE, sampler and prompt embeds. What
only our loop does (guidance by pictures and words apart, step windows) is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.controlnet.pipeline_controlnet_img2img import (
    StableDiffusionControlNetImg2ImgPipeline,
)
from diffusers.pipelines.controlnet.pipeline_controlnet_inpaint import (
    StableDiffusionControlNetInpaintPipeline,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
)
from PIL import Image, ImageOps

from kosmosg.controlnet import check_controlnet, edges, load_controlnet
from kosmosg.denoising import StepCallback
from kosmosg.errors import ConfigError
from kosmosg.images import check_finite, to_rgb
from kosmosg.pipeline import Generator, GivenEmbeds, KosmosGPipeline
from kosmosg.prompts import Prompts

STRENGTH = 0.8
GRID = 8  # of the sizes that diffusers' pipelines take
# What our own loop takes besides; these values change nothing.
NEUTRAL: dict[str, Any] = {"guidance_interval": (0.0, 1.0), "guidance_rescale": 0.0, "eta": 0.0}
# Weights of pictures act on the condition; the third branch's embeds may lie there unused.
UNHARMED = ("picture_weights", "picture_prompt_embeds")


@dataclass(frozen=True, kw_only=True, eq=False)
class Canvas:
    """What is given about a picture besides its prompt; all pictures in the size to be painted.

    Args:
        init_image: What to start from.
        strength: How much of the schedule is run on the init picture: 1 keeps nothing of it. None:
            0.8, and 1 where a mask says what is kept.
        mask: White is painted anew, black stays; needs an init picture.
        controlnets: Networks that steer the U-Net by a picture.
        control_images: One for each of them, as it was trained to read them (edges, depth, ...).
    """

    init_image: Image.Image | None = None
    strength: float | None = None
    mask: Image.Image | None = None
    controlnets: Sequence[ControlNetModel] = ()
    control_images: Sequence[Image.Image] = ()


def paint(
    pipe: KosmosGPipeline,
    canvas: Canvas,
    prompt: Prompts | None = None,
    *,
    width: int | None = None,
    height: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: Prompts | None = None,
    num_images_per_prompt: int = 1,
    generator: Generator | None = None,
    prompt_embeds: GivenEmbeds | None = None,
    negative_prompt_embeds: GivenEmbeds | None = None,
    output_type: str = "pil",
    cross_attention_kwargs: dict[str, Any] | None = None,
    callback_on_step_end: StepCallback | None = None,
    **only_ours: Any,  # noqa: ANN401 -- what else the pipeline's call takes
) -> Any:  # noqa: ANN401 -- diffusers' output, with `images`
    """Return pictures of the prompt that keep to the canvas; arguments as of the pipeline's call.

    Args:
        callback_on_step_end: Called with diffusers' pipeline first, which is another than `pipe`.
        only_ours: Further arguments of the pipeline's call, which must say nothing (None).

    Raises:
        ConfigError: If the canvas lacks something, an argument cannot work or is one that only
            Kosmos-G's own loop knows.
        PromptError: If a prompt cannot be read.

    Source:
        NUMERICS section 10: a ControlNet counts 1.0 over the whole schedule, as released.
    """
    check_ours(only_ours)
    defaults = pipe.generation_config
    width = defaults.width if width is None else width
    height = defaults.height if height is None else height
    steps = defaults.num_inference_steps if num_inference_steps is None else num_inference_steps
    guidance_scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
    pipe.check_inputs(
        prompt,
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        num_images_per_prompt=num_images_per_prompt,
        negative_prompt=negative_prompt,
        prompt_embeds=prompt_embeds,
        negative_prompt_embeds=negative_prompt_embeds,
        output_type=output_type,
    )
    _check(canvas, pipe, (width, height), steps)
    with torch.no_grad():
        embeds, negative = pipe.encode_prompt(
            prompt,
            negative_prompt,
            num_images_per_prompt,
            do_classifier_free_guidance=guidance_scale > 1,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            picture_weights=only_ours.get("picture_weights"),
        )
    draw = _tool(pipe, canvas, len(embeds))
    drawn = draw(
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=generator,
        # diffusers would turn values that are no numbers into black pixels; our checks come after
        output_type="latent" if output_type == "latent" else "pt",
        cross_attention_kwargs=cross_attention_kwargs,
        callback_on_step_end=callback_on_step_end,
    )
    if output_type == "latent":
        return drawn
    check_finite(drawn.images)
    return pipe.present(drawn.images, output_type)


def check_ours(arguments: Mapping[str, Any]) -> None:
    """Pass further arguments of the pipeline's call none of which only its own loop knows.

    Raises:
        ConfigError: Naming one that says something.
    """
    for name, value in arguments.items():
        if name not in UNHARMED and value is not None and value != NEUTRAL.get(name):
            raise ConfigError(
                f"{name} is {value}, which only Kosmos-G's own loop knows; leave it out, or "
                "generate without init picture, mask and ControlNet"
            )


def canvas_of(
    pipe: KosmosGPipeline,
    size: tuple[int, int],
    *,
    init_image: Image.Image | None,
    strength: float | None,
    mask: Image.Image | None,
    controlnets: Sequence[Path],
    control_images: Sequence[Image.Image],
    canny: bool,
) -> Canvas:
    """Return the canvas of pictures of any size and of ControlNets' directories.

    Args:
        pipe: For which the ControlNets must be made.
        size: Width and height to be painted.
        canny: Whether the ControlNets read the edges of their pictures.

    Raises:
        CheckpointError: If a ControlNet cannot be read.
        ConfigError: If one belongs to another model, or OpenCV is needed and missing.
    """
    controls = [fit(image, size) for image in control_images]
    return Canvas(
        init_image=None if init_image is None else fit(init_image, size),
        strength=strength,
        mask=None if mask is None else fit_mask(mask, size),
        controlnets=[load_controlnet(directory, pipe) for directory in controlnets],
        control_images=[edges(image) for image in controls] if canny else controls,
    )


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the middle of a picture, scaled to (width, height)."""
    image = to_rgb(image)
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def fit_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the middle of a mask, scaled to (width, height): black or white, nothing between."""
    grey = np.asarray(fit(mask, size).convert("L"))
    return Image.fromarray(np.where(grey > 127, 255, 0).astype(np.uint8))


def _tool(pipe: KosmosGPipeline, canvas: Canvas, num_pictures: int) -> Any:  # noqa: ANN401 -- a pipeline's call
    """Return diffusers' pipeline for what the canvas holds, with it filled in."""
    init: dict[str, Any] = {}
    if canvas.init_image is not None:
        strength = _strength(canvas)
        init = {"image": [canvas.init_image] * num_pictures, "strength": strength}
    if canvas.mask is not None:
        width, height = canvas.mask.size
        masks = [canvas.mask] * num_pictures
        init |= {"mask_image": masks, "width": width, "height": height}
    if not canvas.controlnets:
        kind: Any = (
            StableDiffusionInpaintPipeline if canvas.mask else StableDiffusionImg2ImgPipeline
        )
        return partial(_share(pipe, kind), **init)
    controlnets: Any = list(canvas.controlnets)
    images: Any = list(canvas.control_images)
    scales: Any = [1.0] * len(controlnets)
    if len(controlnets) == 1:
        (controlnets,), (images,), (scales,) = controlnets, images, scales
    init["controlnet_conditioning_scale"] = scales
    if canvas.init_image is None:
        width, height = canvas.control_images[0].size
        tool = _share(pipe, StableDiffusionControlNetPipeline, controlnet=controlnets)
        return partial(tool, image=images, width=width, height=height, **init)
    kind = (
        StableDiffusionControlNetInpaintPipeline
        if canvas.mask
        else StableDiffusionControlNetImg2ImgPipeline
    )
    return partial(_share(pipe, kind, controlnet=controlnets), control_image=images, **init)


def _share(
    pipe: KosmosGPipeline,
    kind: Any,  # noqa: ANN401 -- a class of diffusers
    **parts: Any,  # noqa: ANN401 -- a ControlNet or several
) -> Any:  # noqa: ANN401 -- an object of it
    """Return a pipeline of diffusers that has our parts, and no text encoder of its own."""
    made = kind(
        unet=pipe.unet,
        vae=pipe.vae,
        scheduler=pipe.scheduler,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )
    made.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    return made


def _check(canvas: Canvas, pipe: KosmosGPipeline, size: tuple[int, int], steps: int) -> None:
    """Pass a canvas that one of the pipelines can take.

    Raises:
        ConfigError: Naming what is wrong with it.
    """
    if canvas.init_image is None and (canvas.mask is not None or canvas.strength is not None):
        what = "a mask" if canvas.mask is not None else "a strength"
        raise ConfigError(f"there is {what} and no init picture; give the picture to start from")
    if len(canvas.controlnets) != len(canvas.control_images):
        raise ConfigError(
            f"there are {len(canvas.controlnets)} ControlNets and {len(canvas.control_images)} "
            "control pictures; give one picture for each"
        )
    if canvas.init_image is None and not canvas.controlnets:
        raise ConfigError("the canvas is empty; give an init picture or a ControlNet")
    if canvas.init_image is not None:
        _check_strength(_strength(canvas), steps)
    if canvas.mask is not None and np.asarray(canvas.mask.convert("L")).max() < 128:
        raise ConfigError("the mask is black, so nothing would be painted; white is painted anew")
    _check_sizes(canvas, size)
    for controlnet in canvas.controlnets:
        check_controlnet(controlnet, pipe, "the ControlNet")


def _check_sizes(canvas: Canvas, size: tuple[int, int]) -> None:
    if any(side % GRID for side in size):
        raise ConfigError(
            f"the size is {size[0]} x {size[1]}; with an init picture or ControlNet give "
            f"multiples of {GRID}"
        )
    for picture in (canvas.init_image, canvas.mask, *canvas.control_images):
        if picture is not None and picture.size != size:
            raise ConfigError(
                f"a picture of the canvas is {picture.width} x {picture.height} and the size "
                f"{size[0]} x {size[1]}; scale it with kosmosg.canvas.fit"
            )


def _strength(canvas: Canvas) -> float:
    if canvas.strength is not None:
        return canvas.strength
    return STRENGTH if canvas.mask is None else 1.0


def _check_strength(strength: float, steps: int) -> None:
    if not 0 < strength <= 1:
        raise ConfigError(f"strength is {strength}; give more than 0 and at most 1")
    if int(steps * strength) < 1:
        raise ConfigError(
            f"strength {strength} of {steps} steps is less than one step; give more of either"
        )
