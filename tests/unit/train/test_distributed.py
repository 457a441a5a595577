"""What of training in several processes can be seen in one; tests/e2e has the processes."""

import pytest
import torch

from kosmosg import checkpoint
from kosmosg.errors import ConfigError, KosmosGError
from kosmosg.train import distributed
from kosmosg.train.distributed import Ranks, blocks, join
from kosmosg.train.loop import fit
from kosmosg.train.optim import LossScale
from kosmosg.train.run import Parts, RunConfig, run
from kosmosg.train.stage import freeze_except
from kosmosg.train.stage2_align import AlignConfig
from kosmosg.train.units import _roots, has_parameters, learns
from toys.stages import Captions, toys
from toys.training import Pairs, Regression, net, train_config


def named(model, modules) -> set[str]:
    names = {module: name for name, module in model.named_modules()}
    return {names[module] for module in modules}


def test_whatlearns_is_cut_into_blocks_and_what_is_called_whole():
    model = toys().model
    freeze_except(model, ("aligner.encoder.*", "mllm.layers.1.*", "mllm.embed_tokens.*"))
    encoder = {"aligner.encoder.layers.0", "aligner.encoder.query_layers.0"}
    assert named(model, blocks(model)) == {"mllm.layers.1", *encoder}
    assert named(model, _roots(model, learns)) == {"mllm", "aligner.encoder"}
    # All parts, frozen ones too: N is called by itself, so it is not cut together with M.
    everything = {"mllm", "aligner.encoder", "aligner.decoder"}
    assert named(model, _roots(model, has_parameters)) == everything
    freeze_except(model, ("mllm.layers.*",))
    assert named(model, _roots(model, learns)) == named(model, blocks(model))
    plain = net()
    assert _roots(plain, learns) == [plain]


def test_ranks_that_cannot_be_grouped_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "6")
    for wrong in (0, 4, 12):
        with pytest.raises(ConfigError, match=f"shard_ranks = {wrong} with 6 processes"):
            join("cpu", shard_ranks=wrong)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(ConfigError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        join("cpu", shard_ranks=None)


def test_the_first_process_is_known_without_a_group(monkeypatch):
    assert distributed.is_first()
    monkeypatch.setenv("RANK", "1")
    assert not distributed.is_first()


def test_one_process_adds_nothing():
    ranks = Ranks(torch.device("cpu"))
    values = {"a": torch.tensor(1.5)}
    assert ranks.total(3, 0.5) == [3, 0.5]
    assert ranks.totals(values) == values
    assert ranks.gathered("x") == ["x"]


def test_the_loss_scale_halves_doubles_and_gives_up():
    scale = LossScale(window=2)
    scale.shrink()
    assert scale.value == 2.0
    for _ in range(4):
        scale.grow()
    assert scale.value == 8.0
    scale = LossScale(least=4.0)
    with pytest.raises(KosmosGError, match=r"overflow float16 at a loss scale of 2\.0"):
        scale.shrink()


def test_an_overflow_of_float16_costs_one_update_and_halves_the_scale(tmp_path):
    class Large(Regression):
        """Its gradient is beyond float16 at a scale of 4, once."""

        def loss(self, model, batch, generator):
            losses = super().loss(model, batch, generator)
            if generator.initial_seed() == first.setdefault("seed", generator.initial_seed()):
                return {name: _huge(value) for name, value in losses.items()}
            return losses

    first: dict[str, int] = {}
    model = net()
    fit(model, Large(), Pairs(0), train_config(precision="float16"), tmp_path / "run")
    state = checkpoint.latest(tmp_path / "run")[0]
    assert state.numbers["loss_scale"] == [2.0, 11]
    assert all(value.isfinite().all() for value in model.state_dict().values())


class _Huge(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        del ctx
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        del ctx
        return gradient * float("inf")


def _huge(value):
    return _Huge.apply(value)


def test_blocks_computed_twice_learn_the_same_to_the_bit(tmp_path):
    """With dropout, which must fall alike both times; the caller's model stays as it was made."""
    models = []
    for name, change in (("plain", {}), ("twice", {"recompute": "blocks"})):
        made = toys(dropout=0.2)
        parts = Parts(
            model=made.model,
            tokenizer=made.tokenizer,
            stream=Captions(),
            text_tower=made.text_tower,
        )
        config = AlignConfig(trainable=("aligner.*",), padding="masked", mllm="train")
        train = train_config(steps=3, **change)
        run(RunConfig(stage=config, train=train), parts, tmp_path / name)
        assert not any("forward" in vars(module) for module in made.model.modules())
        models.append(made.model.state_dict())
    assert all(value.equal(models[1][name]) for name, value in models[0].items())
