"""`kosmosg evaluate dreambench`, `coco`, `compare`: the paper's tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kosmosg.cli.options import Device, Model, hide_loading_bars, prepare_libraries
from kosmosg.cli.stopping import goes_on
from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from kosmosg.evaluate.dreambench import Masker
    from kosmosg.evaluate.result import Result

app = typer.Typer()

Output = Annotated[
    Path,
    typer.Option(
        "-o",
        "--output",
        help="The run's folder: pictures, result.json, report.html. The same command goes on.",
        show_default=False,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where the evaluators' weights lie; else KOSMOSG_WEIGHTS_DIR.",
        show_default=False,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Only so many prompts, the first ones.", show_default="all"),
]
Batch = Annotated[int, typer.Option(min=1, help="Prompts drawn at once.")]
Steps = Annotated[int, typer.Option(min=1, help="Of the sampler.")]
Guidance = Annotated[float, typer.Option(help="Strength of guidance.")]
Size = Annotated[
    int | None, typer.Option(help="Of a picture's side, in pixels.", show_default="the model's")
]
# No auto: a figure does not depend on which machine it was found on.
DType = Annotated[
    Literal["float32", "float16", "bfloat16"], typer.Option(help="What to compute in.")
]


@app.command()
@goes_on
def dreambench(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET",
            help="The folder dataset/ of github.com/google/dreambooth.",
            show_default=False,
        ),
    ],
    output: Output,
    model: Model = "nano",
    protocol: Annotated[
        Literal["kosmosg", "dreambooth-all-refs", "uno-multi", "foreground-masked"],
        typer.Option(
            help="kosmosg compares with the picture that was shown, dreambooth-all-refs with all "
            "of the subject, foreground-masked with the first, without backgrounds; uno-multi "
            "shows two subjects, draws six pictures and compares with all of both."
        ),
    ] = "kosmosg",
    pairs: Annotated[
        Path | None,
        typer.Option(help="UNO's dreambench_multiip.json, for uno-multi.", show_default=False),
    ] = None,
    clipseg: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A CLIPSeg that finds foregrounds, for foreground-masked.",
            show_default=False,
        ),
    ] = None,
    as_released: Annotated[
        bool,
        typer.Option(
            "--as-released", help="With the release's noise: every batch of five prompts the same."
        ),
    ] = False,
    clip: Annotated[
        Literal["b32", "l14"], typer.Option(help="Which CLIP scores; the paper's is b32.")
    ] = "b32",
    weights: Weights = None,
    steps: Steps = 100,
    guidance_scale: Guidance = 7.5,
    size: Size = None,
    batch: Batch = 5,
    limit: Limit = None,
    dtype: DType = "float32",
    device: Device = "auto",
) -> None:
    """Draw DreamBench's 3,000 pictures (uno-multi: 4,500) and score them: DINO, CLIP-I, CLIP-T.

    Stopped, the same command goes on. Under torchrun each process draws its share and the first
    scores. Every picture's seed is a function of its subject, prompt and number.

    \b
    Example:
      kosmosg evaluate dreambench dreambooth/dataset/ --model kosmosg-1.9b/ -o runs/dreambench
    """  # noqa: D301 -- click's mark for text to be kept as it is
    if (clipseg is not None) != (protocol == "foreground-masked"):
        raise ConfigError("foreground-masked needs --clipseg DIR, and no other protocol does")
    if as_released and batch != 5:
        raise ConfigError(f"--batch is {batch}; the release's batches have 5 prompts")

    prepare_libraries()
    from kosmosg.evaluate import dreambench as bench
    from kosmosg.evaluate import features
    from kosmosg.evaluate.pictures import DrawConfig
    from kosmosg.evaluate.result import Seen
    from kosmosg.evaluate.run import PICTURES, Run, draw, finish, side_of, weights_of

    where = _place(device)
    # Before hours of drawing, all that scoring needs is loaded.
    dino = features.dino(features.find_weights("dino", weights), device=where)
    name: features.Name = "clip-b32" if clip == "b32" else "clip-l14"
    reader = features.clip(features.find_weights(name, weights), device=where)
    masker = None if clipseg is None else _masker(clipseg, where)
    opened = bench.open_benchmark(dataset, protocol, pairs=pairs, limit=limit)
    side = size or side_of(model)
    run = Run(
        benchmark="dreambench",
        protocol=opened.rules(),
        data=opened.sums(),
        drawing=DrawConfig(
            scheduler="dpms",
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            height=side,
            width=side,
            batch=batch,
            noise="released" if as_released else "seed",
        ),
        dtype=dtype,
        model=weights_of(model),
    )
    tasks = [case.task for case in opened.cases]
    if not draw(run, tasks, model, output, device=str(where)):
        return
    rows, oracle = bench.score(opened, output / PICTURES, dino=dino, clip=reader, masker=masker)
    seen = {"dino": Seen.of(dino), "clip_i": Seen.of(reader), "clip_t": Seen.of(reader)}
    scores = bench.means(rows)
    _tell(
        finish(
            run,
            output,
            encoders=seen,
            num_pictures=len(rows),
            scores=scores,
            oracle=oracle,
            rows=rows,
        ),
        output,
    )


@app.command()
@goes_on
def coco(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="COCO",
            help="The folder with annotations/captions_val2014.json and val2014/.",
            show_default=False,
        ),
    ],
    output: Output,
    model: Model = "nano",
    protocol: Annotated[
        Literal["as-released", "clean"],
        typer.Option(
            help="clean compares with the pictures that the captions are of and resizes with "
            "antialias; as-released with all of val2014, without, and with the same noise in every "
            "batch of sixteen."
        ),
    ] = "clean",
    weights: Weights = None,
    steps: Steps = 250,
    guidance_scale: Guidance = 3.0,
    size: Size = None,
    batch: Batch = 16,
    limit: Limit = None,
    dtype: DType = "float32",
    device: Device = "auto",
) -> None:
    """Draw 30,000 captions of COCO and measure the FID of the pictures.

    Stopped, the same command goes on. Under torchrun each process draws its share and the first
    scores.

    \b
    Example:
      kosmosg evaluate coco coco2014/ --model kosmosg-1.9b/ -o runs/coco
    """  # noqa: D301 -- click's mark for text to be kept as it is
    if protocol == "as-released" and batch != 16:
        raise ConfigError(f"--batch is {batch}; the release's batches have 16 captions")

    prepare_libraries()
    from kosmosg.evaluate import coco as bench
    from kosmosg.evaluate import features
    from kosmosg.evaluate.metrics import Score, frechet_distance
    from kosmosg.evaluate.pictures import DrawConfig
    from kosmosg.evaluate.result import Seen
    from kosmosg.evaluate.run import PICTURES, Run, draw, finish, side_of, weights_of

    where = _place(device)
    released = protocol == "as-released"
    eye = features.inception(
        features.find_weights("inception", weights),
        resize="tensorflow" if released else "antialiased",
        device=where,
    )
    opened = bench.open_benchmark(dataset, protocol, num_captions=limit or bench.NUM_CAPTIONS)
    side = size or side_of(model)
    run = Run(
        benchmark="coco",
        protocol=opened.rules(),
        data=opened.sums(),
        drawing=DrawConfig(
            scheduler="ddim",
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            height=side,
            width=side,
            batch=batch,
            noise="released" if released else "seed",
        ),
        dtype=dtype,
        model=weights_of(model),
    )
    if not draw(run, opened.tasks, model, output, device=str(where)):
        return
    real = bench.moments_of_real(opened, eye)
    drawn = bench.moments_of_drawn(opened, output / PICTURES, eye)
    fid = frechet_distance(real, drawn)
    few = f"of {drawn.count} pictures FID is biased upwards; published ones are of 30,000"
    _tell(
        finish(
            run,
            output,
            facts={"num_real": real.count},
            encoders={"fid": Seen.of(eye)},
            num_pictures=drawn.count,
            scores={"fid": Score(mean=fid, low=fid, high=fid)},
            rows=opened.first(),
            notes=[few] if drawn.count < bench.NUM_CAPTIONS else [],
        ),
        output,
    )


@app.command()
def compare(
    one: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
    other: Annotated[
        Path, typer.Argument(metavar="RUN", help="The one that may be better.", show_default=False)
    ],
) -> None:
    """Say by how much the second run differs from the first; refuse if they do not compare.

    Protocol, encoders, data, settings and the number of pictures must be alike; the models differ.
    Pictures are paired, so that the 95% intervals are of the difference.
    """
    from kosmosg.evaluate import result

    first, second = result.load(one), result.load(other)
    for name, gap in result.compare(first, second).items():
        ends = f"  {gap.low:+.3f} to {gap.high:+.3f}" if gap.low != gap.high else ""
        was, now = first.scores[name].mean, second.scores[name].mean
        print(f"{name:<14}{was:>8.3f}{now:>8.3f}  {gap.mean:+.3f}{ends}")


def _place(device: str) -> "torch.device":
    """Return where this process computes; `prepare_libraries` has been called."""
    import os

    import torch

    from kosmosg import devices

    hide_loading_bars()
    there = devices.find()
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device(devices.of_rank(devices.choose(device, there), there, rank))


def _masker(directory: Path, device: "torch.device") -> "Masker":
    """Return what finds foregrounds as construction does."""
    import torch

    from kosmosg.construct.segment import THRESHOLD, clipseg, largest_part

    segment = clipseg(directory, device=device, dtype=torch.float32)
    return lambda images, nouns: [
        largest_part(probabilities > THRESHOLD) for probabilities in segment(images, nouns)
    ]


def _tell(result: "Result", output: Path) -> None:
    """Print the scores, and what a reader must know, to where each belongs."""
    import sys

    from kosmosg.evaluate.result import table

    for note in result.notes:
        print(note, file=sys.stderr)
    print(table(result.scores, result.oracle))
    print(output / "report.html")
