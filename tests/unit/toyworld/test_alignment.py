"""How nano's AlignerNet begins: inputs evened out, each query looking at its own word."""

import torch

from kosmosg.model.alignernet import AlignerNet
from kosmosg.toyworld.alignment import even_out, look_straight_across


def new_encoder() -> AlignerNet:
    torch.manual_seed(0)
    return AlignerNet(
        hidden_size=24,
        embed_dim=16,
        intermediate_size=16,
        num_heads=2,
        num_layers=1,
        num_queries=6,
        max_positions=12,
    )


def test_uneven_states_are_projected_evenly() -> None:
    encoder = new_encoder().encoder
    scales = torch.logspace(1, -1, 24)
    states = torch.randn(4000, 24) * scales + 5
    before = torch.linalg.eigvalsh(torch.cov(encoder.project(states).T))
    even_out(encoder, states)
    projected = encoder.project(states)
    after = torch.linalg.eigvalsh(torch.cov(projected.T))
    assert projected.mean(0).abs().max() < 1e-3
    assert 0.5 < projected.var() < 2
    assert after[-1] / after[0] < 0.1 * before[-1] / before[0]


def test_each_query_first_looks_at_its_own_position() -> None:
    encoder = new_encoder().encoder
    look_straight_across(encoder)
    attention = encoder.query_layers[0].cross_attn
    queries = attention.q_proj(encoder.queries)
    keys = attention.k_proj(encoder.positions.weight[2:8])
    assert (queries @ keys.T).argmax(1).tolist() == [0, 1, 2, 3, 4, 5]
