"""The full-size model on no device: its parameters, counted and named."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kosmosg.convert import NAMES, our_name, their_name
from kosmosg.errors import CheckpointError
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.kosmosg import KosmosG
from kosmosg.model.mllm import MLLM


@pytest.fixture(scope="module")
def full_size() -> KosmosG:
    """As released, with N."""
    with torch.device("meta"):
        return KosmosG(MLLM(), AlignerNet(with_reconstruction=True))


@pytest.fixture(scope="module")
def manifest(shared_dir: Path) -> Callable[[str], dict[str, Any]]:
    return lambda name: json.loads((shared_dir / "golden" / name).read_text(encoding="utf-8"))


def count(modules: Iterable[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_parameters_of_each_part_are_as_released(full_size: KosmosG) -> None:
    """NUMERICS section 12."""
    mllm, aligner = full_size.mllm, full_size.aligner
    assert count([mllm.embed_tokens, mllm.layers, mllm.layer_norm]) == 1_340_180_480
    assert count([mllm.vision]) == 303_179_776
    assert count([mllm.resampler]) == 19_015_680
    assert count([aligner.encoder]) == 225_461_760
    assert aligner.decoder is not None
    assert count([aligner.decoder]) == 250_569_728
    assert count([mllm, aligner.encoder]) == 1_887_837_696


@pytest.mark.parametrize("file", ["manifest_full.json", "manifest_full_align.json"])
def test_every_released_weight_has_its_name_and_shape_here(
    full_size: KosmosG, manifest: Callable[[str], dict[str, Any]], file: str
) -> None:
    shapes = {name: list(value.shape) for name, value in full_size.named_parameters()}
    ours = ("gpt_model.", "img_model.", "img_connector.", "aligner.encoder", "aligner.decoder")
    unused = (
        "gpt_model.decoder.output_projection.weight",  # the embedding once more
        "gpt_model.decoder.embed_positions._float_tensor",
        "gpt_model.decoder.self_attn_sope.scale",
    )
    seen = set()
    for theirs, (shape, _dtype) in manifest(file)["keys"].items():
        if not theirs.startswith(ours) or theirs in unused:
            continue
        assert shapes[our_name(theirs)] == shape, theirs
        seen.add(our_name(theirs))
    # N is dropped after stage 2.
    absent = {name for name in shapes.keys() - seen if not name.startswith("aligner.decoder.")}
    assert not absent
    assert (file == "manifest_full_align.json") == (seen == shapes.keys())


def test_names_translate_both_ways(full_size: KosmosG) -> None:
    names = [name for name, _ in full_size.named_parameters()]
    theirs = [their_name(name) for name in names]
    assert len(set(theirs)) == len(names)
    assert [our_name(name) for name in theirs] == names
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", ["mllm.layers.0.nothing.weight", "gpt_model.decoder.layer_norm.x"])
def test_a_name_outside_the_table_is_named(name: str) -> None:
    for translate in (their_name, our_name):
        with pytest.raises(CheckpointError, match=f"no weight named '{name}'"):
            translate(name)


def test_xpos_has_no_parameters_and_a_perceiver_has_more() -> None:
    with torch.device("meta"):
        released, xpos, perceiver = MLLM(), MLLM(positions="xpos"), MLLM(resampler_layers=6)
    assert count([xpos]) == count([released])
    assert count([perceiver]) > count([released])
    assert perceiver.resampler.num_layers == 6
