"""Sheets: the same prompts, the same noise, and what the model makes of them by now."""

import numpy as np
import torch
from PIL import Image

from kosmosg.model.kosmosg import KosmosG
from kosmosg.train import samples
from toys.model import toy_pipeline
from toys.stages import composed


def test_a_sheet_has_a_heading_and_a_line_for_each_row() -> None:
    picture = Image.new("RGB", (8, 8), "red")
    page = samples.sheet(["shown", "made"], [("a red star", [picture, picture])] * 3)
    assert page.width == 2 * samples.SIDE + 3 * samples.GAP
    assert page.height == samples.LINE + 3 * (samples.LINE + samples.SIDE + samples.GAP)
    said = "a green square with white checks wearing a scarf in the city"
    wide = samples.sheet(["shown"], [(said, [picture])])
    assert wide.width > 2 * page.width / 3  # the words are wider than the picture, and fit
    ink = np.asarray(wide.convert("L"))[samples.LINE : 2 * samples.LINE]
    assert (ink[:, -samples.GAP :] == 255).all()
    assert (ink[:, wide.width // 2 : -samples.GAP] < 255).any()


def test_a_sheet_of_prompts_changes_with_the_weights_alone() -> None:
    pipe = toy_pipeline()
    model, records = KosmosG(pipe.mllm, pipe.aligner), composed().batch(0, 3)
    draw = samples.of_prompts(pipe, records)
    pages = []
    for step in (1, 2, 3):
        torch.manual_seed(step)
        if step == 3:
            with torch.no_grad():
                for parameter in model.aligner.parameters():
                    parameter.add_(torch.randn_like(parameter))
        with torch.no_grad():
            pages.append(np.asarray(draw(model, step)).astype(int))
    assert (pages[0] == pages[1]).all()
    side, gap, line = samples.SIDE, samples.GAP, samples.LINE

    def cell(page, row, column):
        top, left = 2 * line + row * (line + side + gap), gap + column * (side + gap)
        return page[top : top + side, left : left + side]

    for row, record in enumerate(records):
        wanted = np.asarray(record.target.convert("RGB").resize((side, side), 3)).astype(int)
        assert np.abs(cell(pages[0], row, 0) - wanted).mean() < 12
        assert (cell(pages[0], row, 0) == cell(pages[2], row, 0)).all()
        assert (cell(pages[0], row, 1) != cell(pages[2], row, 1)).any()
        shown = sum(not isinstance(part, str) for part in record.prompt)
        assert (cell(pages[0], row, 2) != 255).any() == (shown > 0)
