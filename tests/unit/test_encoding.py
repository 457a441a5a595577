"""From prompts to conditions."""

import pytest

from kosmosg.errors import PromptError
from toys.model import toy_pipeline


def test_a_prompt_that_is_too_long_never_reaches_the_mllm():
    pipe, ran = toy_pipeline(), []
    pipe.mllm.register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(PromptError, match="has 33335 positions, this model reads at most 254"):
        pipe.encode_prompt([["a cat"], ["a cat " * 16_667]])
    assert ran == []
    pipe.encode_prompt([["a cat"], ["a cat " * 126]])
    assert ran
