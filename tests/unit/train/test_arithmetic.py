"""Needs at toy size, against the real stages' own products and against sums by hand."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kosmosg import adapter
from kosmosg.adapter import AdapterConfig
from kosmosg.data.compose import Composed
from kosmosg.data.records import Caption, Document
from kosmosg.data.sources import DataConfig, SourceConfig
from kosmosg.errors import ConfigError
from kosmosg.model.magneto import MagnetoLayer
from kosmosg.train.arithmetic import need
from kosmosg.train.optim import EmaConfig
from kosmosg.train.run import Parts, make_stage
from kosmosg.train.shapes import RECORDS, SUBJECT, Record, Sizes, Tuning, mean_record
from kosmosg.train.stage import freeze_except, micro_batch_generator
from kosmosg.train.stage1_language import LanguageConfig
from kosmosg.train.stage2_align import AlignConfig, AlignPicturesConfig
from kosmosg.train.stage3_instruct import InstructConfig
from kosmosg.train.stage_subject import Beside, SubjectStage
from kosmosg.train.subject import subject
from toys.model import SIZE, toy_picture
from toys.stages import Captions, toy_sizes, toys
from toys.training import train_config

WORDS = "a red cat"  # three pieces
LAST = ("mllm.vision.clip.encoder.layers.last.*", "mllm.resampler.*", "mllm.layers.*")
LANGUAGE = LanguageConfig(trainable=tuple(name.removeprefix("mllm.") for name in LAST))
ALIGN = AlignConfig(padding="masked", mllm="eval")
PICTURES = AlignPicturesConfig(trainable=(*LAST, "aligner.encoder.*"))
INSTRUCT = InstructConfig(trainable=(*LAST, "aligner.encoder.*"))


ADAPTER = AdapterConfig(rank=2, alpha=4.0)


def picture(index):
    return toy_picture(index, (SIZE, SIZE))


def composed(index):
    return Composed(
        key=str(index),
        prompt=(WORDS, picture(index)),
        target=picture(index + 9),
        caption=WORDS,
    )


CASES = [
    (LANGUAGE, lambda i: Document(key=str(i), parts=(WORDS, picture(i))), 1),
    (ALIGN, lambda i: Caption(key=str(i), text=WORDS), 0),
    (PICTURES, composed, 1),
    (INSTRUCT, composed, 1),
]


@pytest.mark.parametrize(("config", "record", "pictures"), CASES, ids=lambda c: type(c).__name__)
def test_flops_are_those_of_the_real_stage(config, record, pictures) -> None:
    toy = toys(dropout=0.1)
    model = toy.model.mllm if isinstance(config, LanguageConfig) else toy.model
    parts = Parts(
        model=model,
        tokenizer=toy.tokenizer,
        stream=Captions(),
        text_tower=toy.text_tower,
        image_decoder=toy.image_decoder,
    )
    stage = make_stage(config, parts)
    freeze_except(model, config.trainable)
    model.train()
    batch = stage.collate([record(index) for index in range(3)])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        losses = stage.loss(model, batch, micro_batch_generator(0, 0, 0))
        sum(value for name, value in losses.items() if not name.startswith("metric")).backward()
    slots = toy.model.mllm.config["num_latents"] + 2
    held = Record(positions=1 + 3 + pictures * slots, pictures=float(pictures))
    train = train_config(global_batch_size=12, micro_batch=3, ema=None)
    counted = need(config, train, toy_sizes(toy), record=held, gpus=1)
    assert counted.flops == 4 * counter.get_total_flops()


@pytest.mark.parametrize("beside", [0, 2])
def test_flops_are_those_of_a_subjects_tuning(beside) -> None:
    """An adapter in the model; others' prompts read once without it, once with it, and back."""
    toy = toys()
    with torch.random.fork_rng():
        adapter.add(toy.model, ADAPTER)
    config = InstructConfig(trainable=adapter.TRAINABLE, condition_drop=0.0)
    sizes = {name: toy.model.mllm.config[name] for name in ("num_latents", "image_size")}
    parts = Parts(
        model=toy.model,
        tokenizer=toy.tokenizer,
        stream=Captions(),
        image_decoder=toy.image_decoder,
    )
    stage = SubjectStage(
        make_stage(config, parts), tokenizer=toy.tokenizer, keep_weight=1.0, **sizes
    )
    freeze_except(toy.model, config.trainable)
    kept = tuple(composed(index).prompt for index in range(beside))
    batch = stage.collate([Beside(shown=composed(index), kept=kept) for index in range(3)])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        losses = stage.loss(toy.model, batch, micro_batch_generator(0, 0, 0))
        sum(losses.values()).backward()
    held = Record(positions=1 + 3 + sizes["num_latents"] + 2, pictures=1.0)
    train = train_config(global_batch_size=12, micro_batch=3, ema=None, precision="bfloat16")
    tuning = Tuning(adapter=ADAPTER, beside=beside, kept=held)
    counted = need(config, train, toy_sizes(toy), record=held, gpus=1, tuning=tuning)
    assert counted.flops == 4 * counter.get_total_flops()
    learns = adapter.num_parameters(toys().model, ADAPTER)
    assert sum(part.learns for part in counted.parts) == learns
    assert counted.memory["weights"] == 4 * learns
    # The model is held in half precision, as nothing of its own learns; N is not there.
    own = [toys().model.mllm, toys().model.aligner.encoder, toy.image_decoder]
    assert counted.memory["frozen"] == 2 * sum(p.numel() for part in own for p in part.parameters())


def test_a_language_model_of_which_nothing_learns_is_held_in_half() -> None:
    toy = toys()
    train = train_config(precision="bfloat16", ema=None)
    record = Record(positions=10, pictures=0.0)
    two = need(ALIGN, train, toy_sizes(toy), record=record, gpus=1)
    held = [*toy.model.mllm.parameters(), *toy.text_tower.encoder.parameters()]
    assert two.memory["frozen"] == 2 * sum(p.numel() for p in held)


def test_a_subject_is_tuned_at_full_size_on_24_gb(repository) -> None:
    """With as many prompts of other things beside it; docs/training.md has the sum."""
    recipe = subject()
    tuning = Tuning(adapter=recipe.adapter, beside=1)
    counted = need(recipe.stage, recipe.train, Sizes(), record=SUBJECT, gpus=1, tuning=tuning)
    assert recipe.train.micro_batch == counted.count == 8
    total = counted.total_bytes(checkpointing=False)
    learns = sum(part.learns for part in counted.parts)
    assert total < 24e9
    page = (repository / "docs/training.md").read_text(encoding="utf-8")
    told = f"{learns / 1e6:.1f} million parameters, and one GPU {total / 2**30:.1f} GiB"
    assert told in " ".join(page.split())


def test_stage_1_by_hand() -> None:
    """Words alone, six floats a FLOP: what is multiplied by a weight three times, twice each."""
    toy = toys()
    config = toy.model.mllm.config
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    train = train_config(global_batch_size=8, micro_batch=4, ema=EmaConfig(decay=0.9))
    stage = LanguageConfig(trainable=("layers.*", "layer_norm.*", "embed_tokens.*"))
    counted = need(stage, train, toy_sizes(toy), record=Record(positions=10, pictures=0.0), gpus=1)
    per_token = layers * (4 * width**2 + 2 * width * config["intermediate_size"])
    per_token += width * config["vocab_size"]
    attention = layers * 2 * 10 * width  # two products over ten keys
    assert counted.flops == 6 * 8 * 10 * (per_token + attention)

    words, vision, resampler = (counted.parts[i] for i in (2, 0, 1))
    assert [part.name for part in counted.parts] == ["vision tower", "resampler", "language model"]
    assert words.frozen == vision.learns == resampler.learns == 0
    learning = toy.model.mllm.layers, toy.model.mllm.layer_norm, toy.model.mllm.embed_tokens
    assert words.learns == sum(p.numel() for module in learning for p in module.parameters())
    assert counted.memory == {
        "weights": 4 * words.learns,
        "gradients": 4 * words.learns,
        "optimizer": 8 * words.learns,
        "average": 4 * words.learns,
        "gathered": 0,
        "frozen": 4 * (vision.frozen + resampler.frozen),
        "activations": counted.memory["activations"],
    }
    assert counted.checkpointed_bytes < counted.memory["activations"]
    saved = counted.memory["activations"] - counted.checkpointed_bytes
    totals = [counted.total_bytes(checkpointing=again) for again in (False, True)]
    assert totals[0] - totals[1] == saved


def test_what_learns_is_shared_out_and_computed_in_half() -> None:
    toy = toys()
    record = Record(positions=10, pictures=1.0)
    train = train_config(global_batch_size=8, micro_batch=4, ema=None, precision="bfloat16")
    one, two = (need(INSTRUCT, train, toy_sizes(toy), record=record, gpus=gpus) for gpus in (1, 2))
    learns = sum(part.learns for part in one.parts)
    frozen = sum(part.frozen for part in one.parts)
    assert [part.name for part in one.parts if not part.learns] == ["U-Net", "VAE"]
    assert one.flops == two.flops
    for name in ("weights", "optimizer"):
        assert two.memory[name] == one.memory[name] // 2
    # The null prompt has a pass of its own, so that all gradients wait for its share; those of
    # blocks in half precision, in which their weights came.
    layers = [*toy.model.mllm.layers, *toy.model.aligner.encoder.modules()]
    blocks = {m for m in layers if isinstance(m, MagnetoLayer)}
    inside = sum(p.numel() for block in blocks for p in block.parameters())
    waiting = two.memory["gradients"] - one.memory["gradients"] // 2
    assert waiting == pytest.approx(2 * inside + 4 * (learns - inside), rel=0.01)  # with padding
    assert one.memory["weights"] == 4 * learns
    # What stands beside the model is held in half precision, the model itself whole.
    beside = sum(part.frozen for part in one.parts if part.name in ("U-Net", "VAE"))
    held = 2 * beside + 4 * (frozen - beside)
    assert one.memory["frozen"] == two.memory["frozen"] == held
    assert one.memory["gathered"] == 2 * learns  # all of it, in half precision
    largest = sorted(sum(p.numel() for p in block.parameters()) for block in blocks)[-2:]
    kept = 4 * (learns - inside) + 2 * sum(largest)  # what is in no block stays, in float32
    assert two.memory["gathered"] == pytest.approx(kept, rel=0.01)
    assert one.memory["activations"] == two.memory["activations"]
    more = dataclasses.replace(train, micro_batch=8)
    both = need(INSTRUCT, more, toy_sizes(toy), record=record, gpus=1)
    assert both.memory["activations"] == pytest.approx(2 * one.memory["activations"], rel=0.02)
    # With two GPUs a step gives each no more than four.
    assert need(INSTRUCT, more, toy_sizes(toy), record=record, gpus=2).memory == two.memory


def test_hours_by_hand() -> None:
    toy = toys()
    train = train_config(steps=1000, precision="bfloat16", ema=None)
    counted = need(ALIGN, train, toy_sizes(toy), record=RECORDS["captions"], gpus=2)
    hours = counted.hours(train, gpus=2, kind="H100", utilisation=0.5, checkpointing=False)
    assert hours == pytest.approx(1000 * counted.flops / (2 * 989e12 * 0.5) / 3600)
    slower = counted.hours(train, gpus=2, kind="H100", utilisation=0.5, checkpointing=True)
    assert slower / hours == pytest.approx(1 + counted.recomputed_flops / counted.flops)
    full = dataclasses.replace(train, precision="float32")
    exact = counted.hours(full, gpus=2, kind="H100", utilisation=0.5, checkpointing=False)
    assert exact / hours == pytest.approx(989 / 67)


def test_records_are_taken_by_the_names_of_their_sources() -> None:
    def data(**weights):
        made = {name: SourceConfig(paths=name, weight=weights[name]) for name in weights}
        return DataConfig(sources=made)

    mixed = mean_record(INSTRUCT, data(constructed=2, edits=2, captions=1))
    assert mixed.positions == round((2 * 153 + 2 * 85 + 21) / 5)
    assert mixed.pictures == pytest.approx((2 * 2 + 2 * 1) / 5)
    assert mean_record(INSTRUCT, data(mine=1)) == RECORDS["constructed"]
    assert mean_record(ALIGN, None) == RECORDS["captions"]
    # 20 pieces, `<s>`, and two pictures of 64 slots and two brackets each.
    assert RECORDS["constructed"].positions == 1 + 20 + 2 * 66


def test_gathered_once_a_step_it_is_one_message_of_all_weights() -> None:
    """Instead of one for each pass of each micro-batch, twice; the gradients' stays what it is."""
    toy, record = toys(), Record(positions=10, pictures=1.0)
    stage = dataclasses.replace(INSTRUCT, length_groups=3)
    train = train_config(global_batch_size=16, micro_batch=4, ema=None)
    layer, step = (
        need(
            stage,
            dataclasses.replace(train, gathered=name),
            toy_sizes(toy),
            record=record,
            gpus=2,
        )
        for name in ("layer", "step")
    )
    whole = sum(use.weights for use in step.uses)
    assert step.traffic.all_gather == whole
    # Two micro-batches of three passes, forward and back; some units stay from pass to pass.
    blocks = sum(use.weights for use in layer.uses if use.unit.kind == "block")
    assert 10 * blocks < layer.traffic.all_gather < 2 * 2 * 3 * whole
    assert layer.traffic.reduce_scatter == step.traffic.reduce_scatter
    assert layer.memory["gathered"] < step.memory["gathered"] == whole


def test_gpus_that_cannot_be_grouped_are_refused() -> None:
    train = train_config(shard_ranks=3)
    with pytest.raises(ConfigError, match="shard_ranks = 3 with 8 GPUs"):
        need(ALIGN, train, Sizes(), record=RECORDS["captions"], gpus=8)


def test_frozen_parts_are_shared_where_it_is_said() -> None:
    toy, record = toys(), Record(positions=10, pictures=1.0)
    train = train_config(global_batch_size=8, micro_batch=4, ema=None)
    whole, shared = (
        need(
            INSTRUCT,
            dataclasses.replace(train, frozen_parts=name),
            toy_sizes(toy),
            record=record,
            gpus=2,
        )
        for name in ("whole", "sharded")
    )
    assert shared.memory["frozen"] == whole.memory["frozen"] // 2
    assert shared.traffic.all_gather > whole.traffic.all_gather
    assert shared.traffic.reduce_scatter == whole.traffic.reduce_scatter


@pytest.mark.parametrize("gpus", [0, 9])
def test_more_gpus_than_records_are_refused(gpus: int) -> None:
    with pytest.raises(ConfigError, match=f"{gpus} GPUs for steps of 8 records"):
        need(ALIGN, train_config(), Sizes(), record=RECORDS["captions"], gpus=gpus)


def test_an_unknown_gpu_is_named() -> None:
    toy = toys()
    train = train_config()
    counted = need(ALIGN, train, toy_sizes(toy), record=RECORDS["captions"], gpus=1)
    with pytest.raises(ConfigError, match="no GPU kind 'H1000'; the kinds are V100-32GB, A100"):
        counted.hours(train, gpus=1, kind="H1000", utilisation=0.4, checkpointing=False)


def test_there_is_no_memory_behind_it() -> None:
    """The full size in a moment: 1.9 billion parameters would take seven gigabytes."""
    from kosmosg.train.shapes import StageShapes

    shapes = StageShapes(ALIGN, Sizes(), torch.bfloat16)
    assert all(p.is_meta for module in shapes.modules for p in module.parameters())
