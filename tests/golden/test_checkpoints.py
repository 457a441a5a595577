"""The authors' checkpoint layouts: every tensor is read, and gives the condition of its weights."""

import pytest

from kosmosg.verify import Golden, check_file

# Weights of the last stage, and of stage 2 with N and CLIP's text tower instead of the decoder.
TENSORS = {"": 556, "_args": 556, "_omegaconf": 556, "_fp16": 556, "_align": 368}


@pytest.mark.parametrize("layout", TENSORS)
def test_checkpoint(shared: Golden, layout: str) -> None:
    checks = list(check_file(shared, f"checkpoint_tiny{layout}.pt"))
    assert [check for check in checks if not check.ok] == []
    exact = [check.what for check in checks if check.tolerance == 0]
    assert exact[:7] == [
        *("decoder_layers", "decoder_embed_dim", "decoder_attention_heads"),
        *("decoder_ffn_embed_dim", "latent_query_num", "names of weights", "shapes of weights"),
    ]
    assert len(exact) == 7 + TENSORS[layout]
    assert [check.what for check in checks if check.tolerance == 1e-5] == ["condition"]
