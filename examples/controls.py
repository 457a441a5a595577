"""Show each control on creatures that no stage of nano's training has seen; measure it as well.

    python examples/controls.py [CONTROL ...] [--model nano] [--out docs/images] [--measure 32]

Writes one strip a control: a creature a row, the picture that the prompt shows first, then what
came out for each value, from the same noise. `--measure N` asks the toy world's judge about N
creatures a value, and prints how often shape, colour and place are those asked for.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from kosmosg import KosmosGPipeline
from kosmosg.release import find
from kosmosg.toyworld.cases import Case, cases, draw
from kosmosg.toyworld.judge import Judge, read, truth
from kosmosg.toyworld.scores import SCORED
from kosmosg.toyworld.world import load

SIDE, LABEL, GAP = 96, 18, 4
SHOWN, BATCH = 3, 16
Asked = Sequence[tuple[Case, Image.Image]]

# By control, the arguments of each column. A list stands for one prompt's pictures.
CONTROLS: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "picture-guidance": {
        f"picture {scale:g}": {"text_guidance_scale": 3.0, "picture_guidance_scale": scale}
        for scale in (0.0, 1.0, 2.0, 3.0, 5.0)
    },
    "text-guidance": {
        f"text {scale:g}": {"text_guidance_scale": scale, "picture_guidance_scale": 3.0}
        for scale in (0.0, 1.0, 2.0, 3.0, 5.0)
    },
    "guidance-interval": {
        f"{start:g} to {end:g}": {"guidance_interval": (start, end)}
        for start, end in ((0.0, 1.0), (0.0, 0.5), (0.2, 0.8), (0.5, 1.0))
    },
    "guidance-rescale": {
        f"rescale {amount:g}": {"guidance_scale": 9.0, "guidance_rescale": amount}
        for amount in (0.0, 0.5, 1.0)
    },
    "picture-weight": {
        f"weight {weight:g}": {"picture_weights": [weight]}
        for weight in (0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
    },
    "picture-window": {
        f"{start:g} to {end:g}": {"picture_windows": [(start, end)]}
        for start, end in ((0.0, 1.0), (0.0, 0.2), (0.0, 0.5), (0.5, 1.0), (0.8, 1.0))
    },
}


def generate(pipe: KosmosGPipeline, asked: Asked, column: Mapping[str, Any]) -> torch.Tensor:
    """Return a picture in [0, 1] of each case; its noise depends on the case alone."""
    made = []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        each = {
            name: [value] * len(part) if isinstance(value, list) else value
            for name, value in column.items()
        }
        noise = [torch.Generator().manual_seed(case.index) for case, _ in part]
        prompts = [case.prompt([picture]) for case, picture in part]
        made.append(pipe(prompts, generator=noise, output_type="pt", **each).images.cpu())
    return torch.cat(made)


def strip(asked: Asked, columns: Mapping[str, torch.Tensor]) -> Image.Image:
    """Return one page: the shown pictures on the left, then each value's, labels above."""
    step = SIDE + GAP
    page = Image.new("RGB", ((1 + len(columns)) * step, LABEL + len(asked) * step), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    shown = [picture for _, picture in asked]
    drawn = {name: [to_image(one) for one in pictures] for name, pictures in columns.items()}
    for place, (name, pictures) in enumerate({"shown": shown, **drawn}.items()):
        pen.text((place * step + SIDE / 2, LABEL / 2), name, fill="black", font=font, anchor="mm")
        for row, picture in enumerate(pictures):
            enlarged = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            page.paste(enlarged, (place * step, LABEL + row * step))
    return page


def to_image(picture: torch.Tensor) -> Image.Image:
    """Return a picture in [0, 1] as PIL has it."""
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())


def measure(pipe: KosmosGPipeline, judge: Judge, asked: Asked, control: str) -> None:
    """Print the judge's rates for each value of a control, and the U-Net's work for one picture."""
    right = truth([case.target for case, _ in asked])
    rows: list[int] = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    print(f"\n{control}, {len(asked)} creatures\n{'':16}{'  '.join(SCORED)}  contrast  U-Net")
    for name, column in CONTROLS[control].items():
        rows.clear()
        images = generate(pipe, asked, column)
        answers = read(judge, images.to(pipe.device) * 2 - 1)
        rates = [
            f"{(answers[question].cpu() == right[question]).float().mean():{len(question)}.2f}"
            for question in SCORED
        ]
        contrast, work = images.std(dim=(1, 2, 3)).mean(), sum(rows) / len(asked)
        print(f"{name:16}{'  '.join(rates)}  {contrast:8.3f}  {work:5.0f}", flush=True)
    handle.remove()


def main() -> None:
    """Draw every strip; measure if asked to."""
    parser = argparse.ArgumentParser(description="Each control, drawn and measured.")
    parser.add_argument("controls", nargs="*", metavar="CONTROL", help="all, if none is named")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--measure", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    world = load(find(options.model), {"stage3"})
    found = cases(max(SHOWN, options.measure), seed=options.seed)
    pictures = draw([case.references[0] for case in found], 64)
    asked = list(zip(found, pictures, strict=True))
    few = asked[:SHOWN]
    for control in options.controls or CONTROLS:
        columns = CONTROLS[control]
        page = strip(few, {name: generate(world.pipe, few, one) for name, one in columns.items()})
        page.save(options.out / f"controls-{control}.jpg", quality=85)
        if options.measure:
            measure(world.pipe, world.judge, asked[: options.measure], control)


if __name__ == "__main__":
    main()
