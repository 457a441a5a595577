import cmath
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kosmosg.model import magneto
from kosmosg.model.magneto import (
    Attention,
    FeedForward,
    KeyValueCache,
    MagnetoLayer,
    Rotation,
    attend,
    causal_mask,
    sinusoid,
)


def heads(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("mask_rows", "causal"), [(0, False), (0, True), (1, False), (2, False)])
def test_products_and_the_fused_kernel_compute_the_same(
    mask_rows: int, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value = (heads(2, 3, 5, 8, seed=seed) for seed in range(3))
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])[:, None, None, :]
    options = {"mask": mask[-mask_rows:] if mask_rows else None, "causal": causal}
    products = attend(query, key, value, **options)
    monkeypatch.setattr(magneto, "MAX_SCORES", 2 * 3 * 5 * 5 - 1)
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    torch.testing.assert_close(attend(query, key, value, **options), products, atol=1e-6, rtol=0)
    assert calls == [1]


def test_one_row_of_queries_reads_many_memories() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2, inner_norm=False)
    queries, memory = heads(1, 3, 8), heads(4, 5, 8, seed=1)
    expected = attention(queries.expand(4, -1, -1), memory)
    torch.testing.assert_close(attention(queries, memory), expected)


def test_attention_is_softmax_of_scaled_products() -> None:
    query, key, value = (heads(1, 1, 4, 16, seed=seed) for seed in range(3))
    weights = (query @ key.mT / 4).softmax(-1)
    torch.testing.assert_close(attend(query, key, value), weights @ value, atol=1e-6, rtol=0)


def test_dropout_falls_on_weights_only_while_learning() -> None:
    layer = Attention(8, 2, inner_norm=False, dropout=0.5)
    states = heads(1, 6, 8)
    torch.manual_seed(0)
    assert not torch.equal(layer(states), layer(states))
    layer.eval()
    assert torch.equal(layer(states), layer(states))


def test_the_causal_mask_of_later_queries_sees_all_before() -> None:
    whole = causal_mask(5, 5, torch.device("cpu"))[0, 0]
    assert torch.equal(whole, torch.ones(5, 5, dtype=torch.bool).tril())
    assert torch.equal(causal_mask(2, 5, torch.device("cpu"))[0, 0], whole[-2:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_kernels_compute_in_float32(dtype: torch.dtype) -> None:
    """As the released code does with casts (NUMERICS section 14)."""
    states = (4 * heads(16, 64)).to(dtype)
    weight, bias = heads(64, seed=1).to(dtype), heads(64, seed=2).to(dtype)
    wide = states.float()
    exact = {
        F.gelu(states): F.gelu(wide),
        states.softmax(-1): wide.softmax(-1),
        F.layer_norm(states, (64,), weight, bias): F.layer_norm(
            wide, (64,), weight.float(), bias.float()
        ),
    }
    for half, full in exact.items():
        assert half.dtype == dtype
        # One rounding of the float32 value; 1e-6 for float16's numbers next to zero.
        torch.testing.assert_close(half.float(), full, rtol=torch.finfo(dtype).eps, atol=1e-6)


@settings(max_examples=20)
@given(offset=st.integers(0, 2000), head_dim=st.sampled_from([4, 8, 32, 64]))
def test_xpos_knows_only_distances(offset: int, head_dim: int) -> None:
    query, key = heads(1, 2, 6, head_dim), heads(1, 2, 6, head_dim, seed=1)
    positions = torch.tensor([[2, 3, 4, 9, 10, 40]])

    def scores(at: Tensor) -> Tensor:
        turned_query, turned_key = Rotation.at(at, head_dim)(query, key)
        return turned_query @ turned_key.mT

    near, far = scores(positions), scores(positions + offset)
    torch.testing.assert_close(near, far, atol=2e-3 * math.sqrt(head_dim), rtol=0)
    still = query @ key.mT
    diagonal = (..., range(6), range(6))
    torch.testing.assert_close(near[diagonal], still[diagonal], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(near, still, atol=1e-2)


def test_xpos_is_its_formula() -> None:
    """NUMERICS section 4, adjacent numbers read as one complex number."""
    head_dim, positions = 8, [2, 3, 700]
    query, key = heads(1, 1, 3, head_dim), heads(1, 1, 3, head_dim, seed=1)
    turned = Rotation.at(torch.tensor([positions]), head_dim)(query, key)
    for ours, plain, sign in ((turned[0], query, 1), (turned[1], key, -1)):
        for row, position in enumerate(positions):
            for i in range(head_dim // 2):
                zeta = (2 * i + 0.4 * head_dim) / (1.4 * head_dim)
                angle = position * 10000 ** (-i / (head_dim / 2))
                real, imaginary = plain[0, 0, row, 2 * i : 2 * i + 2].tolist()
                expected = complex(real, imaginary) * cmath.rect(
                    zeta ** (sign * position / 512), angle
                )
                pair = torch.tensor([expected.real, expected.imag])
                # float32 angles of several hundred are exact to about 1e-4
                torch.testing.assert_close(
                    ours[0, 0, row, 2 * i : 2 * i + 2], pair, atol=2e-3, rtol=1e-3
                )


def test_xpos_lets_distant_words_fade() -> None:
    ones = torch.ones(1, 1, 2, 64)
    fading = []
    for distance in (1, 64, 512):
        at = torch.tensor([[0, distance]])
        query, key = Rotation.at(at, 64)(ones, ones)
        fading.append(float(query[0, 0, 1] @ key[0, 0, 0]))
    assert 64 > fading[0] > fading[1] > fading[2]


def test_sinusoids_are_sines_then_cosines_and_pads_are_zero() -> None:
    table = sinusoid(torch.tensor([[2, 3, 1]]), 6)
    steps = [math.exp(-j * math.log(10000) / 2) for j in range(3)]
    for row, position in ((0, 2), (1, 3)):
        angles = [position * step for step in steps]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        torch.testing.assert_close(table[0, row], torch.tensor(expected), atol=1e-6, rtol=0)
    assert not table[0, 2].any()


def test_a_cache_gives_what_the_whole_sequence_gives() -> None:
    layer = MagnetoLayer(16, 2, 32, gamma=1.0).eval()
    states = heads(2, 7, 16)
    with torch.no_grad():
        whole = layer(states, causal=True)
        cache = KeyValueCache()
        steps = [layer(states[:, :4], mask=causal_mask(4, 4, states.device), cache=cache)]
        for index in range(4, 7):
            mask = causal_mask(1, index + 1, states.device)
            steps.append(layer(states[:, index : index + 1], mask=mask, cache=cache))
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-6, rtol=0)


def test_a_layer_is_its_formula() -> None:
    layer = MagnetoLayer(8, 2, 12, gamma=1.0, cross_attention=True).eval()
    assert isinstance(layer.self_attn.inner_layer_norm, nn.LayerNorm)
    assert isinstance(layer.cross_attn.inner_layer_norm, nn.Identity)
    states, memory = heads(1, 3, 8), heads(1, 4, 8, seed=1)
    with torch.no_grad():
        x = states + layer.self_attn(layer.self_attn_layer_norm(states))
        x = x + layer.cross_attn(layer.cross_attn_layer_norm(x), memory)
        ffn = layer.ffn
        inner = ffn.inner_layer_norm(F.gelu(ffn.fc1(layer.ffn_layer_norm(x))))
        assert torch.equal(layer(states, memory), x + ffn.fc2(inner))


@pytest.mark.parametrize("gamma", [1.0, 2.5])
def test_gamma_scales_values_and_outputs_weights_and_biases(gamma: float) -> None:
    def fresh(gamma: float) -> MagnetoLayer:
        torch.manual_seed(0)
        return MagnetoLayer(8, 2, 12, gamma=gamma, cross_attention=True)

    plain, scaled = fresh(1.0), dict(fresh(gamma).named_parameters())
    grown = ("self_attn.v_proj", "self_attn.out_proj", "ffn.fc1", "ffn.fc2")
    for name, parameter in plain.named_parameters():
        factor = gamma if name.startswith(grown) else 1.0
        assert torch.equal(scaled[name], parameter * factor), name


def test_feed_forward_keeps_the_width() -> None:
    assert FeedForward(8, 20)(heads(2, 3, 8)).shape == (2, 3, 8)
