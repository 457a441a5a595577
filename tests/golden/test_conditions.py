"""What the released inference hands to the U-Net, with and without a negative prompt."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kosmosg.model.kosmosg import KosmosG

CASES = [
    f"{prompt}.{end}"
    for prompt in ("two_images.n1", "padded_batch3.n2")
    for end in ("empty", "neg")
]
PAD = 1


@pytest.mark.parametrize("name", CASES)
def test_conditions_equal_the_released_model(
    golden_model: KosmosG, golden_case: Callable[[str], dict[str, Tensor]], name: str
) -> None:
    case = golden_case(f"encode_condition.{name}")
    ids, negative = case["in.src_tokens"], case["in.negative_tokens"]
    num_images = int(case["in.num_images_per_prompt"])
    with torch.no_grad():
        slots = case["in.img_gpt_input_mask"].bool()
        hidden_states = golden_model.mllm(ids, ids != PAD, slots, case["in.images"])
        prompt_embeds = golden_model.aligner(hidden_states, ids != PAD)
        real = torch.ones_like(negative, dtype=torch.bool)
        negative_embeds = golden_model.aligner(golden_model.mllm(negative, real), real)

    # The release keeps the images of a prompt apart (a b a b); ours are together, as in diffusers.
    count = len(ids) * num_images
    conditions = torch.cat(
        [negative_embeds.expand(count, -1, -1), prompt_embeds.repeat(num_images, 1, 1)]
    )
    torch.testing.assert_close(conditions, case["out.condition"], atol=1e-5, rtol=0)
