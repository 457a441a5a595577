"""The two views of a picture equal the released transforms."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kosmosg.images import clip_view, decoder_view, open_image

NAMES = (
    "img0_97x61",
    "img1_640x480",
    "img2_224x300",
    "img3_301x224",
    "img4_512x512",
    "img5_225x333",
)


@pytest.mark.parametrize("name", NAMES)
def test_views(golden: Path, name: str) -> None:
    expected = load_file(golden / "image_transform.safetensors")
    image = open_image(golden / "images" / f"{name}.png")
    # The golden file keeps every 4th (8th) pixel, and two sums of all.
    for view, stride, kind in ((clip_view(image), 4, "gpt"), (decoder_view(image), 8, "diff")):
        kept = view[:, ::stride, ::stride]
        torch.testing.assert_close(kept, expected[f"{name}.{kind}_s{stride}"], atol=1e-5, rtol=0)
        total, absolute, size = expected[f"{name}.{kind}_sum64"].tolist()
        assert view.shape == (3, size, size)
        assert view.double().sum().item() == pytest.approx(total, abs=1e-2)
        assert view.double().abs().sum().item() == pytest.approx(absolute, abs=1e-2)
