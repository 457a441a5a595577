"""Pictures side by side for people to look at: what was shown, and what each row made of it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kosmosg.images import to_pil
from kosmosg.toyworld.cases import cases, draw

NUM_SHOWN = 16
SIDE = 128  # pixels of each picture on the sheet
GAP = 6
LINE = 18
# A column's heading, and the row of the evaluation that it shows.
SHEETS: Mapping[str, tuple[int, Mapping[str, str]]] = {
    "one": (
        1,
        {
            "wanted": "judge",
            "oracle text": "oracle",
            "words only": "words_only",
            "stage 2": "stage2",
            "stage 3": "stage3",
            "stage 3, text": "stage3_text",
        },
    ),
    "two": (
        2,
        {
            "wanted": "two_subjects_judge",
            "oracle text": "two_subjects_oracle",
            "stage 3": "two_subjects",
        },
    ),
}


def save(
    shown: Mapping[str, Float[Tensor, "_shown 3 _height _width"]], *, seed: int, out_dir: Path
) -> list[Path]:
    """Write a sheet for prompts with one creature and one for two, of the rows there are.

    Args:
        shown: By row, pictures of the first cases in [-1, 1].
        seed: That of the evaluation, to draw the references again.
    """
    written = []
    for name, (num_subjects, columns) in SHEETS.items():
        present = {head: shown[row] for head, row in columns.items() if row in shown}
        if not present:
            continue
        count = min(len(images) for images in present.values())
        size = next(iter(present.values())).shape[-1]
        asked = cases(count, seed=seed, num_subjects=num_subjects)
        rows = []
        for index, case in enumerate(asked):
            made = [to_pil(images[index]) for images in present.values()]
            rows.append((case.caption, [*draw(case.references, size), *made]))
        path = out_dir / f"toyworld-{name}.png"
        sheet([*(["shown"] * num_subjects), *present], rows).save(path)
        written.append(path)
    return written


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
