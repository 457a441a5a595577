"""Tests of a GPU: skipped, with the reason, where there is none."""

import pytest
import torch

DEVICE = "cuda"


@pytest.fixture(scope="session")
def device() -> str:
    """Where these tests compute; TF32 off, so that float32 is float32."""
    if not torch.cuda.is_available():
        pytest.skip("NOT PROVED HERE: no CUDA device, or a torch without CUDA")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return DEVICE
