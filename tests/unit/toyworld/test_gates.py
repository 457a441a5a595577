"""The foundation's gates measure what they say, and the command fails where one is missed."""

import json
from pathlib import Path

import pytest
import torch

from kosmosg import release
from kosmosg.cli import main
from kosmosg.toyworld import gates, world


def test_a_word_that_the_tower_collapsed_does_not_move_its_states(toy_nano_dir: Path) -> None:
    parts = world.load_foundation(toy_nano_dir)
    tower, tokenizer = parts.text_encoder, parts.tokenizer
    before = gates.one_word_change(tower, tokenizer, count=8)
    words = [tokenizer.encode(word)[0] for word in ("circle", "square", "triangle", "star")]
    words += [tokenizer.encode(word)[0] for word in ("heart", "diamond", "cross", "oval")]
    embedding = tower.get_input_embeddings().weight
    with torch.no_grad():
        embedding[words] = embedding[words[0]].clone()
    after = gates.one_word_change(tower, tokenizer, count=8)
    assert all(distance > 0 for distances in before.values() for distance in distances)
    assert after["shape"] == (0, 0)
    assert after["colour"][0] > 0


def test_the_probe_reads_what_patches_show_and_nothing_else(toy_nano_dir: Path) -> None:
    vision = world.load_foundation(toy_nano_dir).vision
    patches = vision.clip.embeddings.patch_embedding.weight
    with torch.no_grad():  # each feature is the brightness of one channel, or nothing
        patches.zero_()
        for feature in range(16):
            patches[feature, feature % 3] = (1 + feature) / 64
    seen = gates.patch_probe(vision, train=800, test=200)
    assert seen["body_colour"] > 0.4  # one in eight by chance
    with torch.no_grad():
        patches.zero_()
    assert gates.patch_probe(vision, train=800, test=200)["body_colour"] < 0.25


def test_the_psnr_of_a_vae_that_answers_grey(toy_nano_dir: Path) -> None:
    vae = world.load_foundation(toy_nano_dir).vae
    with torch.no_grad():
        vae.decoder.conv_out.weight.zero_()
        vae.decoder.conv_out.bias.zero_()
    pictures = gates.pictures(gates.held_out_scenes(16), 64)
    wanted = 10 * torch.log10(4 / pictures.square().mean())
    assert gates.restored(vae, count=16) == pytest.approx(wanted.item())


def test_the_command_fails_where_a_gate_is_missed(
    toy_nano_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "foundation", "--model", str(toy_nano_dir), "--json"]) == 1
    report = {gate["what"]: gate for gate in json.loads(capsys.readouterr().out)}
    assert len(report) == 12
    assert not report["vae psnr dB"]["passed"]  # random weights


def test_the_shipped_foundation_passes_every_gate() -> None:
    parts = world.load_foundation(release.find("nano"))
    gate = gates.Gate(what="dB", value=gates.restored(parts.vae, count=64), at_least=gates.MIN_PSNR)
    assert gate.passed
    words = gates.one_word_change(parts.text_encoder, parts.tokenizer)
    for attribute, (first, second) in words.items():
        assert first >= gates.MIN_DISTANCE[0], attribute
        assert second >= gates.MIN_DISTANCE[1], attribute
    assert not gates.Gate(what="dB", value=26.9, at_least=gates.MIN_PSNR).passed
