"""int8 weights: the condition hardly moves, the matrices take a quarter of the memory."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from kosmosg import drawing
from kosmosg.errors import ConfigError
from kosmosg.note import Picture
from kosmosg.quantize import int8_weights


def test_int8_moves_the_condition_by_less_than_a_hundredth(tmp_path: Path) -> None:
    picture = Picture(path=tmp_path, image=Image.new("RGB", (64, 64), "red"), sha256="")
    embeds, sizes = [], []
    for quantize in (None, "int8"):
        pipe = drawing.load("nano", quantize=quantize)
        embeds.append(drawing.encode(pipe, ["a creature", picture, "at night"]).prompt_embeds)
        matrix = pipe.mllm.layers[0].ffn.fc1.weight
        parts = matrix.__tensor_flatten__()[0] if quantize else []
        sizes.append(
            sum(getattr(matrix, name).nbytes for name in parts) if quantize else matrix.nbytes
        )
        assert pipe.unet.conv_in.weight.dtype == torch.float32
    whole, eight = embeds
    moved = (eight - whole).norm() / whole.norm()
    assert 0 < moved < 0.01
    assert sizes[1] < 0.3 * sizes[0]


def test_without_torchao_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ConfigError, match=r"need torchao .*pip install 'kosmosg\[quant\]'"):
        int8_weights()
