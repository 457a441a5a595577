"""Every number of the released model's forward pass, at 1e-5."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from kosmosg.model.kosmosg import KosmosG

FORWARD_CASES = ("text_only", "one_image", "two_images", "padded_batch3", "null")
PAD = 1


@pytest.fixture
def taps(golden_model: KosmosG) -> Iterator[dict[str, Tensor]]:
    """The outputs of the golden model's parts under the golden data's names, as they are run."""
    seen: dict[str, Tensor] = {}
    handles = []

    def watch(module: nn.Module, name: str) -> None:
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            output = output[0] if isinstance(output, tuple) else output
            assert isinstance(output, Tensor)
            seen[name] = output

        handles.append(module.register_forward_hook(keep))

    mllm, encoder = golden_model.mllm, golden_model.aligner.encoder
    watch(mllm.embed_dropout, "mllm.embed")
    watch(mllm.layer_norm, "mllm.final_hidden")
    watch(mllm.resampler, "connector")
    watch(mllm.vision.clip.post_layernorm, "vit.ln_post")
    watch(mllm.vision, "vit.normalized")
    watch(encoder, "aligner.M")
    watch(encoder.layer_norm, "aligner.encoder_proj.out")
    stacks = {
        "mllm.layer": mllm.layers,
        "vit.block": mllm.vision.clip.encoder.layers,
        "aligner.encoder_proj.layer": encoder.layers,
        "aligner.encoder.layer": encoder.query_layers,
    }
    for name, stack in stacks.items():
        for index, layer in enumerate(stack):
            watch(layer, f"{name}{index}")
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", FORWARD_CASES)
def test_forward_equals_the_released_model(
    golden_model: KosmosG,
    golden_case: Callable[[str], dict[str, Tensor]],
    taps: dict[str, Tensor],
    name: str,
) -> None:
    case = golden_case(name)
    ids = case["in.src_tokens"]
    with torch.no_grad():
        hidden_states = golden_model.mllm(
            ids, ids != PAD, case["in.img_gpt_input_mask"].bool(), case.get("in.images")
        )
        logits = golden_model.mllm.logits(hidden_states)
        condition = golden_model.aligner(hidden_states, ids != PAD)

    expected = {
        key.removeprefix("out.tap."): value for key, value in case.items() if ".tap." in key
    }
    assert expected.keys() <= taps.keys()
    for key, value in expected.items():
        _close(taps[key].reshape(value.shape), value, key)
    _close(hidden_states, case["out.final_hidden"], "final_hidden")
    _close(logits, case["out.logits"], "logits")
    _close(condition, case["out.condition"], "condition")


def _close(ours: Tensor, theirs: Tensor, name: str) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0, msg=lambda text: f"{name}: {text}")
