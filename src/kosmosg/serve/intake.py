"""Requests to drawings: pictures opened and made small, settings checked before anything waits."""

import base64
import binascii
import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from kosmosg import drawing, samplers, sequence
from kosmosg.drawing import Drawing
from kosmosg.errors import ConfigError, PromptError
from kosmosg.images import clip_square, open_image, open_mask
from kosmosg.model.alignernet import FIRST_ROW
from kosmosg.note import Picture, check_room, prompt_of
from kosmosg.prompts import check_length, check_prompt, check_words
from kosmosg.serve.device import Device
from kosmosg.serve.schema import (
    DATA_URL,
    MAX_EDIT_PICTURES,
    MAX_N,
    ConditionRequest,
    Control,
    EditRequest,
    GenerationRequest,
    ImagePart,
    ModelOffer,
    Part,
    Settings,
    placed,
    size_of,
)

_CANVAS_GRID = 8


def generation(request: GenerationRequest, device: Device) -> Drawing:
    """Return what a request for pictures asks for.

    Raises:
        KosmosGError: If it cannot be drawn; the message says what is wrong.
    """
    arguments = _arguments(request, device)
    parts, weights = _parts(request.prompt, device)
    if any(weight != 1.0 for weight in weights):
        arguments["picture_weights"] = [weights]
    if request.control is not None:
        arguments |= _control(request.control, _size(arguments), device)
    return _checked(Drawing(prompt=parts, seeds=_seeds(request), arguments=arguments), device)


def edit(
    request: EditRequest, pictures: Sequence[bytes], mask: bytes | None, device: Device
) -> Drawing:
    """Return what a request with pictures apart from its prompt asks for.

    With a mask the first picture is painted on, and is read only where the prompt names it.

    Raises:
        KosmosGError: If it cannot be drawn.
    """
    if not 1 <= len(pictures) <= MAX_EDIT_PICTURES:
        raise PromptError(f"there are {len(pictures)} pictures; give 1 to {MAX_EDIT_PICTURES}")
    arguments = _arguments(request, device)
    first = 0 if mask is None else 1
    try:
        order = placed(request.prompt, num_pictures=len(pictures), first=first)
    except ValueError as error:
        raise PromptError(str(error)) from None
    named = [part for part in order if isinstance(part, int)]
    _check_count(len(named), device)
    opened = {number: _read(pictures[number], number, device) for number in dict.fromkeys(named)}
    weights = request.weights
    if weights is not None:
        if len(weights) != len(pictures):
            raise PromptError(
                f"there are {len(weights)} weights and {len(pictures)} pictures; "
                "give one for each, in order"
            )
        arguments["picture_weights"] = [[weights[number] for number in named]]
    if mask is not None:
        arguments |= _canvas(pictures[0], mask, _size(arguments))
    parts = [part if isinstance(part, str) else opened[part] for part in order]
    return _checked(Drawing(prompt=parts, seeds=_seeds(request), arguments=arguments), device)


def condition(request: ConditionRequest, device: Device) -> Drawing:
    """Return what a request for a condition asks for: a drawing without pictures to be made.

    Raises:
        KosmosGError: If the prompt cannot be read.
    """
    parts, weights = _parts(request.prompt, device)
    if any(weight != 1.0 for weight in weights):
        raise PromptError("a condition is of pictures as they are; leave out their weights")
    arguments = {"negative_prompt": request.negative_prompt}
    _check_prompt(parts, request.negative_prompt, device)
    return Drawing(prompt=parts, seeds=[], arguments=arguments)


def offer(device: Device) -> ModelOffer:
    """Return what the server can be asked for."""
    defaults, config = device.pipe.generation_config, device.config
    width, height = defaults.width, defaults.height
    wide, high = _up(width * 3 // 2), _up(height * 3 // 2)
    sizes = [(width, height), (wide, height), (width, high)]
    return ModelOffer(
        max_pictures=defaults.max_pictures,
        sizes=[f"{one}x{two}" for one, two in sizes],
        default_size=f"{width}x{height}",
        schedulers=list(samplers.NAMES),
        default_scheduler=defaults.scheduler,
        default_steps=_default_steps(device),
        default_guidance=defaults.guidance_scale,
        max_n=MAX_N,
        max_steps=config.max_steps,
        max_side=_max_side(device),
        max_edit_pictures=MAX_EDIT_PICTURES,
        loras=list(config.loras),
        controls=list(config.controlnets),
        max_upload_bytes=config.max_upload_bytes,
    )


def lora_of(request: Settings, device: Device) -> tuple[str, float] | None:
    """Return the LoRA that a request names, and its scale.

    Raises:
        ConfigError: If the server has none of that name.
    """
    if request.lora is None:
        return None
    if request.lora not in device.config.loras:
        raise _unknown("lora", request.lora, device.config.loras)
    return request.lora, request.lora_scale


def _arguments(request: Settings, device: Device) -> dict[str, Any]:
    """Return the settings as `drawing.draw` takes them, the model's own filled in."""
    defaults, config = device.pipe.generation_config, device.config
    try:
        size = size_of(request.size) or (defaults.width, defaults.height)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    steps = request.num_inference_steps or _default_steps(device)
    scale = request.guidance_scale
    if max(size) > _max_side(device):
        raise ConfigError(
            f"size is {size[0]}x{size[1]}; a side has at most {_max_side(device)} pixels here: "
            f"auto is {defaults.width}x{defaults.height}"
        )
    if steps > config.max_steps:
        raise ConfigError(f"num_inference_steps is {steps}; give 1 to {config.max_steps}")
    lora_of(request, device)
    if request.scheduler is not None:
        samplers.check_name(request.scheduler)
    arguments: dict[str, Any] = {
        "num_inference_steps": steps,
        "guidance_scale": defaults.guidance_scale if scale is None else scale,
        "width": size[0],
        "height": size[1],
        "negative_prompt": request.negative_prompt,
        "scheduler": request.scheduler,
    }
    if request.image_guidance_scale is not None:
        arguments["picture_guidance_scale"] = request.image_guidance_scale
    return arguments


def _parts(prompt: str | Sequence[Part], device: Device) -> tuple[list[str | Picture], list[float]]:
    """Return a prompt's words and opened pictures, and the weight of each picture."""
    if isinstance(prompt, str):
        return [prompt], []
    given = [part for part in prompt if isinstance(part, ImagePart)]
    _check_count(len(given), device)
    opened: dict[str, Picture] = {}
    parts: list[str | Picture] = []
    for part in prompt:
        if not isinstance(part, ImagePart):
            parts.append(part.text)
            continue
        url = part.image_url.url
        if url not in opened:
            opened[url] = _read(_bytes_of(url), len(opened), device)
        parts.append(opened[url])
    return parts, [part.weight for part in given]


def _read(data: bytes, number: int, device: Device) -> Picture:
    """Return a picture of a prompt, of which only what the model sees is kept."""
    try:
        image = open_image(data)
        seen = clip_square(image, device.pipe.mllm.config["image_size"])
    except PromptError as error:
        raise PromptError(f"picture {number + 1}: {error}") from None
    sha256 = hashlib.sha256(data).hexdigest()
    return Picture(path=Path(f"picture-{number + 1}"), image=seen, sha256=sha256)


def _bytes_of(url: str) -> bytes:
    head = DATA_URL.match(url)
    if head is None:
        raise PromptError(
            f"a picture's url begins with {url[:30]!r}; nothing is fetched: "
            "give data:image/png;base64,..."
        )
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise PromptError(f"a picture's base64 is damaged ({error}); encode it again") from None


def _control(control: Control, size: tuple[int, int], device: Device) -> dict[str, Any]:
    from kosmosg.canvas import fit  # five pipelines of diffusers: a second of the start

    file = device.config.controlnets.get(control.name)
    if file is None:
        raise _unknown("control", control.name, device.config.controlnets)
    data = _bytes_of(control.image)
    image, sha256 = fit(open_image(data), size), hashlib.sha256(data).hexdigest()
    picture = Picture(path=Path("control"), image=image, sha256=sha256)
    return {"controlnets": [file], "control_images": [picture]}


def _canvas(picture: bytes, mask: bytes, size: tuple[int, int]) -> dict[str, Any]:
    from kosmosg.canvas import fit, fit_mask  # five pipelines of diffusers: a second of the start

    image, marked = open_image(picture), open_mask(mask)
    if image.size != marked.size:
        raise ConfigError(
            f"the mask is {marked.width} x {marked.height} and the first picture "
            f"{image.width} x {image.height}; give a mask of its size"
        )
    white = fit_mask(marked, size)
    if white.getextrema()[1] == 0:
        raise ConfigError(
            "the mask leaves nothing to paint; make it transparent, or white, where the picture is "
            "to be painted anew"
        )
    given: tuple[tuple[str, Image.Image, bytes], ...] = (
        ("init_image", fit(image, size), picture),
        ("mask", white, mask),
    )
    return {
        name: Picture(path=Path(name), image=one, sha256=hashlib.sha256(data).hexdigest())
        for name, one, data in given
    }


def _checked(drawn: Drawing, device: Device) -> Drawing:
    """Pass a drawing that nothing is known to be wrong with."""
    settings = drawn.arguments
    _check_prompt(drawn.prompt, settings["negative_prompt"], device)
    check_room(drawn.prompt, settings)
    drawing.check(device.pipe, drawn)
    on_canvas = "init_image" in settings or "controlnets" in settings
    if on_canvas and any(side % _CANVAS_GRID for side in _size(settings)):
        raise ConfigError(
            f"size is {settings['width']}x{settings['height']}; with a mask or a control give "
            f"multiples of {_CANVAS_GRID}"
        )
    return drawn


def _check_prompt(
    prompt: Sequence[str | Picture], negative_prompt: str | None, device: Device
) -> None:
    pipe = device.pipe
    check_prompt(
        prompt_of(prompt), pipe.tokenizer, max_pictures=pipe.generation_config.max_pictures
    )
    check_words([negative_prompt or ""], pipe.tokenizer)
    most = pipe.aligner.config["max_positions"] - FIRST_ROW
    for parts in (prompt_of(prompt), [negative_prompt or ""]):
        num_latents = pipe.mllm.config["num_latents"]
        check_length(sequence.length(parts, pipe.tokenizer, num_latents=num_latents), most)


def _check_count(num_pictures: int, device: Device) -> None:
    """Pass no more pictures than are worth opening."""
    most = device.pipe.generation_config.max_pictures
    if num_pictures > most:
        raise PromptError(
            f"the prompt has {num_pictures} pictures; this model takes at most {most}: "
            f"leave out {num_pictures - most}"
        )


def _seeds(request: Settings) -> list[int]:
    first = random.SystemRandom().randrange(2**31) if request.seed is None else request.seed
    return [first + index for index in range(request.n or 1)]


def _size(arguments: Mapping[str, Any]) -> tuple[int, int]:
    return arguments["width"], arguments["height"]


def _default_steps(device: Device) -> int:
    return min(device.pipe.generation_config.num_inference_steps, device.config.max_steps)


def _max_side(device: Device) -> int:
    defaults = device.pipe.generation_config
    return device.config.max_side or 2 * max(defaults.width, defaults.height)


def _up(side: int) -> int:
    return -(-side // _CANVAS_GRID) * _CANVAS_GRID


def _unknown(what: str, name: str, known: Mapping[str, object]) -> ConfigError:
    names = f"it has {', '.join(known)}" if known else "it was started without any"
    return ConfigError(f"this server has no {what} {name[:80]!r}; {names}")
