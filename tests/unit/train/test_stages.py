import dataclasses

import pytest
import torch
import torch.nn.functional as F

from kosmosg.data.compose import Composing
from kosmosg.data.packing import pieces
from kosmosg.data.records import Document
from kosmosg.data.rows import PackedRows, pack_shards
from kosmosg.data.skips import Skips
from kosmosg.errors import ConfigError, DataError
from kosmosg.train.run import Parts, RunConfig, make_stage, run
from kosmosg.train.stage import micro_batch_generator
from kosmosg.train.stage1_language import LanguageConfig
from kosmosg.train.stage2_align import AlignConfig, AlignPicturesConfig
from kosmosg.train.stage3_instruct import InstructConfig
from toys.model import SIZE
from toys.stages import Captions, Documents, Examples, composed, toys
from toys.training import train_config

LANGUAGE = LanguageConfig(trainable=("*",))
ALIGN = AlignConfig(padding="masked", mllm="eval")
PICTURES = AlignPicturesConfig(trainable=("mllm.layers.*", "aligner.encoder.*"))
INSTRUCT = InstructConfig(trainable=("mllm.layers.*", "mllm.resampler.*", "aligner.encoder.*"))
CASES = [
    (LANGUAGE, Documents()),
    (ALIGN, Captions()),
    (dataclasses.replace(ALIGN, length_groups=2), Captions()),
    (PICTURES, composed()),
    (INSTRUCT, composed()),
    (dataclasses.replace(INSTRUCT, length_groups=3, unet_activations="recomputed"), composed()),
]


def parts_for(config, toy, stream) -> Parts:
    return Parts(
        model=toy.model.mllm if isinstance(config, LanguageConfig) else toy.model,
        tokenizer=toy.tokenizer,
        stream=stream,
        text_tower=toy.text_tower,
        image_decoder=toy.image_decoder,
    )


def setting(config, *, dropout=0.0):
    toy = toys(dropout=dropout)
    parts = parts_for(config, toy, stream=Captions())
    return toy, parts.model, make_stage(config, parts)


def total(stage, model, records, first=0, seed=0):
    batch = stage.collate(records)
    losses = stage.loss(model, batch, micro_batch_generator(seed, 0, first))
    learned = sum(value for name, value in losses.items() if not name.startswith("metric_"))
    return learned, stage.weight(batch)


@pytest.mark.parametrize(("config", "stream"), CASES, ids=lambda case: type(case).__name__)
def test_a_sum_over_a_batch_is_the_sum_over_its_pieces(config, stream):
    _, model, stage = setting(config)
    records = stream.batch(0, 6)
    whole, weight = total(stage, model.eval(), records)
    pieces = [total(stage, model, records[i : i + 2], first=i) for i in (0, 2, 4)]
    assert weight == sum(piece[1] for piece in pieces)
    torch.testing.assert_close(whole, sum(piece[0] for piece in pieces), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("config", "stream"), CASES, ids=lambda case: type(case).__name__)
def test_each_stage_learns_what_it_names_and_nothing_else(config, stream, tmp_path):
    toy = toys(dropout=0.1)
    parts = dataclasses.replace(parts_for(config, toy, Same(stream)), validation=stream)
    before = {name: value.clone() for name, value in parts.model.state_dict().items()}
    decoder = {name: value.clone() for name, value in toy.image_decoder.state_dict().items()}
    train = train_config(steps=12, ema=None, validate_every=12)
    run(RunConfig(stage=config, train=train), parts, tmp_path / "run")
    changed = {
        name for name, value in parts.model.state_dict().items() if not value.equal(before[name])
    }
    learning = {name for name, value in parts.model.named_parameters() if value.requires_grad}
    assert changed <= learning
    assert any(name.startswith(("layers", "mllm.layers", "aligner.encoder")) for name in changed)
    after = toy.image_decoder.state_dict()
    assert all(value.equal(after[name]) for name, value in decoder.items())


class Same:
    """The same few records in each step."""

    def __init__(self, stream):
        self.stream = stream

    def batch(self, step, size):  # noqa: ARG002
        return self.stream.batch(0, size)


def test_stage_1_is_cross_entropy_of_the_next_word():
    toy, model, stage = setting(LANGUAGE)
    batch = stage.collate(Documents().batch(0, 3))
    model.eval()
    hidden = model(batch.input_ids, batch.attention_mask, batch.image_mask, batch.pixel_values)
    expected = F.cross_entropy(
        model.logits(hidden).flatten(0, 1), batch.labels.flatten(), reduction="sum"
    )
    losses = stage.loss(model, batch, micro_batch_generator(0, 0, 0))
    torch.testing.assert_close(losses["cross_entropy"], expected)
    assert 0 <= losses["metric_accuracy"] <= stage.weight(batch)
    # Words and `</s>` of each document; never a picture.
    texts = [part for record in Documents().batch(0, 3) for part in record.parts]
    words = sum(len(toy.tokenizer.encode(text)) for text in texts if isinstance(text, str))
    assert stage.weight(batch) == words + 3


def test_stage_1_weighs_the_words_it_is_told_to():
    losses = []
    for weights in ({}, {"red": 3.0}):
        _, model, stage = setting(LanguageConfig(trainable=("*",), word_weights=weights))
        batch = stage.collate(Documents().batch(0, 1))
        losses.append(stage.loss(model.eval(), batch, micro_batch_generator(0, 0, 0)))
    hidden = model(batch.input_ids, batch.attention_mask, batch.image_mask, batch.pixel_values)
    red = toys().tokenizer.encode("red")[0]
    at = batch.labels == red
    extra = 2 * F.cross_entropy(model.logits(hidden[at]), batch.labels[at], reduction="sum")
    assert at.any()
    torch.testing.assert_close(
        losses[1]["cross_entropy"], losses[0]["cross_entropy"] + extra, rtol=1e-5, atol=1e-5
    )
    with pytest.raises(ConfigError, match=r"word_weights\.zebra: the tokenizer does not know"):
        setting(LanguageConfig(trainable=("*",), word_weights={"zebra": 3.0}))


class Shards:
    """Documents and captions as two shards in memory."""

    num_shards = 2

    def shard(self, index):
        return Documents().batch(index, 5) if index else Captions().batch(index, 5)

    def fingerprint(self, index):
        return str(index)


def packed_rows(toy):
    sizes = {"num_latents": toy.model.mllm.config["num_latents"], "seq_len": 40}
    packed = pack_shards(Shards(), toy.tokenizer, skips=Skips(), **sizes)
    return PackedRows(Shards(), packed, seed=0, skips=Skips())


def test_stage_1_learns_from_packed_rows_what_it_does_from_documents():
    toy, model, stage = setting(LanguageConfig(trainable=("*",), attention="document"))
    rows = PackedRows(
        Shards(),
        pack_shards(
            Shards(),
            toy.tokenizer,
            num_latents=model.config["num_latents"],
            seq_len=500,  # each shard is one row
            skips=Skips(),
        ),
        seed=None,
        skips=Skips(),
    ).batch(0, 2)
    records = [*Captions().batch(0, 5), *Documents().batch(1, 5)]
    documents = [Document(key=record.key, parts=tuple(pieces(record))) for record in records]
    packed, num_packed = total(stage, model.eval(), rows)
    alone, num_alone = total(stage, model, documents)
    assert num_packed == num_alone
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-4)
    # Over the row, words are guessed from the documents before, too.
    _, _, over = setting(LANGUAGE)
    assert not torch.isclose(total(over, model, rows)[0], alone, rtol=1e-4)


@pytest.mark.parametrize("attention", ["row", "document"])
def test_stage_1_runs_on_packed_rows_and_documents_together(attention, tmp_path):
    toy = toys(dropout=0.1)
    config = LanguageConfig(trainable=("*",), attention=attention)
    parts = parts_for(config, toy, packed_rows(toy))
    run(RunConfig(stage=config, train=train_config(steps=2, ema=None)), parts, tmp_path / "run")
    stage = make_stage(config, parts)
    batch = stage.collate([*parts.stream.batch(0, 2), *Documents().batch(0, 1)])
    assert batch.document_ids.max() > 0
    assert stage.weight(batch) == sum(
        stage.weight(stage.collate([record]))
        for record in [*parts.stream.batch(0, 2), *Documents().batch(0, 1)]
    )


def test_stage_2_reconstruction_as_released_counts_pads_and_masked_does_not():
    records = Captions().batch(0, 4)
    values = {}
    for padding in ("masked", "released"):
        _, model, stage = setting(AlignConfig(padding=padding, mllm="eval"))
        alone = sum(
            stage.loss(model, stage.collate([record]), micro_batch_generator(0, 0, 0))[
                "reconstruction"
            ]
            for record in records
        )
        whole = stage.loss(model, stage.collate(records), micro_batch_generator(0, 0, 0))
        values[padding] = (alone, whole["reconstruction"])
    # A caption alone has no pads: there both agree.
    torch.testing.assert_close(values["masked"][0], values["released"][0])
    torch.testing.assert_close(values["masked"][0], values["masked"][1], rtol=1e-5, atol=1e-5)
    assert not torch.isclose(*values["released"], rtol=1e-3)


def test_stage_2_weighs_the_reconstruction():
    losses = []
    for weight in (1.0, 0.02):
        _, model, stage = setting(dataclasses.replace(ALIGN, reconstruction_weight=weight))
        batch = stage.collate(Captions().batch(0, 2))
        losses.append(stage.loss(model, batch, micro_batch_generator(0, 0, 0)))
    torch.testing.assert_close(losses[1]["mse"], losses[0]["mse"])
    torch.testing.assert_close(losses[1]["reconstruction"], 0.02 * losses[0]["reconstruction"])


@pytest.mark.parametrize(("mllm", "varies"), [("eval", False), ("train", True)])
def test_stage_2_dropout_of_the_frozen_language_model_is_a_choice(mllm, varies):
    _, model, stage = setting(AlignConfig(padding="masked", mllm=mllm), dropout=0.3)
    batch = stage.collate(Captions().batch(0, 2))
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model.train()
        losses.append(stage.loss(model, batch, micro_batch_generator(0, 0, 0))["mse"])
    assert bool(losses[0] != losses[1]) is varies


def test_aligning_pictures_needs_captions_of_the_targets():
    _, _, stage = setting(PICTURES)
    records = Examples().batch(0, 3)
    untold = dataclasses.replace(records[1], after_caption=None)
    with pytest.raises(DataError, match="edit-1 has no caption of its target"):
        stage.collate(Composing(Only(untold), seed=0).batch(0, 1))


class Only:
    def __init__(self, record):
        self.record = record

    def batch(self, step, size):  # noqa: ARG002
        return [self.record] * size


def instruct(**changes):
    return setting(dataclasses.replace(INSTRUCT, **changes))


def test_stage_3_gradients_pass_the_frozen_decoder():
    toy, model, stage = instruct()
    loss, _ = total(stage, model, composed().batch(0, 3))
    loss.backward()
    assert model.aligner.encoder.queries.grad.abs().sum() > 0
    assert model.mllm.resampler.latents.grad.abs().sum() > 0
    assert all(value.grad is None for value in toy.image_decoder.parameters())


def test_stage_3_drops_prompts_for_the_null_prompt_with_gradient():
    _, model, stage = instruct(condition_drop=1.0)
    model.eval()
    records = composed().batch(0, 4)
    loss, _ = total(stage, model, records)
    loss.backward()
    assert model.aligner.encoder.queries.grad.abs().sum() > 0
    shuffled = [
        dataclasses.replace(record, prompt=records[-1 - i].prompt)
        for i, record in enumerate(records)
    ]
    torch.testing.assert_close(total(stage, model, shuffled)[0], loss)  # prompts do not matter
    never = instruct(condition_drop=0.0)[2]
    assert not torch.isclose(total(never, model, shuffled)[0], total(never, model, records)[0])


def test_stage_3_takes_latents_instead_of_pictures():
    toy, model, stage = instruct()
    records = composed().batch(0, 2)
    picture_batch = stage.collate(records)
    latents = toy.image_decoder.encode_images(
        picture_batch.target_images, [torch.Generator().manual_seed(i) for i in range(2)]
    )
    given = [
        dataclasses.replace(record, latents=own)
        for record, own in zip(records, latents, strict=True)
    ]
    batch = stage.collate(given)
    assert batch.target_images is None
    assert batch.latents.equal(latents)
    loss = stage.loss(model.eval(), batch, micro_batch_generator(0, 0, 0))["diffusion"]
    assert loss.isfinite()


def test_stage_3_min_snr_only_lowers_easy_timesteps():
    _, model, plain = instruct()
    weighted = instruct(loss_weighting="min_snr", min_snr_gamma=5.0)[2]
    records = composed().batch(0, 6)
    ours, theirs = (total(stage, model.eval(), records)[0] for stage in (weighted, plain))
    assert 0 < ours < theirs
    everything = instruct(loss_weighting="min_snr", min_snr_gamma=1e9)[2]
    torch.testing.assert_close(total(everything, model, records)[0], theirs)


def test_stage_3_targets_have_the_size_of_the_unet():
    _, _, stage = instruct()
    assert stage.collate(composed().batch(0, 1)).target_images.shape[-2:] == (SIZE, SIZE)


@pytest.mark.parametrize(
    ("config", "name"),
    [(ALIGN, "text_tower"), (PICTURES, "text_tower"), (INSTRUCT, "image_decoder")],
)
def test_a_missing_part_is_named(config, name):
    parts = dataclasses.replace(parts_for(config, toys(), Captions()), **{name: None})
    with pytest.raises(ConfigError, match=f"stage '{config.kind}' needs {name}"):
        make_stage(config, parts)


def test_resuming_stage_3_in_the_middle_is_bit_equal(tmp_path):
    def fresh(steps_seen=None):
        toy = toys(dropout=0.1)
        return parts_for(INSTRUCT, toy, steps_seen or composed())

    class Dies(Composing):
        def batch(self, step, size):
            if step == 3:
                raise DataError("the power went")
            return super().batch(step, size)

    train = train_config(steps=5, global_batch_size=4, micro_batch=2, checkpoint_s=0.0)
    config = RunConfig(stage=INSTRUCT, train=train)
    whole = fresh()
    run(config, whole, tmp_path / "whole")
    with pytest.raises(DataError, match="the power went"):
        run(config, fresh(Dies(Examples(), seed=0)), tmp_path / "run")
    again = fresh()
    run(config, again, tmp_path / "run", resume=True)
    ours, theirs = again.model.state_dict(), whole.model.state_dict()
    assert all(value.equal(theirs[name]) for name, value in ours.items())
