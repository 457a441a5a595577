"""Tuning keeps what it is not about: others' conditions, and that of the null prompt."""

import pytest
import torch

from kosmosg import adapter
from kosmosg.adapter import AdapterConfig
from kosmosg.model.kosmosg import KosmosG
from kosmosg.sequence import collate, encode
from kosmosg.train.run import Parts, make_stage
from kosmosg.train.stage import freeze_except, micro_batch_generator
from kosmosg.train.stage3_instruct import InstructConfig
from kosmosg.train.stage_subject import BesideStream, SubjectStage
from toys.stages import Toys, composed, toys

INSTRUCT = InstructConfig(trainable=adapter.TRAINABLE, condition_drop=0.3)


def setting(*, keep_weight: float = 2.0, dropout: float = 0.0):
    """Return the parts with an adapter in the model, stage 3, and the subject's stage over it."""
    toy = toys(dropout=dropout)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapter.add(toy.model, AdapterConfig(rank=2, alpha=4.0))
    freeze_except(toy.model, adapter.TRAINABLE)
    parts = Parts(
        model=toy.model,
        tokenizer=toy.tokenizer,
        stream=composed(),
        image_decoder=toy.image_decoder,
    )
    instruct = make_stage(INSTRUCT, parts)
    stage = SubjectStage(
        instruct, tokenizer=toy.tokenizer, keep_weight=keep_weight, **sizes(toy.model)
    )
    return toy, instruct, stage


def sizes(model: KosmosG) -> dict[str, int]:
    return {name: model.mllm.config[name] for name in ("num_latents", "image_size")}


def learned(toy: Toys, by: float = 0.1) -> None:
    """Change the adapter, as an update would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in adapter.weights(toy.model).values():
            weight += by * torch.randn(weight.shape, generator=generator)


def records(count: int, *, beside: int = 2, first: int = 0):
    stream = BesideStream(composed(), composed(), count=beside)
    return [record for index in range(first, first + count) for record in stream.batch(index, 1)]


def losses(stage, toy, given, first: int = 0):
    return stage.loss(toy.model, stage.collate(given), micro_batch_generator(0, 0, first))


def test_each_prompt_of_the_subject_has_the_next_of_the_prior_beside_it():
    keys = [record.key for record in records(4)]
    assert keys == [record.key for record in composed().batch(0, 4)]
    beside = [words(prompt) for record in records(4, beside=3) for prompt in record.kept]
    assert beside == [words(record.prompt) for record in composed().batch(0, 12)]
    (alone,) = BesideStream(composed(), None, count=3).batch(5, 1)
    assert alone.kept == ()


def words(prompt):
    return [part for part in prompt if isinstance(part, str)]


def test_an_untouched_adapter_keeps_all_and_a_changed_one_is_drawn_back():
    toy, _, stage = setting()
    factors = adapter.weights(toy.model).values()
    before = losses(stage, toy, records(3))
    assert before["loss/keep"] == 0
    before["loss/keep"].backward()
    assert not any(one.grad is not None and one.grad.any() for one in factors)
    learned(toy)
    changed = losses(stage, toy, records(3))["loss/keep"]
    assert changed > 0
    changed.backward()
    gradients = [one.grad for one in factors if one.grad is not None and one.grad.any()]
    assert len(gradients) == len(factors)
    with torch.no_grad():
        for one, gradient in zip(factors, gradients, strict=True):
            one -= 1e-3 * gradient / gradient.norm()
    assert losses(stage, toy, records(3))["loss/keep"] < changed


def test_what_is_kept_is_the_condition_without_the_adapter():
    toy, _, stage = setting(keep_weight=3.0)
    (record,) = records(1, beside=2)
    prompts = [
        encode(one, toy.tokenizer, **sizes(toy.model)) for one in (*record.kept, [""])
    ]  # the null prompt is the start sign alone, as is a prompt of no words

    def conditions():
        batches = [collate([one], pad_id=toy.tokenizer.pad_id) for one in prompts]
        with torch.no_grad():
            return [toy.model.encode(batch) for batch in batches]

    before = conditions()
    learned(toy)
    pairs = zip(before, conditions(), strict=True)
    apart = [(then - now).square().mean() for then, now in pairs]
    kept = losses(stage, toy, [record])["loss/keep"]
    torch.testing.assert_close(kept.detach(), 3.0 * torch.stack(apart).mean())


def test_the_loss_on_the_subject_is_stage_3s():
    toy, instruct, stage = setting()
    learned(toy)
    given = records(3)
    own = instruct.collate([record.shown for record in given])
    expected = instruct.loss(toy.model, own, micro_batch_generator(0, 0, 0))["diffusion"]
    assert torch.equal(losses(stage, toy, given)["loss/diffusion"], expected)
    assert stage.weight(stage.collate(given)) == 3


def test_a_sum_over_a_batch_is_the_sum_over_its_pieces():
    toy, _, stage = setting()
    learned(toy)
    given = records(5)
    whole = losses(stage, toy, given)
    pieces = [losses(stage, toy, given[:2]), losses(stage, toy, given[2:], first=2)]
    for name, value in whole.items():
        torch.testing.assert_close(value, sum(piece[name] for piece in pieces), rtol=1e-5, atol=0)


def test_without_a_prior_the_null_prompt_is_kept():
    toy, _, stage = setting()
    given = BesideStream(composed(), None, count=1).batch(0, 2)
    assert losses(stage, toy, given)["loss/keep"] == 0
    learned(toy)
    assert losses(stage, toy, given)["loss/keep"] > 0


@pytest.mark.parametrize("dropout", [0.5])
def test_dropout_is_no_change_of_a_condition(dropout):
    toy, _, stage = setting(dropout=dropout)
    toy.model.train()
    assert losses(stage, toy, records(2))["loss/keep"] == 0
