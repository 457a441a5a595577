"""`kosmosg generate` and `kosmosg caption`: pictures from prompts, words from pictures."""

import os
import random
import re
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kosmosg.cli import controls
from kosmosg.cli.prompt import Picture, open_picture, prompt_of, read_parts
from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    from kosmosg.model.mllm import MLLM
    from kosmosg.pipeline import KosmosGPipeline

MAX_SIDE = 2048

app = typer.Typer()

Parts = Annotated[
    list[str],
    typer.Argument(
        metavar="WORDS-AND-PICTURES",
        help="In the order in which the model reads them. The name of an image file is a picture, "
        "anything else is words.",
        show_default=False,
    ),
]
Model = Annotated[
    str,
    typer.Option(help="nano, the model that ships with kosmosg, or a directory with a model."),
]


class Sampler(StrEnum):
    """The samplers of the released demo, for `--scheduler`."""

    dpms = "dpms"
    ddim = "ddim"
    pndm = "pndm"


@app.command()
def generate(
    parts: Parts,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="PNG to write; one that exists is replaced. With -n it is a sheet of all "
            "pictures, and each is written beside it too (out-1.png, out-2.png, ...).",
        ),
    ] = Path("out.png"),
    model: Model = "nano",
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**63 - 1,
            help="Repeats a picture; picture i of several has seed + i - 1.",
            show_default="random, and printed",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=999, help="Steps of the sampler.", show_default="the model's own"),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            help="How strictly the prompt is followed; 1 and below: no guidance, twice as fast.",
            show_default="the model's own",
        ),
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="Words to guide away from.", show_default="none")
    ] = None,
    num_images: Annotated[
        int, typer.Option("-n", "--num-images", min=1, max=64, help="How many pictures.")
    ] = 1,
    scheduler: Annotated[
        Sampler | None, typer.Option(help="The sampler.", show_default="the model's own")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="N or WxH", help="Of a picture, in pixels.", show_default="the model's own"
        ),
    ] = None,
    text_guidance: controls.TextGuidance = None,
    picture_guidance: controls.PictureGuidance = None,
    guidance_interval: controls.GuidanceInterval = None,
    guidance_rescale: controls.GuidanceRescale = None,
    weight: controls.Weight = None,
    window: controls.Window = None,
    lora: controls.Lora = None,
) -> None:
    """Generate pictures from words and pictures.

    \b
    Examples:
      kosmosg generate "a red creature in the snow"
      kosmosg generate "a creature" me.png "in the snow" -o snow.png
      kosmosg generate me.png "and" you.png "on the beach" -n 4 --seed 7

    Each PNG carries its prompt, seed and settings, as JSON in its text. The paths of the files
    written go to stdout.
    """  # noqa: D301 -- click's mark for text to be kept as it is
    from kosmosg.cli.output import check_output, grid, png, write_files

    _let_threads_sleep()
    words = read_parts(parts)
    check_output(output, [part.path for part in words if isinstance(part, Picture)])
    width, height = _parse_size(size)
    _check_prompt(model, words, negative_prompt)
    told = controls.read_controls(
        prompt_of(words),
        text_guidance=text_guidance,
        picture_guidance=picture_guidance,
        guidance_interval=guidance_interval,
        guidance_rescale=guidance_rescale,
        weight=weight,
        window=window,
    )
    pipe = _load(model, scheduler)
    loras = controls.load_loras(pipe, lora)
    first = random.SystemRandom().randrange(2**31) if seed is None else seed
    seeds = [first + index for index in range(num_images)]
    arguments = {
        "num_inference_steps": _or(steps, pipe.generation_config.num_inference_steps),
        "guidance_scale": _or(guidance_scale, pipe.generation_config.guidance_scale),
        "width": _or(width, pipe.generation_config.width),
        "height": _or(height, pipe.generation_config.height),
        "negative_prompt": negative_prompt,
        **told,
    }
    images = pipe(
        [prompt_of(words)],
        **arguments,
        num_images_per_prompt=num_images,
        generator=_generators(seeds),
    ).images
    note = _note(words, model, pipe, arguments) | loras
    if num_images == 1:
        files = {output: png(images[0], note | {"seed": first})}
    else:
        files = {output: png(grid(images), note | {"seeds": seeds})}
        for number, (image, own) in enumerate(zip(images, seeds, strict=True), start=1):
            name = output.with_name(f"{output.stem}-{number}{output.suffix}")
            files[name] = png(image, note | {"seed": own})
    write_files(files)
    for path in files:
        print(path)
    print(f"seed {first}", file=sys.stderr)


@app.command()
def caption(
    picture: Annotated[str, typer.Argument(help="An image file.", show_default=False)],
    model: Model = "nano",
    max_words: Annotated[
        int, typer.Option(min=1, max=256, help="Stop after so many word pieces.")
    ] = 40,
) -> None:
    """Describe a picture in words.

    \b
    Example:
      kosmosg caption me.png
    """  # noqa: D301 -- click's mark for text to be kept as it is
    _let_threads_sleep()
    opened = open_picture(picture)

    import torch

    from kosmosg import release, sequence
    from kosmosg.tokenizer import Tokenizer

    directory = release.find(model)
    release.read_generation_config(directory)
    tokenizer = Tokenizer.from_pretrained(directory / "tokenizer")
    mllm = _load_speaker(directory)
    encoded = sequence.encode(
        [opened.image],
        tokenizer,
        num_latents=mllm.config["num_latents"],
        image_size=mllm.config["image_size"],
    )
    with torch.no_grad():
        ids = mllm.generate(
            sequence.collate([encoded], pad_id=tokenizer.pad_id),
            max_new_tokens=max_words,
            eos_id=tokenizer.eos_id,
        )
    print(tokenizer.decode(ids[0].tolist()))


def _let_threads_sleep() -> None:
    """Have torch's idle threads sleep, not spin; to be called before torch is imported.

    Where other programs want the cores too, spinning threads made a picture of seconds take
    minutes (2 cores, 10 busy processes: over 200 s against 5 s).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _load_speaker(directory: Path) -> "MLLM":
    """Return the MLLM that last learnt to predict words: stage 3 teaches it to paint instead."""
    from kosmosg import release
    from kosmosg.model.mllm import MLLM

    home = directory / "stage2"
    if not (home / "mllm").is_dir():
        home = directory
    release.check_part(home, "mllm")
    mllm = MLLM.from_pretrained(home / "mllm", local_files_only=True).float()
    release.check_weights(home, {"mllm": mllm.state_dict()})
    return mllm


def _parse_size(size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return None, None
    match = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", size)
    if match is None:
        raise ConfigError(f"--size is {size!r}; give a side such as 64, or WIDTHxHEIGHT")
    width, height = int(match[1]), int(match[2] or match[1])
    if max(width, height) > MAX_SIDE:
        raise ConfigError(f"--size is {size!r}; a side has at most {MAX_SIDE} pixels")
    return width, height


def _check_prompt(model: str, words: Sequence[str | Picture], negative_prompt: str | None) -> None:
    """Refuse a bad prompt before the seconds that loading a model takes."""
    from kosmosg import release
    from kosmosg.prompts import check_prompt, check_words
    from kosmosg.tokenizer import Tokenizer

    directory = release.find(model)
    max_pictures = release.read_generation_config(directory).max_pictures
    tokenizer = Tokenizer.from_pretrained(directory / "tokenizer")
    check_prompt(prompt_of(words), tokenizer, max_pictures=max_pictures)
    check_words([negative_prompt or ""], tokenizer)


def _load(model: str, scheduler: Sampler | None) -> "KosmosGPipeline":
    from diffusers.utils import logging

    from kosmosg.model.image_decoder import scheduler as named_scheduler
    from kosmosg.pipeline import KosmosGPipeline

    logging.disable_progress_bar()
    pipe = KosmosGPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=None, desc="denoising")  # None: only on a terminal
    if scheduler is not None:
        pipe.scheduler = named_scheduler(scheduler.value)
    return pipe


def _generators(seeds: Sequence[int]) -> list[Any]:
    import torch

    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _note(
    words: Sequence[str | Picture],
    model: str,
    pipe: "KosmosGPipeline",
    arguments: dict[str, Any],
) -> dict[str, Any]:
    """Return what the PNG says about how it was made; of pictures the name, not the path."""
    from importlib.metadata import version

    from kosmosg.pipeline import sampler_name

    prompt = [
        {"picture": part.path.name, "sha256": part.sha256} if isinstance(part, Picture) else part
        for part in words
    ]
    return {
        "prompt": prompt,
        **arguments,
        "scheduler": sampler_name(pipe.scheduler),
        "model": Path(model).resolve().name,
        "format_version": pipe.generation_config.format_version,
        "kosmosg": version("kosmosg"),
    }


def _or(given: Any, otherwise: Any) -> Any:  # noqa: ANN401 -- two values of one type
    return otherwise if given is None else given
