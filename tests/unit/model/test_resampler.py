import math

import pytest
import torch
from torch import Tensor

from kosmosg.model.clip_vision import ClipVision
from kosmosg.model.resampler import Resampler


def resampler(num_layers: int, dropout: float = 0.0) -> Resampler:
    torch.manual_seed(0)
    return Resampler(
        vision_size=6,
        hidden_size=8,
        num_latents=3,
        num_attention_heads=2,
        num_layers=num_layers,
        dropout=dropout,
    )


def features(images: int = 2, patches: int = 5) -> Tensor:
    return torch.randn(images, patches, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_any_number_of_patches_becomes_the_same_number_of_latents(num_layers: int) -> None:
    module = resampler(num_layers).eval()
    for patches in (1, 5, 17):
        latents = module(features(patches=patches))
        assert latents.shape == (2, 3, 8)
        # Each picture by itself, its patches without an order.
        torch.testing.assert_close(latents[1:], module(features(patches=patches)[1:]))
        torch.testing.assert_close(latents, module(features(patches=patches).flip(1)))


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_gradient_reaches_every_parameter_and_the_picture(num_layers: int) -> None:
    module, picture = resampler(num_layers), features().requires_grad_()
    module(picture).square().sum().backward()
    assert picture.grad is not None
    assert (picture.grad != 0).all()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        # Softmax ignores what is added to every key alike, so that bias learns nothing.
        assert name.endswith("k_proj.bias") or parameter.grad.abs().max() > 1e-7, name


def test_each_perceiver_layer_changes_the_latents() -> None:
    module = resampler(3).eval()
    seen: list[Tensor] = []
    for layer in module.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    module(features())
    assert len(seen) == 3
    for before, after in zip([module.latents.expand(2, -1, -1), *seen], seen, strict=False):
        assert (before - after).abs().max() > 0.01


def test_the_released_form_is_one_attention_without_residual() -> None:
    module = resampler(0).eval()
    picture = features(1)
    memory = torch.cat([module.project(picture), module.latents[None]], 1)
    assert torch.equal(module(picture), module.attention(module.latents[None], memory))
    assert {name.partition(".")[0] for name, _ in module.named_parameters()} == {
        "project",
        "latents",
        "attention",
    }


def test_attention_dropout_only_while_learning() -> None:
    module = resampler(0, dropout=0.5)
    assert not torch.equal(module(features()), module(features()))
    module.eval()
    assert torch.equal(module(features()), module(features()))


def test_initialisation_of_the_attention() -> None:
    module = Resampler(
        vision_size=16,
        hidden_size=64,
        num_latents=500,
        num_attention_heads=2,
        num_layers=0,
        dropout=0.0,
    )
    attention, bound = module.attention, math.sqrt(6 / 128)
    for linear, gain in (
        (attention.q_proj, 2**-0.5),
        (attention.k_proj, 2**-0.5),
        (attention.v_proj, 2**-0.5),
        (attention.out_proj, 1.0),
    ):
        assert linear.weight.abs().max().item() == pytest.approx(gain * bound, rel=0.01)
    assert not attention.out_proj.bias.any()
    assert attention.q_proj.bias.any()
    assert module.latents.std().item() == pytest.approx(1, rel=0.05)


def test_vision_features_have_length_one_and_a_class_token() -> None:
    vision = ClipVision(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    seen = vision(torch.randn(2, 3, 16, 16))
    assert seen.shape == (2, 1 + 4, 16)
    torch.testing.assert_close(seen.norm(dim=-1), torch.ones(2, 5))
