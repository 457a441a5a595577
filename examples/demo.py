"""Show what nano does: creatures that no stage of its training has seen, put where the prompt says.

    python examples/demo.py [--seed 7] [--out demo.png] [--model nano] [--pictures 3]

Draws fresh creatures (combinations of shape, colour and pattern held out of all training), asks for
them by picture, and writes one strip: each prompt as the model reads it, then what came out.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from kosmosg.cli.options import hide_loading_bars, prepare_libraries
from kosmosg.sequence import Prompt
from kosmosg.toyworld.render import render
from kosmosg.toyworld.scenes import BLANK, Scene, sample_subject

SIDE = 192  # of each result; 3 times nano's own pixels
WORD_SIDE = 96  # of a picture that stands among words
MARGIN = 12
WORDS_WIDTH = 470


def creature(rng: np.random.Generator, *, place: str, bare: bool = False) -> Image.Image:
    """Return a picture of a held-out creature; `bare` means without hat, crown and the like."""
    subject = replace(sample_subject(rng, held_out=True), radius=0.28)
    if bare:
        subject = replace(subject, accessory="none")
    pixels, _ = render([Scene(subjects=(subject,), place=place)])
    return Image.fromarray(pixels[0])


def prompts(rng: np.random.Generator) -> list[Prompt]:
    """Return what the demo asks for: by words, by pictures, and by both."""
    return [
        ["a red star with white dots wearing a hat on the beach"],  # held out, like the others
        ["a creature", creature(rng, place=BLANK), "in the snow"],
        ["a creature", creature(rng, place="meadow"), "at night"],
        ["a creature", creature(rng, place=BLANK, bare=True), "wearing a crown in the forest"],
        [
            *("a creature", creature(rng, place=BLANK, bare=True)),
            *("and a creature", creature(rng, place=BLANK)),
            "in the city",
        ],
    ]


def draw_prompt(prompt: Prompt, height: int) -> Image.Image:
    """Return the prompt on one line or more: words as words, pictures where they stand."""
    page = Image.new("RGB", (WORDS_WIDTH, height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(20)
    blocks: list[Image.Image | str] = []
    for part in prompt:
        blocks += [*part.split()] if isinstance(part, str) else [part]
    lines, width = [[]], 0.0
    for block in blocks:
        needed = pen.textlength(block + " ", font=font) if isinstance(block, str) else WORD_SIDE + 8
        if width + needed > WORDS_WIDTH - 2 * MARGIN:
            lines.append([])
            width = 0.0
        lines[-1].append((block, needed))
        width += needed
    tall = [any(isinstance(block, Image.Image) for block, _ in line) for line in lines]
    heights = [WORD_SIDE + 8 if pictures else 28 for pictures in tall]
    top = (height - sum(heights)) / 2
    for line, line_height in zip(lines, heights, strict=True):
        left = float(MARGIN)
        for block, needed in line:
            middle = top + line_height / 2
            if isinstance(block, str):
                pen.text((left, middle), block, fill="black", font=font, anchor="lm")
            else:
                enlarged = block.resize((WORD_SIDE, WORD_SIDE), Image.Resampling.LANCZOS)
                page.paste(enlarged, (int(left), int(middle - WORD_SIDE / 2)))
                pen.rectangle(
                    (left, middle - WORD_SIDE / 2, left + WORD_SIDE, middle + WORD_SIDE / 2),
                    outline="silver",
                )
            left += needed
        top += line_height
    return page


def strip(asked: Sequence[Prompt], made: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return one page: a line for each prompt, the prompt first and its pictures after it."""
    row = SIDE + MARGIN
    width = WORDS_WIDTH + len(made[0]) * row
    page = Image.new("RGB", (width, MARGIN + len(asked) * row), "white")
    for number, (prompt, pictures) in enumerate(zip(asked, made, strict=True)):
        top = MARGIN + number * row
        page.paste(draw_prompt(prompt, SIDE), (0, top))
        for column, picture in enumerate(pictures):
            enlarged = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            page.paste(enlarged, (WORDS_WIDTH + column * row, top))
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the strip and say where it is."""
    parser = argparse.ArgumentParser(description="Show what nano does, in one strip of pictures.")
    parser.add_argument("--seed", type=int, default=7, help="of the creatures and the noise")
    parser.add_argument("--out", type=Path, default=Path("demo.png"))
    parser.add_argument("--model", default="nano", help="nano, or a directory")
    parser.add_argument("--pictures", type=int, default=3, help="for each prompt")
    chosen = parser.parse_args(arguments)

    began = perf_counter()
    prepare_libraries()  # which say a lot of their optional parts when they are imported
    from kosmosg import KosmosGPipeline

    hide_loading_bars()
    pipe = KosmosGPipeline.from_pretrained(chosen.model)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    asked = prompts(np.random.default_rng(chosen.seed))
    images = pipe(
        asked,
        num_images_per_prompt=chosen.pictures,
        generator=torch.Generator().manual_seed(chosen.seed),
    ).images
    made = [
        images[start : start + chosen.pictures] for start in range(0, len(images), chosen.pictures)
    ]
    strip(asked, made).save(chosen.out)
    print(f"{len(images)} pictures in {perf_counter() - began:.0f} s: {chosen.out.resolve()}")


if __name__ == "__main__":
    main()
