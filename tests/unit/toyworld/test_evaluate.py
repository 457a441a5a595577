"""The judge's table: what is asked, how answers are counted, and that it is the same every time."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kosmosg.cli import main
from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.model.image_decoder import ImageDecoder
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld import evaluate, scores, world
from kosmosg.toyworld.captions import words
from kosmosg.toyworld.cases import cases, draw, full_name
from kosmosg.toyworld.losses import gap_closed, language_figures, paired_loss
from kosmosg.toyworld.render import render
from kosmosg.toyworld.scenes import BLANK, is_held_out
from kosmosg.toyworld.world import World

Run = tuple[int, str, str]


@pytest.fixture(scope="module")
def toy_world(toy_nano_dir: Path) -> World:
    return world.load(toy_nano_dir, evaluate.needs(evaluate.ROW_NAMES))


@pytest.mark.parametrize("num_subjects", [1, 2])
def test_cases_ask_for_creatures_that_no_stage_has_seen(num_subjects: int) -> None:
    asked = cases(300, seed=0, num_subjects=num_subjects)
    for case in asked:
        assert len(case.target.subjects) == len(case.references) == num_subjects
        for subject, reference in zip(case.target.subjects, case.references, strict=True):
            assert is_held_out(subject.shape, subject.colour, subject.pattern)
            (shown,) = reference.subjects
            assert full_name(shown) == full_name(subject)
            assert shown.radius > 1.03 * subject.radius  # never the target's own pixels
            assert reference.place != case.target.place
    white = [reference.place == BLANK for case in asked for reference in case.references]
    assert np.mean(white) == 0.5
    assert len({case.target.place for case in asked}) == 8


def test_two_creatures_differ_in_colour_and_stand_left_and_right() -> None:
    for case in cases(200, seed=1, num_subjects=2):
        left, right = case.target.subjects
        assert left.colour != right.colour
        assert left.x < 0.5 < right.x


def test_more_cases_begin_with_the_same_ones() -> None:
    assert cases(5, seed=2) == cases(9, seed=2)[:5]
    assert cases(5, seed=2) != cases(5, seed=3)


@pytest.mark.parametrize("num_subjects", [1, 2])
def test_prompts_do_not_tell_what_the_pictures_show(num_subjects: int) -> None:
    tokenizer = Tokenizer.from_words(words())
    for case in cases(50, seed=4, num_subjects=num_subjects):
        prompt = case.prompt(draw(case.references, 32))
        said = " ".join(part for part in prompt if isinstance(part, str))
        assert said == case.without_pictures
        assert sum(isinstance(part, Image.Image) for part in prompt) == num_subjects
        assert not tokenizer.unknown_words(case.caption)
        for subject in case.target.subjects:
            assert full_name(subject) in case.caption
            assert subject.shape not in said
            assert subject.colour not in said
        assert case.caption.endswith(case.where)


def test_the_prompt_reads_as_asked() -> None:
    first, second = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4))
    (one,), (two,) = cases(1, seed=0), cases(1, seed=0, num_subjects=2)
    assert one.prompt([first]) == ["a creature", first, one.where]
    assert two.prompt([first, second]) == [
        "a creature",
        first,
        "and a creature",
        second,
        two.where,
    ]


def test_wilson_is_within_bounds_and_narrows() -> None:
    assert scores.wilson(0, 10)[0] == pytest.approx(0)
    assert scores.wilson(10, 10)[1] == pytest.approx(1)
    low, high = scores.wilson(80, 100)
    assert low == pytest.approx(0.711, abs=1e-3)  # values of published tables
    assert high == pytest.approx(0.867, abs=1e-3)
    wide, narrow = (np.diff(scores.wilson(n * 8 // 10, n))[0] for n in (100, 1000))
    assert narrow < wide / 2


def test_rates_count_each_question_and_all_together() -> None:
    answers = {question: torch.tensor([True, True, False, True]) for question in scores.SCORED}
    answers["shape"] = torch.tensor([False, True, True, True])
    row = scores.rates(answers)
    assert row["shape"] == row["place"] == 0.75
    assert row["all"] == 0.5
    assert row["n"] == 4
    assert set(row["intervals"]) == {*scores.SCORED, "all"}


def test_pairs_need_both_colours_on_their_sides() -> None:
    left = {question: torch.tensor([True, True, False]) for question in scores.SCORED}
    right = {question: torch.tensor([True, False, False]) for question in scores.SCORED}
    row = scores.pair_rates(left, right)
    assert row["both_colours"] == pytest.approx(1 / 3)
    assert row["left"]["shape"] == pytest.approx(2 / 3)
    assert row["body_colour"] == 0.5
    assert row["n"] == 3


def test_the_table_shows_every_row() -> None:
    answers = {question: torch.tensor([True, False]) for question in scores.SCORED}
    report = {
        "stage3": scores.rates(answers),
        "two_subjects": scores.pair_rates(answers, answers),
        "stage1": {"shape_word": 0.9, "perplexity": 3.0, "n": 2, "intervals": {}},
        "settings": {"seed": 0},
    }
    lines = scores.table(report).splitlines()
    assert lines[0].split() == [
        "shape",
        "body",
        "colour",
        "pattern",
        "accessory",
        "place",
        "all",
        "n",
    ]
    assert lines[1].split() == ["stage3", *["0.500"] * 6, "2"]
    assert any(line.startswith("two_subjects left") for line in lines)
    assert any(line.startswith("stage1") for line in lines)


def test_rows_are_the_same_every_time_and_for_any_selection(toy_world: World) -> None:
    arguments = {"limit": 3, "seed": 1, "num_shown": 3}
    rows = ("oracle", "words_only", "stage3", "two_subjects")
    whole = evaluate.evaluate(toy_world, rows=rows, **arguments)
    alone = evaluate.evaluate(toy_world, rows=("stage3",), **arguments)
    assert alone.rows["stage3"] == whole.rows["stage3"]
    assert torch.equal(alone.shown["stage3"], whole.shown["stage3"])
    assert not torch.equal(whole.shown["stage3"], whole.shown["words_only"])
    other = evaluate.evaluate(toy_world, rows=("stage3",), limit=3, seed=2, num_shown=3)
    assert not torch.equal(other.shown["stage3"], whole.shown["stage3"])


def test_noise_depends_on_the_prompts_number_and_not_on_its_batch(
    toy_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"rows": ("stage3",), "limit": 5, "seed": 1, "num_shown": 5}
    whole = evaluate.evaluate(toy_world, **arguments).shown["stage3"]
    monkeypatch.setattr(evaluate, "BATCH", 2)
    cut = evaluate.evaluate(toy_world, **arguments).shown["stage3"]
    torch.testing.assert_close(cut, whole, atol=2e-3, rtol=0)


def test_bfloat16_changes_pictures_little(toy_world: World) -> None:
    arguments = {"rows": ("stage3",), "limit": 3, "seed": 1, "num_shown": 3}
    exact = evaluate.evaluate(toy_world, **arguments).shown["stage3"]
    rough = evaluate.evaluate(toy_world, precision="bfloat16", **arguments)
    assert rough.rows["settings"]["precision"] == "bfloat16"
    assert rough.shown["stage3"].dtype == torch.float32
    assert not torch.equal(rough.shown["stage3"], exact)
    assert (rough.shown["stage3"] - exact).abs().mean() < 0.05


def test_real_pictures_are_judged_as_they_are(toy_world: World) -> None:
    report = evaluate.evaluate(toy_world, rows=("judge",), limit=4, seed=0, num_shown=4)
    pixels, _ = render([case.target for case in cases(4, seed=0)], 32)
    shown = ((report.shown["judge"] + 1) * 127.5).round().permute(0, 2, 3, 1)
    assert torch.equal(shown.to(torch.uint8), torch.from_numpy(pixels))


def test_every_row_with_every_key(
    toy_nano_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "toyworld", "--model", str(toy_nano_dir), "--limit", "2"]
    code = main([*words, "--json", "--out", str(tmp_path / "out")])
    out, err = capfd.readouterr()
    assert code == 0
    report = json.loads(out)
    assert set(report) == {*evaluate.ROW_NAMES, "settings"}
    for name in evaluate.ROWS:
        row = report[name]
        assert row["n"] == 2
        for question in ("shape", "body_colour", "pattern", "accessory", "place"):
            low, high = row["intervals"][question]
            assert 0 <= low <= row[question] <= high <= 1
        assert ("both_colours" in row) == name.startswith("two_subjects")
    assert set(report["stage1"]) >= {"shape_word", "perplexity", "n"}
    assert report["paired_loss"]["oracle"] == 1.0
    assert report["paired_loss"]["words_only"] == 0.0
    assert report["settings"]["seed"] == 0
    assert report["settings"]["num_inference_steps"] == 2
    assert json.loads((tmp_path / "out" / "toyworld.json").read_text()) == report
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "toyworld.json",
        "toyworld-one.png",
        "toyworld-two.png",
    }
    assert "stage3" in err  # the progress bar


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--rows", "stag3"], "there is no row 'stag3'; did you mean stage3, stage2?"),
        (["--rows", ","], "no row to measure; name some of judge, vae, oracle"),
        (["--limit", "0"], "limit is 0; ask for at least 1 prompt"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_named_in_one_line(
    arguments: list[str], line: str, toy_nano_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "toyworld", "--model", str(toy_nano_dir), "--rows", "judge", *arguments]
    assert main(words) == 2
    err = capfd.readouterr().err.splitlines()
    assert line in err[-1]


def test_a_model_without_a_part_says_which_and_what_to_do(
    toy_nano_dir: Path, tmp_path: Path
) -> None:
    partial = tmp_path / "model"
    shutil.copytree(toy_nano_dir, partial)
    shutil.rmtree(partial / "stage2")
    shutil.rmtree(partial / "text_encoder")
    for row, part in (("stage2", "stage2/mllm"), ("oracle", "text_encoder")):
        with pytest.raises(CheckpointError, match=rf"{part} has no weights.*--rows"):
            world.load(partial, evaluate.needs([row]))
    assert world.load(partial, evaluate.needs(["stage3"])).text_encoder is None


def test_a_workspace_can_be_judged_before_its_last_stage(
    toy_nano_dir: Path, tmp_path: Path
) -> None:
    """The oracle's row is the gate before stage 3, when there is nothing else to load."""
    workspace = tmp_path / "model"
    for part in ("unet", "vae", "text_encoder", "judge", "tokenizer"):
        shutil.copytree(toy_nano_dir / part, workspace / part)
    loaded = world.load(workspace, evaluate.needs(["oracle"]))
    asked = cases(2, seed=0)
    embeds, null = evaluate.conditions(loaded, evaluate.ROWS["oracle"], asked)
    assert embeds.shape[0] == 2
    assert null.shape[0] == 1
    with pytest.raises(CheckpointError, match="mllm has no weights"):
        world.load(workspace, evaluate.needs(["stage3"]))


def test_paired_losses_compare_at_the_same_times_and_noise(toy_world: World) -> None:
    decoder = ImageDecoder(toy_world.pipe.vae, toy_world.pipe.unet)
    asked = cases(3, seed=0)
    oracle, null = evaluate.conditions(toy_world, evaluate.ROWS["oracle"], asked)
    conditions = {"oracle": oracle, "again": oracle.clone(), "null": null, "far": oracle + 1}
    losses = paired_loss(decoder, asked, conditions, num_draws=2, seed=0)
    assert losses["oracle"] == losses["again"]
    assert losses["oracle"] != losses["far"]
    assert losses == paired_loss(decoder, asked, conditions, num_draws=2, seed=0)
    assert losses != paired_loss(decoder, asked, conditions, num_draws=2, seed=1)
    assert all(0 < loss < 10 for loss in losses.values())


def test_gap_closed_is_0_at_the_floor_and_1_at_the_oracle() -> None:
    closed = gap_closed({"a": 0.5, "b": 0.3, "c": 0.4}, floor="a", oracle="b")
    assert closed == pytest.approx({"a": 0, "b": 1, "c": 0.5})


def test_language_figures_of_an_untrained_reader_are_those_of_guessing(toy_world: World) -> None:
    mllm, tokenizer = toy_world.readers["stage2"].mllm, toy_world.pipe.tokenizer
    row = language_figures(mllm, tokenizer, cases(20, seed=0), seed=0)
    assert row["perplexity"] > tokenizer.vocab_size / 10
    assert row["shape_word"] < 0.5
    assert set(row["intervals"]) <= set(row)


def test_check_rows_passes_all_there_are() -> None:
    evaluate.check_rows(evaluate.ROW_NAMES)
    with pytest.raises(ConfigError):
        evaluate.check_rows(["everything"])
