"""`kosmosg generate`: pictures from prompts."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kosmosg.cli.canvas import Canny, ControlImages, ControlNets, InitImage, Mask, Strength
from kosmosg.cli.controls import (
    Adapter,
    GuidanceInterval,
    GuidanceRescale,
    Lora,
    PictureGuidance,
    TextGuidance,
    Weight,
    Window,
    adapter_arguments,
    fractions,
    lora_arguments,
    warnings_as_lines,
)
from kosmosg.cli.jobs import (
    Job,
    check_job,
    drawing_of,
    is_done,
    job_of,
    located,
    outputs,
    read_jobs,
)
from kosmosg.cli.options import (
    Device,
    Model,
    OptionalParts,
    Options,
    Precision,
    Quantize,
    SafetyChecker,
    hide_loading_bars,
    prepare_libraries,
)
from kosmosg.errors import ConfigError
from kosmosg.note import MAX_IMAGES, MAX_SEED, MAX_STEPS, png
from kosmosg.samplers import NAMES

if TYPE_CHECKING:
    from PIL import Image

    from kosmosg.drawing import Drawing
    from kosmosg.pipeline import KosmosGPipeline

app = typer.Typer()


@app.command()
def generate(
    parts: OptionalParts = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="PNG to write; one that exists is replaced. With -n it is a sheet of all "
            "pictures, and each is written beside it too (out-1.png, out-2.png, ...).",
            show_default="out.png",
        ),
    ] = None,
    model: Model = "nano",
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MAX_SEED,
            help="Repeats a picture; picture i of several has seed + i - 1.",
            show_default="random, and printed",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_STEPS, help="Steps of the sampler.", show_default="the model's own"
        ),
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
        int, typer.Option("-n", "--num-images", min=1, max=MAX_IMAGES, help="How many pictures.")
    ] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help=f"The sampler: {', '.join(NAMES)}. lcm and tcd want a U-Net made for them.",
            show_default="the model's own",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="N or WxH", help="Of a picture, in pixels.", show_default="the model's own"
        ),
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of words and pictures: a file that `kosmosg encode` wrote. Needs no more "
            "of the model than U-Net and VAE. Twice, with --blend: what lies between two.",
        ),
    ] = None,
    blend: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of the second of two conditions."),
    ] = None,
    init_image: InitImage = None,
    strength: Strength = None,
    mask: Mask = None,
    controlnet: ControlNets = None,
    control_image: ControlImages = None,
    canny: Canny = False,
    text_guidance: TextGuidance = None,
    picture_guidance: PictureGuidance = None,
    guidance_interval: GuidanceInterval = None,
    guidance_rescale: GuidanceRescale = None,
    weight: Weight = None,
    window: Window = None,
    lora: Lora = None,
    adapter: Adapter = None,
    batch: Annotated[
        Path | None,
        typer.Option(
            help="Draw each line of a file: a JSON object with `output`, `prompt` (a list of texts "
            'and {"picture": PATH}) and settings by the names of these options (`steps`, '
            "`num_images`). Options hold where a line says nothing.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Pass over what is there already, drawn with the same settings."
        ),
    ] = False,
    dtype: Precision = "auto",
    device: Device = "auto",
    quantize: Quantize = None,
    safety_checker: SafetyChecker = None,
    offload: Annotated[
        bool,
        typer.Option(
            "--offload",
            help="Encode first, then free the language model's memory before drawing.",
        ),
    ] = False,
) -> None:
    """Generate pictures from words and pictures.

    \b
    Examples:
      kosmosg generate "a red creature in the snow"
      kosmosg generate "a creature" me.png "in the snow" -o snow.png
      kosmosg generate me.png "and" you.png "on the beach" -n 4 --seed 7
      kosmosg generate me.png "at night" --init-image photo.png --mask mask.png
      kosmosg generate me.png "and" you.png --weight 0.6 --weight 1 --lora style.safetensors:0.8
      kosmosg generate --batch prompts.jsonl --resume

    Each PNG carries its prompt, seeds and settings, as JSON in its text: `kosmosg replay` draws it
    again. The paths of the files written go to stdout.
    """  # noqa: D301 -- click's mark for text to be kept as it is
    prepare_libraries()
    from kosmosg import devices, drawing, release, safety

    options = Options(
        num_images=num_images,
        seed=seed,
        steps=steps,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        scheduler=scheduler,
        size=size,
        condition=tuple(condition or ()),
        blend=blend,
        init_image=init_image,
        strength=strength,
        mask=mask,
        controlnet=tuple(controlnet or ()),
        control_image=tuple(control_image or ()),
        canny=canny,
        text_guidance=text_guidance,
        picture_guidance=picture_guidance,
        guidance_interval=None
        if guidance_interval is None
        else fractions("--guidance-interval", guidance_interval),
        guidance_rescale=guidance_rescale,
        weight=tuple(weight or ()),
        window=tuple(fractions("--window", one) for one in window or ()),
    )
    if batch is None:
        jobs = [job_of(parts or (), output or Path("out.png"), options)]
    elif parts or output:
        what = "words and pictures" if parts else "--output"
        raise ConfigError(f"give {what}, or --batch, and not both: its lines have their own")
    else:
        jobs = read_jobs(batch, options)
    directory = release.find(model)
    for job in jobs:
        with located(job.where):
            check_job(job, directory)
    hide_loading_bars()
    where = devices.choose(device, devices.find())
    load: dict[str, Any] = {
        "dtype": devices.choose_dtype(dtype, where),
        "device": where,
        **({} if quantize is None else {"quantize": quantize.value}),
        **lora_arguments(lora or ()),
        **adapter_arguments(adapter),
    }
    encoder = any(not job.options.condition for job in jobs)
    with warnings_as_lines():
        pipe = drawing.load(directory, **load, encoder=encoder)
    if safety_checker is not None:
        safety.attach(pipe, safety_checker)
    for job in jobs:
        with located(job.where):
            drawing.check(pipe, drawing_of(job, directory))
    if resume:
        jobs = [job for job in jobs if not _is_there(job, pipe, directory, load)]
    _draw_all(jobs, pipe, directory, load, offload=offload)
    if batch is None and jobs:
        print(f"seed {jobs[0].seed}", file=sys.stderr)


def _draw_all(
    jobs: Sequence[Job],
    pipe: "KosmosGPipeline",
    directory: Path,
    load: dict[str, Any],
    *,
    offload: bool,
) -> None:
    """Draw and write one job after another; Ctrl-C leaves those that are done."""
    from tqdm import tqdm

    from kosmosg import drawing
    from kosmosg.cli.output import write_files

    alone = len(jobs) == 1
    # disable=None: a bar on a terminal only.
    pipe.set_progress_bar_config(disable=None if alone else True, desc="denoising")
    encoded = {}
    if offload:
        for job in jobs:
            if not job.options.condition:
                with located(job.where):
                    encoded[job] = drawing.encode_for(pipe, drawing_of(job, directory))
        pipe.free_encoder()
    done = 0
    try:
        for job in tqdm(jobs, desc="pictures", disable=True if alone else None):
            with located(job.where):
                drawn = drawing_of(job, directory)
                output = drawing.draw(
                    pipe,
                    drawn.prompt,
                    seeds=drawn.seeds,
                    encoded=encoded.get(job),
                    **drawn.arguments,
                )
            files = _files(job, output, pipe, drawn, directory, load)
            write_files(files)
            for number, flagged in enumerate(output.nsfw_content_detected or (), start=1):
                if flagged:
                    print(
                        f"kosmosg: {job.where}the safety checker flagged picture {number} of "
                        f"{len(output.images)}, which is black now; try another seed or prompt",
                        file=sys.stderr,
                    )
            done += 1
            for path in files:
                print(path, flush=True)
    except KeyboardInterrupt:
        if alone:
            raise
        print(
            f"kosmosg: stopped by Ctrl-C with {done} of {len(jobs)} done; "
            "the same command with --resume draws the rest",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None


def _files(
    job: Job,
    output: Any,  # noqa: ANN401 -- of the pipeline
    pipe: "KosmosGPipeline",
    drawn: "Drawing",
    directory: Path,
    load: dict[str, Any],
) -> dict[Path, bytes]:
    """Return what to write: the picture, or a sheet of all and each by itself."""
    from kosmosg import drawing

    images: Sequence[Image.Image] = output.images
    several = len(images) > 1
    pictures = [drawing.sheet(images), *images] if several else images
    indices = [None, *range(len(images))] if several else [0]
    flagged = output.nsfw_content_detected
    note = partial(drawing.note, pipe, drawn, model=directory, load=load, flagged=flagged)
    return {
        path: png(image, note(index=index))
        for path, image, index in zip(outputs(job), pictures, indices, strict=True)
    }


def _is_there(job: Job, pipe: "KosmosGPipeline", directory: Path, load: dict[str, Any]) -> bool:
    from kosmosg import drawing

    drawn = drawing_of(job, directory)
    # As if nothing were flagged: whether there is a checker at all is what counts.
    flagged = None if pipe.safety_checker is None else [False]
    note = drawing.note(pipe, drawn, model=directory, load=load, index=None, flagged=flagged)
    return is_done(job, note)
