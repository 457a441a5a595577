"""Pictures side by side for people to look at: what was shown, and what each row made of it."""

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from kosmosg.images import to_pil
from kosmosg.toyworld.cases import cases, draw
from kosmosg.train.samples import sheet

NUM_SHOWN = 16
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
