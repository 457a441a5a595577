"""With nano, whose pictures are good enough to see what an init picture and a mask do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kosmosg import KosmosGPipeline
from kosmosg.canvas import Canvas, fit, paint
from kosmosg.images import open_image

HALF = 32


@pytest.fixture(scope="module")
def pipe(repository: Path) -> KosmosGPipeline:
    if not (repository / "src/kosmosg/nano/model_index.json").is_file():
        pytest.skip("NOT PROVED HERE: nano's weights are not in this checkout")
    pipe = KosmosGPipeline.from_pretrained("nano")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def creature(repository: Path) -> Image.Image:
    return fit(open_image(repository / "docs/images/creature.png"), (64, 64))


def draw(pipe: KosmosGPipeline, canvas: Canvas, creature: Image.Image) -> np.ndarray:
    prompt = ["a creature", creature, "in the snow"]
    generator = torch.Generator().manual_seed(1)
    return paint(pipe, canvas, [prompt], generator=generator, output_type="np").images[0]


def test_less_strength_keeps_more_of_the_init_picture(pipe, creature):
    start = np.asarray(creature) / 255
    far = [
        abs(draw(pipe, Canvas(init_image=creature, strength=strength), creature) - start).mean()
        for strength in (0.2, 0.6, 1.0)
    ]
    assert far[0] < 0.9 * far[1], far
    assert far[1] < 0.9 * far[2], far


def test_a_mask_keeps_what_is_black(pipe, creature):
    """The white ground of the creature turns to snow above, and stays white below."""
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 64, HALF))
    start = np.asarray(creature) / 255
    made = draw(pipe, Canvas(init_image=creature, mask=mask), creature)
    painted, kept = abs(made - start)[:HALF].mean(), abs(made - start)[HALF + 4 :].mean()
    assert kept < 0.04 < 0.1 < painted
