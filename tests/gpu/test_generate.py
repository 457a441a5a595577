"""The pipeline on a GPU gives what it gives on the CPU, and leaves room when told to."""

import gc

import pytest
import torch

from kosmosg.model.magneto import _attend_by_products, attend
from kosmosg.pipeline import KosmosGPipeline
from toys.model import SIZE, toy_picture, toy_pipeline
from toys.sampling import seeded

pytestmark = pytest.mark.gpu

PROMPTS = [["a photo of", toy_picture(1), "on the snow"], ["a red cat"]]
MODULES = ("mllm", "aligner", "unet", "vae")


@pytest.fixture
def pipe(device: str) -> KosmosGPipeline:
    return toy_pipeline().to(device)


def relative(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.cpu().float() - exact).norm() / exact.norm())


@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float32, 1e-4), (torch.float16, 0.03), (torch.bfloat16, 0.03)]
)
def test_conditions_are_those_of_the_cpu(device, dtype, within):
    exact = toy_pipeline().encode_prompt(PROMPTS)
    ours = toy_pipeline().to(device, dtype).encode_prompt(PROMPTS)
    for one, other in zip(ours, exact, strict=True):
        assert (one.device.type, one.dtype) == (device, dtype)
        assert relative(one, other) < within


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pictures_are_drawn_in_half_precision(pipe, dtype):
    images = pipe.to(dtype)(PROMPTS, generator=[seeded(1), seeded(2)], output_type="pt").images
    assert images.shape == (2, 3, SIZE, SIZE)
    assert images.isfinite().all()
    assert images.std() > 0


def test_generators_of_the_cpu_give_the_cpu_s_noise(pipe):
    given = {"num_inference_steps": 3, "output_type": "latent"}
    exact = toy_pipeline()(PROMPTS, generator=[seeded(1), seeded(2)], **given).images
    ours = pipe(PROMPTS, generator=[seeded(1), seeded(2)], **given).images
    assert relative(ours, exact) < 1e-3


def test_the_fused_kernel_is_the_product(device):
    draws = seeded()
    query, key, value = (torch.randn(2, 4, 24, 16, generator=draws).to(device) for _ in range(3))
    mask = (torch.rand(2, 1, 1, 24, generator=draws) < 0.7).to(device)
    mask[..., 0] = True
    for options in ({"mask": mask}, {"causal": True}, {}):
        fused = attend(query, key, value, **options)
        given = {"mask": None, "causal": False, "dropout": 0.0} | options
        by_products = _attend_by_products(query, key, value, **given)
        torch.testing.assert_close(fused, by_products, atol=1e-5, rtol=1e-5)


def test_a_freed_encoder_gives_its_memory_back(pipe):
    size = sum(
        weight.numel() * weight.element_size()
        for name in ("mllm", "aligner")
        for weight in getattr(pipe, name).parameters()
    )
    embeds = pipe(PROMPTS, generator=seeded(), output_type="latent").images  # kernels and caches
    del embeds
    gc.collect()
    before = torch.cuda.memory_allocated()
    pipe(PROMPTS, generator=seeded(), output_type="latent", free_encoder=True)
    gc.collect()
    assert before - torch.cuda.memory_allocated() > 0.9 * size


def test_offloading_has_one_part_on_the_device_at_a_time(device):
    given = {"generator": [seeded(1), seeded(2)], "output_type": "latent"}
    exact = toy_pipeline()(PROMPTS, **given).images
    pipe = toy_pipeline()
    pipe.enable_model_cpu_offload(device=device)
    parts, seen = {name: getattr(pipe, name) for name in MODULES}, []

    def look(_pipe, _index, _timestep, tensors):
        seen.append([name for name, part in parts.items() if part.device.type == device])
        return tensors

    given["generator"] = [seeded(1), seeded(2)]
    ours = pipe(PROMPTS, **given, callback_on_step_end=look).images
    assert relative(ours, exact) < 1e-3
    assert seen == [["unet"]] * 3
    assert {part.device.type for part in parts.values()} == {"cpu"}
