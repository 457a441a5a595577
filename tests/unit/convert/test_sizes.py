"""What shapes say of a checkpoint of the released size, and what they may not say."""

import pytest
import torch

from kosmosg.convert.sizes import aligner_sizes, check_released, mllm_sizes
from kosmosg.errors import CheckpointError
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.mllm import MLLM


@pytest.fixture(scope="module")
def released() -> dict[str, tuple[int, ...]]:
    """The shapes of the released model, by our names."""
    with torch.device("meta"):
        parts = {"mllm": MLLM(), "aligner": AlignerNet()}
    return {
        f"{part}.{name}": tuple(value.shape)
        for part, model in parts.items()
        for name, value in model.state_dict().items()
    }


def check(shapes: dict[str, tuple[int, ...]]) -> None:
    mllm = mllm_sizes(shapes, {}, None)
    check_released(mllm, aligner_sizes(shapes, None, with_reconstruction=False))


def test_the_released_sizes_pass(released: dict[str, tuple[int, ...]]) -> None:
    check(released)
    assert mllm_sizes(released, {}, None)["num_hidden_layers"] == 24


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        ("mllm.layers.23.", "num_hidden_layers is 23, the released one 24"),
        ("mllm.vision.clip.encoder.layers.23.", "vision_layers is 23, the released one 24"),
        ("aligner.encoder.layers.11.", "num_layers is 11, the released one 12"),
    ],
)
def test_a_layer_that_is_missing_as_a_whole_is_named(
    stack: str, message: str, released: dict[str, tuple[int, ...]]
) -> None:
    shapes = {name: shape for name, shape in released.items() if not name.startswith(stack)}
    assert shapes != released
    with pytest.raises(CheckpointError, match=message) as caught:
        check(shapes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("aligner.encoder.queries", (76, 768), "num_queries is 76, the released one 77"),
        ("aligner.encoder.positions.weight", (9, 768), "max_positions is 9, the released one"),
        ("mllm.resampler.latents", (65, 2048), "num_latents is 65, the released one 64"),
        (
            "mllm.vision.clip.embeddings.position_embedding.weight",
            (226, 1024),
            "image_size is 210, the released one 224",
        ),
    ],
)
def test_a_size_that_no_other_weight_contradicts_is_the_releases(
    name: str, shape: tuple[int, ...], message: str, released: dict[str, tuple[int, ...]]
) -> None:
    assert name in released
    with pytest.raises(CheckpointError, match=message):
        check(released | {name: shape})
