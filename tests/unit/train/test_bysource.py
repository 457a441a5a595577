"""The loss by source: whose each record is, told without changing what is learned."""

import math
from dataclasses import replace

import pytest
import torch

from kosmosg.data.compose import Composing
from kosmosg.data.mixture import Mixture, source_of, sources_of
from kosmosg.toyworld.streams import stage3_stream
from kosmosg.train.bysource import Sources, by_source, means
from kosmosg.train.log import read_log
from kosmosg.train.loop import fit
from kosmosg.train.prefetch import Plan
from kosmosg.train.run import Parts, RunConfig, make_stage, run
from kosmosg.train.stage import micro_batch_generator
from kosmosg.train.stage1_language import LanguageConfig
from kosmosg.train.stage2_align import AlignConfig, AlignPicturesConfig
from kosmosg.train.stage3_instruct import InstructConfig
from toys.stages import Captions, Documents, Examples, composed, toys
from toys.training import Pairs, Regression, net, train_config

INSTRUCT = InstructConfig(
    trainable=("aligner.encoder.*",), loss_weighting="min_snr", min_snr_gamma=5.0
)
CASES = [
    (LanguageConfig(trainable=("*",), word_weights={"red": 3.0}), Documents()),
    (AlignConfig(padding="masked", mllm="eval", reconstruction_weight=0.5), Captions()),
    (AlignConfig(padding="released", mllm="eval"), Captions()),
    (AlignPicturesConfig(trainable=("mllm.layers.*",)), composed()),
    (INSTRUCT, composed()),
]


class Told(Regression):
    """Regression that says what each record adds."""

    def loss(self, model, batch, generator):
        given, wanted = batch
        errors = ((model(given) - wanted) ** 2).mean(1)
        del generator
        return {"squares": errors.sum(), "metric_each_loss": errors.detach()}


def blend() -> Mixture:
    return Mixture({"near": Pairs(1), "far": Pairs(2)}, {"near": 1, "far": 3}, seed=4)


@pytest.mark.parametrize(("config", "stream"), CASES, ids=lambda case: type(case).__name__)
def test_a_stage_says_what_each_record_adds(config, stream):
    toy = toys()
    model = toy.model.mllm if isinstance(config, LanguageConfig) else toy.model
    parts = Parts(
        model=model,
        tokenizer=toy.tokenizer,
        stream=stream,
        text_tower=toy.text_tower,
        image_decoder=toy.image_decoder,
    )
    stage, model, records = make_stage(config, parts), model.eval(), stream.batch(0, 4)

    def told(some, first):
        batch = stage.collate(some)
        terms = stage.loss(model, batch, micro_batch_generator(0, 0, first))
        learned = sum(v for n, v in terms.items() if not n.startswith("metric_"))
        each = terms["metric_each_loss"]
        weights = terms.get("metric_each_weight", torch.ones(len(some)))
        assert not each.requires_grad
        torch.testing.assert_close(each.sum(), learned, rtol=1e-5, atol=1e-5)
        assert int(weights.sum()) == stage.weight(batch)
        return each, weights

    each, weights = told(records, 0)
    if config == CASES[2][0]:  # as released, a caption's neighbours count
        return
    alone = [told([record], index) for index, record in enumerate(records)]
    torch.testing.assert_close(each, torch.cat([own for own, _ in alone]), rtol=1e-4, atol=1e-5)
    assert weights.tolist() == [int(own) for _, own in alone]


def test_streams_say_of_which_source_a_record_is():
    mixed = blend()
    assert sources_of(mixed) == ("near", "far")
    seeds = {"near": 1, "far": 2}
    of = {(seed, f"{key}"): name for name, seed in seeds.items() for key in range(40)}
    seen = []
    for number, record in enumerate(mixed.batch(0, 16)):
        source = mixed.source(number)
        seen.append(source)
        original = Pairs(seeds[source])._record(int(record.key.removeprefix("pair-")))
        assert (record.given == original.given).all()
        assert of[seeds[source], record.key.removeprefix("pair-")] == source
    assert (seen.count("near"), seen.count("far")) == (4, 12)
    assert sources_of(Pairs(0)) == sources_of(Composing(Examples(), seed=0)) == ()
    toy = Composing(stage3_stream(3), seed=0)
    kinds = [source_of(toy, number) for number in range(10)]
    assert kinds == [record.key.split("-")[2] for record in toy.batch(0, 10)]


def test_micro_batches_know_their_records_wherever_they_begin():
    plan = Plan(
        stage=Told(),
        stream=blend(),
        steps=range(9),
        indices=range(3, 8),
        global_batch_size=8,
        micro_batch=2,
    )
    pieces = plan.prepare(5, range(3, 8))
    told = [piece.sources.names[index] for piece in pieces for index in piece.sources.of]
    assert told == [blend().source(5 * 8 + index) for index in range(3, 8)]


def test_sums_by_source_and_their_means():
    terms = {
        "squares": torch.tensor(9.0),
        "metric_each_loss": torch.tensor([1.0, 5.0, 3.0]),
        "metric_each_weight": torch.tensor([2, 4, 1]),
    }
    sources = Sources(("a", "b", "c"), (0, 1, 0))
    sums = by_source(terms, sources)
    assert {name: value.item() for name, value in sums.items()} == {
        "squares": 9.0,
        "metric_loss/a": 4.0,
        "metric_loss/b": 5.0,
        "metric_loss/c": 0.0,
        "metric_weight/a": 3.0,
        "metric_weight/b": 4.0,
        "metric_weight/c": 0.0,
    }
    assert means([sums, sums]) == {"squares": 9.0, "loss/a": 4 / 3, "loss/b": 5 / 4}
    assert set(by_source(terms, None)) == {"squares"}
    assert set(by_source(terms, Sources(("a",), (0, 0, 0)))) == {"squares"}
    assert set(by_source({"squares": terms["squares"]}, sources)) == {"squares"}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_log_has_the_loss_by_source(tmp_path, workers):
    """A step's weighted mean of the sources' losses is its loss, whatever the cut."""
    logs = []
    for micro_batch in (8, 3):
        config = train_config(log_every=1, micro_batch=micro_batch, validate_every=3)
        model, run_dir = net(dropout=0.0), tmp_path / f"{micro_batch}"
        fit(model, Told(), blend(), config, run_dir, workers=workers, validation=blend())
        logs.append(read_log(run_dir))
    steps = [[entry for entry in log if "loss" in entry] for log in logs]
    assert len(steps[0]) == 12
    for one, other in zip(*steps, strict=True):
        # 8 records hold two blocks of 1:3.
        assert (2 * one["loss/near"] + 6 * one["loss/far"]) / 8 == pytest.approx(one["loss"])
        assert one["loss/near"] == pytest.approx(other["loss/near"], rel=1e-4)
        assert one["loss/near"] != pytest.approx(one["loss/far"], rel=1e-3)
    checks = [[entry for entry in log if "validation_loss" in entry] for log in logs]
    assert len(checks[0]) == 4
    for one, other in zip(*checks, strict=True):
        near = sum(blend().source(number) == "near" for number in range(6))
        parts = near * one["validation_loss/near"] + (6 - near) * one["validation_loss/far"]
        assert parts / 6 == pytest.approx(one["validation_loss"])
        assert other["validation_loss/far"] == pytest.approx(one["validation_loss/far"], rel=1e-4)


def test_telling_the_sources_changes_nothing(tmp_path):
    class Silent(Told):
        def loss(self, model, batch, generator):
            return {"squares": super().loss(model, batch, generator)["squares"]}

    told, silent = net(), net()
    fit(told, Told(), blend(), train_config(), tmp_path / "told")
    fit(silent, Silent(), blend(), train_config(), tmp_path / "silent")
    ours, theirs = told.state_dict(), silent.state_dict()
    assert all(value.equal(theirs[name]) for name, value in ours.items())


def test_a_source_that_no_step_saw_is_left_out_and_one_that_some_saw_is_not(tmp_path):
    rare = Mixture({"often": Pairs(1), "rare": Pairs(2)}, {"often": 39, "rare": 1}, seed=0)
    at = next(number for number in range(40) if rare.source(number) == "rare")
    fit(net(), Told(), rare, train_config(steps=5, log_every=1), tmp_path / "r")
    has = ["loss/rare" in entry for entry in read_log(tmp_path / "r")]
    assert has == [step == at // 8 for step in range(5)]


def instruct(**changes):
    toy = toys()
    parts = Parts(
        model=toy.model,
        tokenizer=toy.tokenizer,
        stream=composed(),
        validation=composed(),
        image_decoder=toy.image_decoder,
    )
    return make_stage(replace(INSTRUCT, **changes), parts), parts


def test_validation_covers_the_timesteps_evenly():
    stage, parts = instruct()
    total = len(parts.image_decoder.alphas_cumprod)
    records = composed().batch(0, 10)
    spread = stage.spread(stage.collate(records), first=0, count=10).timesteps
    assert spread.tolist() == [total * (2 * index + 1) // 20 for index in range(10)]
    later = stage.spread(stage.collate(records[4:]), first=4, count=10).timesteps
    assert later.equal(spread[4:])
    many = stage.spread(stage.collate(records), first=0, count=10 * total).timesteps
    assert many.tolist() == [0] * 5 + [0] * 5


def test_validation_of_stage_3_depends_on_neither_cut_nor_luck(tmp_path):
    """At those timesteps, with the noise of (seed, index): the value is computed here by hand."""
    told = []
    for micro_batch in (6, 4, 1):
        stage, parts = instruct()
        train = train_config(steps=1, ema=None, global_batch_size=2, micro_batch=micro_batch)
        run_dir = tmp_path / f"{micro_batch}"
        run(RunConfig(stage=INSTRUCT, train=train), parts, run_dir)
        told.append(read_log(run_dir)[-1]["validation_loss"])
    assert told[1:] == pytest.approx([told[0]] * 2, rel=1e-4)
    records = composed().batch(0, 6)
    by_hand = 0.0
    with torch.no_grad():
        for index, record in enumerate(records):
            batch = stage.spread(stage.collate([record]), first=index, count=6)
            generator = micro_batch_generator(1, "validation", index)
            by_hand += float(stage.loss(parts.model.eval(), batch, generator)["diffusion"]) / 6
    assert told[-1] == pytest.approx(by_hand, rel=1e-4)
    assert math.isfinite(by_hand)
