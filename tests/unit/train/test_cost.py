"""Stages 2 and 3 at their true cost: what is computed, and that caches change nothing."""

import dataclasses
from contextlib import contextmanager

import pytest
import safetensors.torch
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kosmosg.errors import ConfigError
from kosmosg.train.log import read_log
from kosmosg.train.run import Parts, RunConfig, make_stage, run
from kosmosg.train.stage import freeze_except, micro_batch_generator
from kosmosg.train.stage2_align import AlignConfig
from kosmosg.train.stage3_instruct import InstructConfig
from toys.stages import Captions, composed, toys
from toys.training import train_config

ALIGN = AlignConfig(padding="masked", mllm="eval")
INSTRUCT = InstructConfig(
    trainable=("mllm.layers.*", "mllm.resampler.*", "aligner.encoder.*"), min_snr_gamma=None
)


def setting(config, *, dropout=0.0):
    toy = toys(dropout=dropout)
    stage = make_stage(config, parts_of(toy))
    freeze_except(toy.model, stage.trainable)
    return toy, stage


def parts_of(toy, stream=None):
    return Parts(
        model=toy.model,
        tokenizer=toy.tokenizer,
        stream=stream or Captions(),
        text_tower=toy.text_tower,
        image_decoder=toy.image_decoder,
    )


def loss_of(stage, model, records, seed=0):
    losses = stage.loss(model, stage.collate(records), micro_batch_generator(seed, 0, 0))
    return sum(value for name, value in losses.items() if not name.startswith("metric_"))


@contextmanager
def counted(module):
    """Count the calls of a module."""
    calls = []
    hook = module.register_forward_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        hook.remove()


@pytest.mark.parametrize("mllm", ["eval", "train"])
def test_stage_2_has_no_graph_through_the_language_model(mllm):
    toy, stage = setting(dataclasses.replace(ALIGN, mllm=mllm), dropout=0.1)
    toy.model.train().requires_grad_(True)  # even if it were not frozen
    loss_of(stage, toy.model, Captions().batch(0, 4)).backward()
    assert all(value.grad is None for value in toy.model.mllm.parameters())
    assert toy.model.aligner.encoder.project.weight.grad.abs().sum() > 0
    assert toy.model.aligner.decoder.project.weight.grad.abs().sum() > 0


def test_stage_2_trains_no_part_of_the_language_model():
    for pattern in ("*", "mllm.layers.*"):
        with pytest.raises(ConfigError, match="stage 2 computes the language model without"):
            setting(dataclasses.replace(ALIGN, trainable=("aligner.*", pattern)))


def test_stage_2_takes_a_language_model_of_half_precision():
    toy, stage = setting(ALIGN)
    whole = loss_of(stage, toy.model, Captions().batch(0, 4))
    toy.model.mllm.bfloat16()
    half = loss_of(stage, toy.model, Captions().batch(0, 4))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, rtol=0.02, atol=0)
    assert half != whole


@pytest.mark.parametrize(("config", "stream"), [(ALIGN, Captions()), (INSTRUCT, composed())])
def test_groups_of_like_length_change_no_gradient(config, stream):
    gradients = {}
    for groups in (1, 2, 5):
        toy, stage = setting(dataclasses.replace(config, length_groups=groups))
        with counted(toy.model.mllm) as calls:
            loss_of(stage, toy.model, stream.batch(0, 6)).backward()
        assert len(calls) == groups  # stage 3's null prompt is in one of them
        gradients[groups] = {n: p.grad for n, p in toy.model.named_parameters() if p.requires_grad}
    for groups in (2, 5):
        for name, value in gradients[1].items():
            torch.testing.assert_close(gradients[groups][name], value, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match="length_groups = 0; it must be at least 1"):
        setting(dataclasses.replace(config, length_groups=0))


def test_stage_3_reads_the_null_prompt_among_the_others():
    losses = []
    for groups in (None, 1, 4):
        toy, stage = setting(
            dataclasses.replace(INSTRUCT, length_groups=groups, condition_drop=0.5)
        )
        with counted(toy.model.mllm) as calls:
            losses.append(loss_of(stage, toy.model, composed().batch(0, 6)))
        assert len(calls) == (groups or 2)
        assert stage.weight(stage.collate(composed().batch(0, 6))) == 6
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-5, atol=0)


class Backward(TorchDispatchMode):
    """Notes what is asked of each convolution's and product's backward pass."""

    def __init__(self):
        super().__init__()
        self.convolutions = []
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.convolution_backward:
            self.convolutions.append(tuple(args[-1]))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.products += 1
        return func(*args, **(kwargs or {}))


def test_the_unet_goes_back_to_its_condition_alone():
    decoder = toys().image_decoder
    unet = decoder.unet
    noisy = torch.randn(2, 4, 16, 16)
    embeds = torch.randn(2, 6, 16, requires_grad=True)
    conv_in = []
    hook = unet.conv_in.register_forward_hook(lambda *a: conv_in.append(a[-1].requires_grad))
    pred = decoder.noise_pred(noisy, torch.tensor([3, 700]), embeds)
    hook.remove()
    with Backward() as seen:
        pred.square().mean().backward()
    assert embeds.grad.abs().sum() > 0
    assert noisy.grad is None
    assert conv_in == [False]
    assert all(value.grad is None for value in unet.parameters())
    # Of every convolution the input's gradient alone, and of none before the first condition.
    assert set(seen.convolutions) == {(True, False, False)}
    convolutions = [m for m in unet.modules() if isinstance(m, torch.nn.Conv2d)]
    first = unet.down_blocks[0]
    # conv_in and the first block up to its first attention learn of no condition.
    before = 1 + sum(isinstance(m, torch.nn.Conv2d) for m in first.resnets[0].modules())
    before += isinstance(first.attentions[0].proj_in, torch.nn.Conv2d)
    assert len(seen.convolutions) == len(convolutions) - before
    # Of every matrix product of a weight the input's gradient alone: one for each forward one.
    linear = [m for m in unet.modules() if isinstance(m, torch.nn.Linear)]
    assert 0 < seen.products <= len(linear)


def test_recomputed_activations_give_the_same_gradients_in_less_memory():
    found = {}
    for activations in ("kept", "recomputed"):
        toy, stage = setting(dataclasses.replace(INSTRUCT, unet_activations=activations))
        kept = {}

        def pack(tensor, kept=kept):
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        batch = stage.collate(composed().batch(0, 4))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = stage.loss(toy.model, batch, micro_batch_generator(0, 0, 0))["diffusion"]
        loss.backward()
        gradients = {n: p.grad for n, p in toy.model.named_parameters() if p.requires_grad}
        found[activations] = sum(kept.values()), gradients
    assert found["recomputed"][0] < 0.8 * found["kept"][0]
    for name, value in found["kept"][1].items():
        torch.testing.assert_close(found["recomputed"][1][name], value, rtol=1e-5, atol=1e-7)


CACHED = [(ALIGN, Captions()), (INSTRUCT, composed())]


def logged(config, stream, run_dir):
    """Return the losses of a run that sees its records twice, and how often frozen parts ran."""
    toy = toys(dropout=0.0 if isinstance(config, AlignConfig) else 0.1)
    frozen = toy.model.mllm if isinstance(config, AlignConfig) else toy.image_decoder.vae.encoder
    train = train_config(steps=6, global_batch_size=4, micro_batch=2, ema=None, log_every=1)
    with counted(frozen) as calls:
        run(RunConfig(stage=config, train=train), parts_of(toy, Twice(stream)), run_dir)
    return [entry["loss"] for entry in read_log(run_dir) if "loss" in entry], len(calls)


class Twice:
    def __init__(self, stream):
        self.stream = stream

    def batch(self, step, size):
        return self.stream.batch(step % 2, size)


@pytest.mark.parametrize(("config", "stream"), CACHED, ids=["stage2", "stage3"])
def test_losses_are_the_same_with_a_cache(config, stream, tmp_path):
    plain, whole = logged(config, stream, tmp_path / "plain")
    with_cache = dataclasses.replace(config, cache=str(tmp_path / "cache"))
    cold, some = logged(with_cache, stream, tmp_path / "cold")
    warm, none = logged(with_cache, stream, tmp_path / "warm")
    assert cold == pytest.approx(plain, rel=1e-5)
    assert warm == pytest.approx(plain, rel=1e-5)
    assert (whole, none) == (12, 0)
    assert some < whole or isinstance(config, InstructConfig)
    assert len(set(plain)) > 4  # the first update has rate 0


@pytest.mark.parametrize(("config", "stream"), CACHED, ids=["stage2", "stage3"])
def test_a_cache_is_filled_once_and_not_read_by_other_weights(config, stream, tmp_path):
    config = dataclasses.replace(config, cache=str(tmp_path))
    records = stream.batch(0, 4)
    toy, stage = setting(config)
    frozen = toy.model.mllm if isinstance(config, AlignConfig) else toy.image_decoder.vae.encoder
    with counted(frozen) as calls:
        first = loss_of(stage, toy.model, records)
        second = loss_of(stage, toy.model, records)
        third = loss_of(make_stage(config, parts_of(toy)), toy.model, records)
        assert len(calls) == 1
    torch.testing.assert_close(second, first, rtol=1e-5, atol=0)
    torch.testing.assert_close(third, first, rtol=1e-5, atol=0)
    with counted(frozen) as calls:
        half = make_stage(config, parts_of(toy), precision="bfloat16")
        loss_of(half, toy.model, records)
        weights = [p for n, p in frozen.named_parameters() if "vision" not in n]
        with torch.no_grad():
            weights[-4].mul_(1.5).add_(0.1)
        other = loss_of(make_stage(config, parts_of(toy)), toy.model, records)
        assert len(calls) == 2
    assert not torch.isclose(other, first, rtol=1e-5)


@pytest.mark.parametrize(("config", "stream"), CACHED, ids=["stage2", "stage3"])
def test_a_damaged_cache_is_computed_anew(config, stream, tmp_path):
    config = dataclasses.replace(config, cache=str(tmp_path))
    records = stream.batch(0, 4)
    toy, stage = setting(config)
    first = loss_of(stage, toy.model, records)
    (shard,) = tmp_path.rglob("*.safetensors")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-3] + bytes(3))
    torch.testing.assert_close(loss_of(stage, toy.model, records), first, rtol=1e-5, atol=0)
    found = safetensors.torch.load(shard.read_bytes())
    assert all(value.equal(found[name]) for name, value in safetensors.torch.load(whole).items())


def test_cached_latents_are_drawn_anew_for_each_step(tmp_path):
    config = dataclasses.replace(INSTRUCT, cache=str(tmp_path))
    toy, stage = setting(config)
    records = composed().batch(0, 3)
    loss_of(stage, toy.model, records)
    batch = stage.collate(records)
    assert batch.target_pixels is None
    mean, std = batch.posterior.unbind(1)
    assert (std > 0).all()
    drawn = [
        toy.image_decoder.sample_latents(
            mean, std, [torch.Generator().manual_seed(10 * seed + i) for i in range(3)]
        )
        for seed in (0, 1)
    ]
    assert not drawn[0].equal(drawn[1])
    _, plain = setting(INSTRUCT)
    pictures = plain.collate(records).target_images
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    fresh = toy.image_decoder.encode_images(pictures, generators)
    torch.testing.assert_close(drawn[0], fresh, rtol=1e-5, atol=1e-6)
    losses = [
        stage.loss(toy.model, batch, micro_batch_generator(seed, 0, 0))["diffusion"]
        for seed in (0, 1, 0)
    ]
    assert losses[0] == losses[2] != losses[1]


def test_a_cache_that_contradicts_the_stage_is_refused(tmp_path):
    for changes, words in (
        ({"mllm": "train"}, "draws them anew each time"),
        ({"padding": "released"}, "needs those of pads"),
    ):
        with pytest.raises(ConfigError, match=words):
            setting(dataclasses.replace(ALIGN, cache=str(tmp_path), **changes))


def test_a_cache_beside_shared_frozen_parts_is_refused(tmp_path):
    """One rank may find what another must compute, for which it needs all."""
    stage = dataclasses.replace(ALIGN, cache=str(tmp_path / "cache"))
    config = RunConfig(stage=stage, train=train_config(frozen_parts="sharded"))
    with pytest.raises(ConfigError, match=r"train\.frozen_parts=sharded .* with stage\.cache"):
        run(config, parts_of(toys()), tmp_path / "run")
