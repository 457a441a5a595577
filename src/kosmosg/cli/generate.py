"""`kosmosg generate`: pictures from prompts."""

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kosmosg.cli.canvas import (
    Canny,
    ControlImages,
    ControlNets,
    InitImage,
    Mask,
    Strength,
    open_canvas,
    painter,
)
from kosmosg.cli.options import (
    Model,
    Options,
    Parts,
    Sampler,
    arguments,
    let_threads_sleep,
    parse_size,
)
from kosmosg.cli.prompt import Picture, prompt_of, read_parts

if TYPE_CHECKING:
    from kosmosg.pipeline import KosmosGPipeline

app = typer.Typer()


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
    init_image: InitImage = None,
    strength: Strength = None,
    mask: Mask = None,
    controlnets: ControlNets = None,
    control_images: ControlImages = None,
    canny: Canny = False,
) -> None:
    """Generate pictures from words and pictures.

    \b
    Examples:
      kosmosg generate "a red creature in the snow"
      kosmosg generate "a creature" me.png "in the snow" -o snow.png
      kosmosg generate me.png "and" you.png "on the beach" -n 4 --seed 7
      kosmosg generate me.png "at night" --init-image photo.png --mask mask.png

    Each PNG carries its prompt, seed and settings, as JSON in its text. The paths of the files
    written go to stdout.
    """  # noqa: D301 -- click's mark for text to be kept as it is
    from kosmosg.cli.output import check_output, write_files

    let_threads_sleep()
    words = read_parts(parts)
    canvas = open_canvas(
        init_image=init_image,
        strength=strength,
        mask=mask,
        controlnets=controlnets,
        control_images=control_images,
        canny=canny,
    )
    pictures = [part for part in words if isinstance(part, Picture)]
    pictures += canvas.pictures if canvas else []
    check_output(output, [picture.path for picture in pictures])
    parse_size(size)
    _check_prompt(model, words, negative_prompt)
    pipe = _load(model, scheduler)
    options = Options(
        steps=steps, guidance_scale=guidance_scale, negative_prompt=negative_prompt, size=size
    )
    settings = arguments(options, pipe.generation_config)
    first = random.SystemRandom().randrange(2**31) if seed is None else seed
    seeds = [first + index for index in range(num_images)]
    draw = painter(pipe, canvas, width=settings["width"], height=settings["height"])
    images = draw(
        [prompt_of(words)],
        **settings,
        num_images_per_prompt=num_images,
        generator=_generators(seeds),
    ).images
    noted = settings | (canvas.note() if canvas else {})
    files = _files(output, images, seeds, _note(words, model, pipe, noted))
    write_files(files)
    for path in files:
        print(path)
    print(f"seed {first}", file=sys.stderr)


def _files(
    output: Path, images: Sequence[Any], seeds: Sequence[int], note: dict[str, Any]
) -> dict[Path, bytes]:
    """Return what to write: the picture, or a sheet of all and each by itself."""
    from kosmosg.cli.output import grid, png

    if len(images) == 1:
        return {output: png(images[0], note | {"seed": seeds[0]})}
    files = {output: png(grid(images), note | {"seeds": list(seeds)})}
    for number, (image, own) in enumerate(zip(images, seeds, strict=True), start=1):
        name = output.with_name(f"{output.stem}-{number}{output.suffix}")
        files[name] = png(image, note | {"seed": own})
    return files


def _check_prompt(model: str, words: Sequence[str | Picture], negative_prompt: str | None) -> None:
    """Refuse a bad prompt before the seconds that loading a model takes."""
    from kosmosg import release, sequence
    from kosmosg.prompts import check_length, check_prompt, check_words
    from kosmosg.tokenizer import Tokenizer

    directory = release.find(model)
    max_pictures = release.read_generation_config(directory).max_pictures
    tokenizer = Tokenizer.from_pretrained(directory / "tokenizer")
    check_prompt(prompt_of(words), tokenizer, max_pictures=max_pictures)
    check_words([negative_prompt or ""], tokenizer)
    sizes = release.read_sizes(directory)
    for prompt in (prompt_of(words), [negative_prompt or ""]):
        length = sequence.length(prompt, tokenizer, num_latents=sizes.num_latents)
        check_length(length, sizes.max_length)


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
