import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kosmosg.model.magneto import MagnetoLayer
from kosmosg.train.tally import Tally

FLOAT = 4


def on_meta(make) -> nn.Module:
    with torch.device("meta"):
        return make()


def test_two_linear_maps_by_hand() -> None:
    """4 -> 8 -> 2 over three rows: backward costs twice forward, but for the input's gradient."""
    net = on_meta(lambda: nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)))
    given = torch.zeros(3, 4, device="meta")
    with Tally([net]) as tally:
        net(given).sum().backward()
    first, second = 2 * 3 * 4 * 8, 2 * 3 * 8 * 2
    assert tally.flops == 2 * first + 3 * second
    assert tally.kept_bytes == FLOAT * 3 * (4 + 8 + 8)  # each map's input, and GELU's
    assert tally.checkpointed_bytes == tally.kept_bytes  # no block among them
    assert tally.recomputed_flops == 0


def test_frozen_weights_cost_no_gradient_and_keep_no_input() -> None:
    net = on_meta(lambda: nn.Linear(4, 8)).requires_grad_(False)
    given = torch.zeros(3, 4, device="meta", requires_grad=True)
    with Tally([net]) as tally:
        net(given).sum().backward()
    assert tally.flops == 2 * (2 * 3 * 4 * 8)
    assert tally.kept_bytes == 0


def test_attention_keeps_no_scores() -> None:
    batch, heads, seq, dim = 2, 3, 64, 4
    query, key, value = (
        torch.zeros(batch, heads, seq, dim, device="meta", requires_grad=True) for _ in range(3)
    )
    with Tally([]) as tally:
        F.scaled_dot_product_attention(query, key, value, is_causal=True).sum().backward()
    product = 2 * batch * heads * seq * seq * dim
    assert tally.flops == 2 * product + 4 * product
    assert tally.kept_bytes == FLOAT * 4 * batch * heads * seq * dim  # three given, and what came
    assert query.grad is not None
    assert query.grad.shape == query.shape


def test_checkpointing_keeps_inputs_and_one_block() -> None:
    width, rows, num_layers = 8, 2 * 5, 4
    net = on_meta(
        lambda: nn.Sequential(*[MagnetoLayer(width, 2, 16, gamma=1.0) for _ in range(num_layers)])
    )
    given = torch.zeros(2, 5, width, device="meta", requires_grad=True)
    tallies = []
    for layers in (net[:1], net):
        with Tally([net]) as tally:
            layers(given).sum().backward()
        tallies.append(tally)
    one, whole = tallies
    stream = FLOAT * rows * width
    assert whole.kept_bytes == num_layers * one.kept_bytes
    assert one.checkpointed_bytes == one.kept_bytes + stream
    assert whole.checkpointed_bytes == one.kept_bytes + num_layers * stream
    products = 2 * rows * width * (4 * width + 2 * 16)
    attention = 2 * 2 * (2 * 5 * 5 * width)
    assert whole.recomputed_flops == num_layers * (products + attention)
    assert whole.flops == 3 * whole.recomputed_flops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_go_by_the_type(dtype: torch.dtype) -> None:
    net = on_meta(lambda: nn.Linear(4, 8)).to(dtype)
    with Tally([net]) as tally:
        net(torch.zeros(3, 4, device="meta", dtype=dtype)).sum().backward()
    assert tally.kept_bytes == dtype.itemsize * 3 * 4


def test_nothing_is_left_behind() -> None:
    layer = on_meta(lambda: MagnetoLayer(8, 2, 16, gamma=1.0))
    with Tally([layer]):
        pass
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
    query = torch.randn(1, 1, 3, 2)
    assert F.scaled_dot_product_attention(query, query, query).isfinite().all()
