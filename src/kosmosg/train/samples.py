"""Sheets of what a model can draw by now, of the same prompts and noise at every step."""

import math
from collections.abc import Callable, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from kosmosg.data.compose import Composed
from kosmosg.images import decoder_pixels
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.sequence import Prompt

SEED = 17
SIDE = 128  # pixels of each picture on the sheet
GAP = 6
LINE = 18


def of_prompts(
    pipe: KosmosGPipeline, records: Sequence[Composed]
) -> Callable[[nn.Module, int], Image.Image]:
    """Return what draws a sheet of these held-out records: wanted, drawn, shown in the prompt.

    The prompts are composed once, and picture number n always begins with the noise of seed
    `SEED` + n, so that sheets of two steps, or of two runs, differ by what was learned alone.

    Args:
        pipe: Holds the very parts that are trained; it draws with its own defaults.
        records: Of a stream that is not trained on.
    """
    pipe.set_progress_bar_config(disable=True)
    pictures = [[part for part in record.prompt if not isinstance(part, str)] for record in records]
    heads = ["wanted", "drawn", *["shown"] * max((len(own) for own in pictures), default=0)]

    def draw(model: nn.Module, _step: int) -> Image.Image:
        held: dict[nn.Module, torch.device] = {one: one.device for one in (pipe.unet, pipe.vae)}
        pipe.to(next(model.parameters()).device)  # parts that do not learn may have stayed behind
        drawn = []
        with torch.autocast(pipe.device.type, torch.bfloat16):
            for number, record in enumerate(records):
                noise = torch.Generator().manual_seed(SEED + number)
                drawn.append(pipe(record.prompt, generator=noise).images[0])
        for part, home in held.items():  # where the run shares copies of them, these do not stay
            part.to(home)
        rows = [
            (_said(record.prompt), [_square(one) for one in (record.target, made, *shown)])
            for record, made, shown in zip(records, drawn, pictures, strict=True)
        ]
        return sheet(heads, rows)

    return draw


def _said(prompt: Prompt) -> str:
    return " ".join(part.strip() if isinstance(part, str) else "[picture]" for part in prompt)


def _square(picture: Image.Image) -> Image.Image:
    return Image.fromarray(decoder_pixels(picture, SIDE))


def sheet(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Return a table of pictures: a heading over each column, a line of words over each row."""
    font = ImageFont.load_default(13)
    widest = max((font.getlength(words) for words, _ in rows), default=0)
    width = GAP + max(len(heads) * (SIDE + GAP), math.ceil(widest) + GAP)
    height = LINE + len(rows) * (LINE + SIDE + GAP)
    page = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(page)
    for column, head in enumerate(heads):
        pen.text((GAP + column * (SIDE + GAP), 2), head, fill="black", font=font)
    for number, (words, pictures) in enumerate(rows):
        top = LINE + number * (LINE + SIDE + GAP)
        pen.text((GAP, top + 2), words, fill="dimgray", font=font)
        for column, picture in enumerate(pictures):
            at = (GAP + column * (SIDE + GAP), top + LINE)
            page.paste(enlarged(picture, SIDE), at)
    return page


def enlarged(picture: Image.Image, side: int) -> Image.Image:
    """Return the picture with sides of `side` pixels."""
    return picture.resize((side, side), Image.Resampling.LANCZOS)
