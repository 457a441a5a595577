"""Adapters: they change nothing until they learn, fit one model only, and leave no trace."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kosmosg import adapter
from kosmosg.adapter import AdapterConfig
from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.kosmosg import KosmosG
from kosmosg.model.mllm import MLLM
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.sequence import collate, encode
from toys.model import NUM_LATENTS, SIZE, toy_picture, toy_pipeline

CONFIG = AdapterConfig(rank=2, alpha=4.0)
PROMPT = ["a cat", toy_picture(1), "in the snow"]


def loaded(toy_dir):
    pipe = KosmosGPipeline.from_pretrained(toy_dir)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model_of(pipe) -> KosmosG:
    return KosmosG(pipe.mllm, pipe.aligner)


def embeds_of(pipe) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat(pipe.encode_prompt([PROMPT]))


def picture_of(pipe) -> np.ndarray:
    return pipe([PROMPT], generator=torch.Generator().manual_seed(3), output_type="np").images


def learned(model: KosmosG) -> None:
    """Give the second factors values, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in adapter.weights(model).values():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))


@pytest.fixture
def file(toy_dir, tmp_path):
    pipe = loaded(toy_dir)
    model = model_of(pipe)
    adapter.add(model, CONFIG)
    learned(model)
    path = tmp_path / "a" / "cat.safetensors"
    adapter.write(path, model, CONFIG, base=adapter.base_of(toy_dir), provenance={"name": "my cat"})
    return path


def test_a_new_adapter_changes_no_bit_and_freezes_nothing(toy_dir):
    pipe = loaded(toy_dir)
    model, before = model_of(pipe), embeds_of(pipe)
    model.mllm.vision.requires_grad_(False)
    learns = [one.requires_grad for one in model.parameters()]
    adapter.add(model, CONFIG)
    assert torch.equal(embeds_of(pipe), before)
    own = [one for name, one in model.named_parameters() if "lora" not in name]
    assert [one.requires_grad for one in own] == learns
    names = set(adapter.weights(model))
    assert "mllm.layers.0.self_attn.q_proj.lora_A" in names
    assert "aligner.encoder.query_layers.0.cross_attn.v_proj.lora_B" in names
    assert not any("vision" in name or "decoder" in name for name in names)
    adapter.remove(model)
    assert model.state_dict().keys() == model_of(toy_pipeline()).state_dict().keys()


def test_unloading_gives_the_very_bits_back(toy_dir, file):
    pipe = loaded(toy_dir)
    embeds, picture = embeds_of(pipe), picture_of(pipe)
    pipe.load_adapter(file)
    assert (embeds_of(pipe) - embeds).abs().max() > 0.01
    assert not np.array_equal(picture_of(pipe), picture)
    pipe.unload_adapter()
    pipe.unload_adapter()  # there is none any more
    assert torch.equal(embeds_of(pipe), embeds)
    assert np.array_equal(picture_of(pipe), picture)


def test_a_file_brings_back_what_was_learned(toy_dir, file):
    pipe = loaded(toy_dir)
    model = model_of(pipe)
    adapter.add(model, CONFIG)
    learned(model)
    expected = embeds_of(pipe)
    again = loaded(toy_dir)
    generator_state = torch.random.get_rng_state()
    again.load_adapter(file.parent)  # a directory with one does as well
    assert torch.equal(torch.random.get_rng_state(), generator_state)
    assert torch.equal(embeds_of(again), expected)
    header, _ = adapter.read(file)
    assert header.provenance == {"name": "my cat"}
    assert header.base == adapter.base_of(toy_dir)


def test_scale_weighs_what_is_added(toy_dir, file):
    added = {}
    states = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    for scale in (0.0, 0.5, 1.0):
        pipe = loaded(toy_dir)
        linear = pipe.mllm.layers[0].ffn.fc1
        plain = linear(states)
        pipe.load_adapter(file, scale=scale)
        added[scale] = pipe.mllm.layers[0].ffn.fc1(states) - plain
    assert added[1.0].abs().max() > 0.1
    assert torch.equal(added[0.0], torch.zeros_like(plain))
    torch.testing.assert_close(added[0.5], 0.5 * added[1.0], rtol=1e-4, atol=1e-6)


def test_half_precision_takes_the_factors_in_half(toy_dir, file):
    pipe = KosmosGPipeline.from_pretrained(toy_dir, dtype=torch.bfloat16)
    before = embeds_of(pipe)
    pipe.load_adapter(file)
    assert {one.dtype for one in adapter.weights(model_of(pipe)).values()} == {torch.bfloat16}
    assert embeds_of(pipe).dtype == before.dtype
    assert not torch.equal(embeds_of(pipe), before)


def test_pipelines_that_share_a_model_share_the_adapter(toy_dir, file):
    pipe = loaded(toy_dir)
    other = KosmosGPipeline.from_pipe(pipe)
    other.load_adapter(file)
    assert torch.equal(embeds_of(other), embeds_of(pipe))


def test_another_model_is_refused(file, tmp_path):
    toy_pipeline(seed=1).save_pretrained(tmp_path / "other")
    pipe = loaded(tmp_path / "other")
    before = embeds_of(pipe)
    with pytest.raises(CheckpointError, match=r"made for another model: the sha256 of its mllm is"):
        pipe.load_adapter(file)
    assert torch.equal(embeds_of(pipe), before)


def test_a_second_one_a_save_and_a_nameless_pipeline_are_refused(toy_dir, file, tmp_path):
    pipe = loaded(toy_dir)
    pipe.load_adapter(file)
    with pytest.raises(ConfigError, match="call unload_adapter first"):
        pipe.load_adapter(file)
    with pytest.raises(CheckpointError, match="call unload_adapter first"):
        pipe.save_pretrained(tmp_path / "saved")
    with pytest.raises(ConfigError, match="use from_pretrained"):
        toy_pipeline().load_adapter(file)
    changed = KosmosGPipeline.from_pretrained(toy_dir, mllm=toy_pipeline(seed=1).mllm)
    with pytest.raises(ConfigError, match="use from_pretrained"):
        changed.load_adapter(file)


def rewritten(file, tmp_path, *, tensors=None, header=None):
    """Write the file again with other tensors or another header."""
    path = tmp_path / "changed.safetensors"
    known, _ = adapter.read(file)
    said = {
        "format_version": known.format_version,
        "rank": known.rank,
        "alpha": known.alpha,
        "base": dict(known.base),
        "provenance": {},
    }
    said |= header or {}
    save_file(tensors or load_file(file), path, {adapter.KEY: json.dumps(said)})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"mllm.layers.0.ffn.fc1.lora_A": torch.zeros(2, 5)}, "does not fit"),
        (lambda t: t | {"mllm.vision.clip.encoder.lora_A": torch.zeros(2, 2)}, "does not fit"),
        (lambda t: t | {"mllm.*.lora_A": torch.zeros(2, 2)}, r"does not fit .*mllm\.\*"),
        (lambda t: dict(list(t.items())[1:]), "does not fit"),
        (lambda _: {"x.lora_A": torch.zeros(2, 2)}, "does not fit"),
    ],
)
def test_factors_that_do_not_fit_are_refused(toy_dir, file, tmp_path, change, message):
    path = rewritten(file, tmp_path, tensors=change(load_file(file)))
    with pytest.raises(CheckpointError, match=message):
        loaded(toy_dir).load_adapter(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"rank": "many"}, "rank = 'many'"),
        ({"rank": 3}, "does not fit"),
        ({"base": {}}, "its mllm is none"),
        ({"oddity": 1}, "no field 'oddity'"),
    ],
)
def test_a_header_that_is_wrong_is_refused(toy_dir, file, tmp_path, header, message):
    with pytest.raises(CheckpointError, match=message):
        loaded(toy_dir).load_adapter(rewritten(file, tmp_path, header=header))


def test_other_files_are_refused_unopened(toy_dir, file, tmp_path):
    pipe = loaded(toy_dir)
    torch.save({}, tmp_path / "a.bin")
    save_file({"x": torch.zeros(1)}, tmp_path / "lora.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(file.read_bytes()[:200])
    (tmp_path / "none").mkdir()
    for name, message in (
        ("a.bin", "other files can run code"),
        ("gone.safetensors", "there is no adapter"),
        ("lora.safetensors", "is no adapter of kosmosg"),
        ("torn.safetensors", "is damaged"),
        ("none", "has 0 files"),
    ):
        with pytest.raises(CheckpointError, match=message):
            pipe.load_adapter(tmp_path / name)


def test_patterns_and_ranks_that_cannot_work_are_named():
    model = model_of(toy_pipeline())
    with pytest.raises(ConfigError, match=r"'mllm\.nothing\.\*' matches none"):
        adapter.add(model, AdapterConfig(targets=("mllm.nothing.*",)))
    with pytest.raises(ConfigError, match="rank is 0"):
        adapter.add(model, AdapterConfig(rank=0))
    adapter.add(model, CONFIG)
    with pytest.raises(ConfigError, match="already"):
        adapter.add(model, CONFIG)


def test_it_counts_the_parameters_of_the_released_size():
    with torch.device("meta"):
        model = KosmosG(MLLM(), AlignerNet())
    # A row and a column of each map. 24 layers of four maps of 2048 and two of 2048 by 8192; the
    # resampler's projection and attention; M: projection, 12 layers, 12 with cross-attention.
    mllm = 24 * (4 * 2 * 2048 + 2 * (2048 + 8192)) + (1024 + 2048) + 4 * 2 * 2048
    plain = 4 * 2 * 768 + 2 * (768 + 3072)
    m = (2048 + 768) + 12 * plain + 12 * (plain + 4 * 2 * 768)
    assert mllm + m == 1_312_512
    assert adapter.num_parameters(model, AdapterConfig(rank=16)) == 16 * 1_312_512


def test_the_number_of_parameters_is_that_of_what_is_added():
    model = model_of(toy_pipeline())
    expected = adapter.num_parameters(model, CONFIG)
    adapter.add(model, CONFIG)
    assert sum(one.numel() for one in adapter.weights(model).values()) == expected


def test_leaving_an_adapter_out_gives_the_very_bits_and_changes_nothing(toy_dir):
    pipe = loaded(toy_dir)
    model = model_of(pipe)
    encoded = encode(PROMPT, pipe.tokenizer, num_latents=NUM_LATENTS, image_size=SIZE)
    batch = collate([encoded], pad_id=pipe.tokenizer.pad_id)

    def condition():
        with torch.no_grad():
            return model.encode(batch)

    before = condition()
    adapter.add(model, CONFIG)
    learned(model)
    adapter.weights(model)["mllm.layers.0.ffn.fc1.lora_A"].requires_grad_(False)
    learns = [one.requires_grad for one in model.parameters()]
    within = condition()
    with adapter.left_out(model):
        assert torch.equal(condition(), before)
    assert torch.equal(condition(), within)
    assert not torch.equal(within, before)
    assert [one.requires_grad for one in model.parameters()] == learns
