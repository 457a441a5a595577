"""Stage 2's parts: M, N, both losses as released, and every gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTextModel

from kosmosg.convert import our_name
from kosmosg.model.kosmosg import KosmosG

CASES = [
    f"{prompt}.{target}"
    for prompt in ("text_only", "two_images", "padded_batch3")
    for target in ("fixed", "cliptext")
]
PAD = 1


@pytest.mark.parametrize("name", CASES)
def test_alignment_equals_the_released_model(
    golden_model: KosmosG,
    golden_text_encoder: CLIPTextModel,
    golden_case: Callable[[str], dict[str, Tensor]],
    golden_json: Callable[[str], Any],
    name: str,
) -> None:
    case = golden_case(f"align.{name}")
    ids, aligner = case["in.src_tokens"], golden_model.aligner
    with torch.no_grad():
        states = golden_model.mllm(
            ids, ids != PAD, case["in.img_gpt_input_mask"].bool(), case.get("in.images")
        )
        target = case.get("in.clip_target")
        if target is None:
            target = golden_text_encoder(case["in.clip_tokens"]).last_hidden_state
            _close(target, case["out.clip_embed"], "clip_embed")
    _close(states, case["out.final_hidden"], "final_hidden")

    aligner.zero_grad()
    prompt_embeds = aligner(states, ids != PAD)
    again = aligner.reconstruct(prompt_embeds, ids.shape[1])
    mse_loss = F.mse_loss(prompt_embeds, target)
    # As released: pads count, and the mean is scaled by queries / padded length.
    rec_loss = F.mse_loss(again, states) * prompt_embeds.shape[1] / ids.shape[1]
    (mse_loss + rec_loss).backward()

    _close(prompt_embeds, case["out.condition_M"], "M")
    _close(again, case["out.N"], "N")
    _close(mse_loss, case["out.mse_loss"].squeeze(), "mse_loss")
    _close(rec_loss, case["out.rec_loss"].squeeze(), "rec_loss")
    gradients = {f"aligner.{key}": value.grad for key, value in aligner.named_parameters()}
    for key, value in case.items():
        if key.startswith("grad."):
            gradient = gradients[our_name(key.removeprefix("grad."))]
            assert gradient is not None
            _close(gradient, value, key)
    norms = golden_json("align_grad_norms.json")[f"align.{name}"]
    assert {our_name(key) for key in norms} == gradients.keys()
    for key, norm in norms.items():
        gradient = gradients[our_name(key)]
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(norm, abs=1e-5), key


def _close(ours: Tensor, theirs: Tensor, name: str) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0, msg=lambda text: f"{name}: {text}")
