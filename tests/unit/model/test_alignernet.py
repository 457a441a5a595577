import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kosmosg.errors import ConfigError, PromptError
from kosmosg.model.alignernet import AlignerEncoder, AlignerNet
from kosmosg.model.kosmosg import KosmosG
from toys.parts import batch_of, tiny_aligner, tiny_mllm


def hidden(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def real(*lengths: int) -> Tensor:
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def test_any_length_becomes_the_same_number_of_queries() -> None:
    aligner = tiny_aligner()
    for length in (1, 4, 62):
        assert aligner(hidden(2, length, 24), real(length, length)).shape == (2, 5, 16)


def test_what_stands_on_pads_does_not_matter() -> None:
    aligner, states, mask = tiny_aligner(), hidden(2, 6, 24), real(6, 3)
    other = states.masked_fill(~mask[..., None], 7.0)
    assert torch.equal(aligner(states, mask), aligner(other, mask))
    alone = aligner(states[1:, :3], real(3))
    torch.testing.assert_close(aligner(states, mask)[1:], alone, atol=1e-5, rtol=0)


def test_the_order_of_words_matters() -> None:
    aligner, states = tiny_aligner(), hidden(1, 6, 24)
    assert not torch.allclose(aligner(states, real(6)), aligner(states.flip(1), real(6)), atol=1e-3)


def test_reconstruction_has_the_length_asked_for() -> None:
    aligner = tiny_aligner(with_reconstruction=True)
    embeds = aligner(hidden(2, 6, 24), real(6, 4))
    assert aligner.reconstruct(embeds, 6).shape == (2, 6, 24)
    assert aligner.reconstruct(embeds, 9).shape == (2, 9, 24)


def test_masked_reconstruction_does_not_depend_on_pads() -> None:
    aligner = tiny_aligner(with_reconstruction=True)
    embeds = aligner(hidden(2, 6, 24), real(6, 4))
    padded = aligner.reconstruct(embeds, 6, real(6, 4))[1, :4]
    alone = aligner.reconstruct(embeds[1:], 4, real(4))[0]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)
    released = aligner.reconstruct(embeds, 6)[1, :4]
    assert not torch.allclose(released, alone, atol=1e-3)


def test_without_n_nothing_is_reconstructed() -> None:
    with pytest.raises(ValueError, match="make it with with_reconstruction=True"):
        tiny_aligner().reconstruct(hidden(1, 5, 16), 3)


@pytest.mark.parametrize("length", [63, 100])
def test_a_prompt_beyond_the_table_is_refused(length: int) -> None:
    aligner = tiny_aligner(with_reconstruction=True)
    message = f"has {length} positions, this model reads at most 62; use fewer words or pictures"
    with pytest.raises(PromptError, match=message):
        aligner(hidden(1, length, 24), real(length))
    with pytest.raises(PromptError, match=message):
        aligner.reconstruct(hidden(1, 5, 16), length)


@pytest.mark.parametrize("stacks", ["both", "queries"])
def test_every_parameter_receives_a_gradient(stacks: str) -> None:
    aligner = tiny_aligner(with_reconstruction=True, stacks=stacks).train()
    states, mask = hidden(2, 6, 24), real(6, 4)
    embeds = aligner(states, mask)
    (embeds.square().mean() + (aligner.reconstruct(embeds, 6) - states).square().mean()).backward()
    for name, parameter in aligner.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_there_is_no_dropout_in_it() -> None:
    aligner = tiny_aligner().train()
    states, mask = hidden(1, 6, 24), real(6)
    assert torch.equal(aligner(states, mask), aligner(states, mask))


def test_dropout_is_there_if_asked_for_and_only_while_learning() -> None:
    aligner = tiny_aligner(with_reconstruction=True, dropout=0.5).train()
    states, mask = hidden(1, 6, 24), real(6)
    assert not torch.equal(aligner(states, mask), aligner(states, mask))
    embeds = hidden(1, 5, 16)
    assert not torch.equal(aligner.reconstruct(embeds, 6), aligner.reconstruct(embeds, 6))
    assert torch.equal(aligner.eval()(states, mask), tiny_aligner()(states, mask))


def test_queries_alone_read_the_words_and_know_their_order() -> None:
    """The paper's decoder-only ablation: half of the layers, and no stack over the words."""
    aligner = tiny_aligner(stacks="queries", with_reconstruction=True)
    assert len(aligner.encoder.query_layers) == 2
    assert not any(".layers." in name for name, _ in aligner.named_parameters())
    states, mask = hidden(2, 6, 24), real(6, 3)
    assert aligner(states, mask).shape == (2, 5, 16)
    assert not torch.allclose(aligner(states, mask), aligner(states.flip(1), mask), atol=1e-3)
    other = states.masked_fill(~mask[..., None], 7.0)
    assert torch.equal(aligner(states, mask), aligner(other, mask))
    # The same M but for the stack over the words: that alone is what the ablation leaves out.
    whole = tiny_aligner(num_layers=2)
    whole.encoder.load_state_dict(aligner.encoder.state_dict(), strict=False)
    whole.encoder.layers = torch.nn.ModuleList()
    assert torch.equal(whole(states, mask), aligner(states, mask))


def test_no_stacks_are_one_linear_map_of_the_first_positions() -> None:
    aligner = tiny_aligner(stacks="none")
    assert {name for name, _ in aligner.named_parameters()} == {
        "encoder.project.weight",
        "encoder.project.bias",
    }
    states = hidden(2, 7, 24)
    project = aligner.encoder.project
    long = aligner(states, real(7, 7))
    torch.testing.assert_close(long, project(states[:, :5]))  # five queries
    short = aligner(states[:, :3], real(3, 2))
    torch.testing.assert_close(short[0, :3], project(states[0, :3]))
    assert not short[0, 3:].any()
    assert not short[1, 2:].any()
    with pytest.raises(ConfigError, match="stacks='none' has no N"):
        tiny_aligner(stacks="none", with_reconstruction=True)


@pytest.mark.parametrize("stacks", ["queries", "none"])
def test_an_ablation_is_saved_and_loaded(tmp_path: Path, stacks: str) -> None:
    aligner = tiny_aligner(seed=4, stacks=stacks)
    aligner.save_pretrained(tmp_path)
    loaded = AlignerNet.from_pretrained(tmp_path)
    states, mask = hidden(2, 6, 24), real(6, 4)
    with torch.no_grad():
        assert torch.equal(loaded(states, mask), aligner(states, mask))


@pytest.mark.parametrize("with_reconstruction", [False, True])
def test_saved_and_loaded_is_the_same(tmp_path: Path, with_reconstruction: bool) -> None:
    aligner = tiny_aligner(seed=4, with_reconstruction=with_reconstruction)
    aligner.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    loaded = AlignerNet.from_pretrained(tmp_path)
    assert isinstance(loaded, AlignerNet)
    assert (loaded.decoder is not None) == with_reconstruction
    states, mask = hidden(2, 6, 24), real(6, 4)
    with torch.no_grad():
        assert torch.equal(loaded(states, mask), aligner(states, mask))


def test_initial_gammas_of_the_four_stacks() -> None:
    torch.manual_seed(0)
    aligner = AlignerNet(
        hidden_size=24,
        embed_dim=64,
        intermediate_size=64,
        num_heads=2,
        num_layers=4,
        num_queries=400,
        max_positions=400,
        with_reconstruction=True,
    )
    assert aligner.decoder is not None
    assert isinstance(aligner.encoder, AlignerEncoder)
    memory = math.sqrt(math.log(3 * 4) * math.log(2 * 4) / 3)
    reading, plain = math.sqrt(math.log(3 * 4)), math.sqrt(math.log(2 * 4))
    for layers, gamma in (
        (aligner.encoder.layers, memory),
        (aligner.encoder.query_layers, reading),
        (aligner.decoder.query_layers, reading),
        (aligner.decoder.layers, plain),
    ):
        for layer in layers:
            assert _bound(layer.self_attn.q_proj) == pytest.approx(1, rel=0.01)
            for linear in (layer.self_attn.v_proj, layer.self_attn.out_proj, layer.ffn.fc1):
                assert _bound(linear) == pytest.approx(gamma, rel=0.01)
            if layers in (aligner.encoder.query_layers, aligner.decoder.query_layers):
                assert _bound(layer.cross_attn.v_proj) == pytest.approx(1, rel=0.01)
    for table in (
        aligner.encoder.queries,
        aligner.encoder.positions.weight,
        aligner.decoder.queries,
        aligner.decoder.positions.weight,
    ):
        assert table.std().item() == pytest.approx(1, rel=0.05)


def test_released_gammas() -> None:
    """NUMERICS section 8 gives four numbers, measured on fresh official models."""
    assert math.sqrt(math.log(48)) == pytest.approx(1.9675, abs=1e-4)
    assert math.sqrt(math.log(36) * math.log(24) / 3) == pytest.approx(1.9484, abs=1e-4)
    assert math.sqrt(math.log(36)) == pytest.approx(1.8930, abs=1e-4)
    assert math.sqrt(math.log(24)) == pytest.approx(1.7827, abs=1e-4)


def test_kosmosg_is_the_two_in_a_row_and_null_is_the_empty_prompt() -> None:
    from toys.parts import TOKENIZER

    model = KosmosG(tiny_mllm(), tiny_aligner()).eval()
    batch = batch_of(["a red cat"], ["in"])
    with torch.no_grad():
        states = model.mllm(batch.input_ids, batch.attention_mask)
        assert torch.equal(model.encode(batch), model.aligner(states, batch.attention_mask))
        assert torch.equal(model.null(TOKENIZER), model.encode(batch_of([])))


def _bound(linear: torch.nn.Linear) -> float:
    """The largest weight, as a multiple of nn.Linear's default bound."""
    return linear.weight.abs().max().item() * linear.in_features**0.5
