"""The claims' experiments: what they ask, how answers are scored, and that rows are kept."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kosmosg.cli import main
from kosmosg.errors import ConfigError
from kosmosg.evaluate.metrics import Score
from kosmosg.release import find
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld.captions import words
from kosmosg.toyworld.cases import cases
from kosmosg.toyworld.claims import inversion, page, questions, rows, run, scoring
from kosmosg.toyworld.claims.drawing import conditions, drawn, wanted
from kosmosg.toyworld.claims.experiment import QUICK, Budget, Setting
from kosmosg.toyworld.evaluate import ROWS, images_of
from kosmosg.toyworld.foundation import in_range
from kosmosg.toyworld.judge import Judge
from kosmosg.toyworld.scenes import BLANK, is_held_out
from kosmosg.toyworld.streams import stage3_stream
from kosmosg.toyworld.subject import held_out, photos
from kosmosg.toyworld.world import World, load

COUNT = 40
ASKS = {
    "pictured": questions.pictured,
    "pictured_two": questions.pictured_two,
    "captioned": questions.captioned,
    "three": questions.several(3),
    "four": questions.several(4),
    "accessory": questions.with_accessory("dropped"),
    "scene": questions.with_scene("dropped"),
    "style": questions.with_style("dropped"),
}


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load(find("nano"), []).judge


@pytest.fixture(scope="module")
def toy(toy_nano_dir: Path) -> World:
    return load(toy_nano_dir, {"text_encoder", "stage2", "stage3"})


@pytest.fixture
def setting(toy: World, toy_nano_dir: Path, tmp_path: Path) -> Setting:
    return Setting(
        world=toy,
        directory=toy_nano_dir,
        budget=QUICK,
        work_dir=tmp_path,
        advance=lambda _count: None,
    )


@pytest.mark.parametrize("name", ASKS)
def test_creatures_are_held_out_and_words_are_known(name):
    tokenizer = Tokenizer.from_words(words())
    for one in ASKS[name](COUNT, 3, 32):
        for subject in one.target.subjects:
            assert is_held_out(subject.shape, subject.colour, subject.pattern)
        said = " ".join(part for part in one.prompt if isinstance(part, str))
        assert not tokenizer.unknown_words(said)
        if name != "captioned":
            assert one.shown
            assert not any(subject.colour in said for subject in one.target.subjects)


def test_an_accessory_is_shown_alone_on_white():
    for one in questions.with_accessory("dropped")(COUNT, 3, 64):
        (wearer,) = one.target.subjects
        assert wearer.accessory not in " ".join(p for p in one.prompt if isinstance(p, str))
        pixels = np.asarray(one.shown[1])
        ink = (pixels != 255).any(-1).mean()
        assert 0.01 < ink < 0.3


def test_a_scene_is_shown_without_a_creature(judge):
    asked = questions.with_scene("dropped")(COUNT, 3, 64)
    shown = in_range(np.stack([np.asarray(one.shown[1]) for one in asked]))
    answers = scoring.answered(judge, shown, asked)
    assert answers["place"].mean() == 1
    assert answers["creature"].mean() < 0.1


@pytest.mark.parametrize("kind", ["place", "accessory", "remove", "colour", "style"])
def test_an_edit_changes_one_thing_and_is_judged_by_it(judge, kind):
    asked = questions.edits(kind)(COUNT, 3, 64)
    for one in asked:
        before, after = one.before, one.target
        (old,), (new,) = before.subjects, after.subjects
        changed = {f for f in vars(old) if getattr(old, f) != getattr(new, f)}
        changed |= {f for f in ("place", "style") if getattr(before, f) != getattr(after, f)}
        assert changed == {"accessory" if kind == "remove" else kind}
    shown = in_range(np.stack([np.asarray(one.shown[0]) for one in asked]))
    copies = scoring.means(scoring.edited(judge, shown, asked))
    right = scoring.means(scoring.edited(judge, wanted(asked, 64), asked))
    assert right["both"] >= 0.9
    assert right["unchanged"] <= 0.05
    assert copies["unchanged"] >= 0.9
    assert copies["kept"] >= 0.9
    assert copies["both"] <= 0.05


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_renderers_pictures_are_right_and_swapped_ones_are_not(judge, count):
    ask = {1: questions.pictured, 2: questions.pictured_two}.get(count, questions.several(count))
    asked = ask(COUNT, 3, 64)
    images = wanted(asked, 64)
    right = scoring.means(scoring.answered(judge, images, asked))
    assert min(right[name] for name in scoring.CREATURE) >= 0.92
    if count > 1:
        swapped = [
            replace(one, target=replace(one.target, subjects=one.target.subjects[::-1]))
            for one in asked
        ]
        wrong = scoring.means(scoring.answered(judge, images, swapped))
        assert right["colours_in_place"] >= 0.85
        assert wrong["colours_in_place"] == 0
        assert wrong["all"] == 0


def test_a_near_copy_is_the_picture_shown(judge):
    asked = questions.pictured(COUNT, 3, 64)
    right, copies = wanted(asked, 64), scoring.shown_pictures(asked, 64)
    wrong, like = scoring.likeness(judge, right, asked), scoring.likeness(judge, copies, asked)
    assert like["near_copy"].all()
    assert not wrong["near_copy"].any()
    assert like["like_shown"] == pytest.approx(1)
    assert wrong["like_wanted"] == pytest.approx(1)
    assert wrong["like_shown"].mean() < 0.95


def test_a_copy_of_the_second_picture_shown_is_one_too(judge):
    asked = questions.pictured_two(COUNT, 3, 64)
    copies = scoring.likeness(judge, scoring.shown_pictures(asked, 64, 1), asked)
    right = scoring.likeness(judge, wanted(asked, 64), asked)
    assert copies["near_copy"].all()
    assert copies["near_copy"].dtype == bool
    assert not right["near_copy"].any()
    # Alike to the one that it is, less to the other.
    assert 0.4 < copies["like_shown"].mean() < 0.8


def test_fid_is_zero_of_the_same_and_grows_with_noise(judge):
    asked = questions.captioned(COUNT, 3, 64)
    real = scoring.features(judge, wanted(asked, 64))
    assert scoring.fid(real, real).mean == pytest.approx(0, abs=1e-3)
    noisy = [real + scale * torch.randn(real.shape) for scale in (0.5, 1.0)]
    near, far = (scoring.fid(real, one) for one in noisy)
    assert near.mean < far.mean
    assert near.low <= near.mean <= near.high


def test_pictures_are_those_of_the_evaluation(setting, toy):
    asked = questions.pictured(3, 0, 32)
    ours = drawn(setting, asked, "stage3")
    theirs = images_of(
        toy,
        ROWS["stage3"],
        cases(3, seed=0),
        seed=0,
        num_inference_steps=2,
        guidance_scale=None,
        precision="float32",
        advance=lambda _count: None,
    )
    assert torch.equal(ours, theirs)


def test_the_word_is_learned_and_nothing_else_changes(setting, toy):
    before = conditions(toy, "text_encoder", [["a star in the snow"]])[0]
    weights = [weight.clone() for weight in toy.text_encoder.parameters()]
    (creature,) = held_out(1, seed=0)
    shown = photos(creature, 2, np.random.default_rng(0))
    table = toy.text_encoder.get_input_embeddings().weight
    (like,) = toy.pipe.tokenizer.encode(inversion.LIKE)
    vector = inversion.learned(setting, shown, 0)
    assert not torch.equal(vector, table[like])
    assert torch.equal(vector, inversion.learned(setting, shown, 0))
    with inversion.meaning(toy.text_encoder, vector, toy.pipe.tokenizer):
        again = conditions(toy, "text_encoder", [["a star in the snow"]])[0]
        other = conditions(toy, "text_encoder", [[f"a {inversion.WORD} in the snow"]])[0]
    assert torch.equal(before, again)
    assert not torch.equal(other, conditions(toy, "text_encoder", [["a thing in the snow"]])[0])
    assert all(
        torch.equal(a, b) for a, b in zip(weights, toy.text_encoder.parameters(), strict=True)
    )


def test_a_thousand_pictures_of_two_creatures_are_two_creatures():
    values = np.repeat([True, False], 500)
    score = inversion.over_subjects(values, 500)
    assert (score.mean, score.low, score.high) == (0.5, 0.0, 1.0)
    assert rows.score_of(values).high < 0.54


def test_stage_3s_kinds_can_be_left_out():
    kinds = {
        type(record).__name__ for record in stage3_stream(1, 16, weights=(2, 0, 1)).batch(0, 24)
    }
    assert kinds == {"Example", "Caption"}


def test_scores_have_intervals():
    half = rows.score_of(np.array([True, False]))
    assert (half.mean, half.low, half.high) == pytest.approx((0.5, 0.0945, 0.9055), abs=1e-3)
    share = rows.score_of(np.array([0.0, 1.0, 0.5, 0.5]))
    assert share.high - share.mean == pytest.approx(
        1.96 * np.std([0, 1, 0.5, 0.5], ddof=1) / 2, rel=1e-3
    )
    seeds = [{"all": Score(mean=mean, low=0.0, high=1.0)} for mean in (0.4, 0.5, 0.6)]
    assert rows.over_seeds(seeds)["all"].mean == pytest.approx(0.5)
    # Student's quantile of two degrees of freedom.
    assert rows.over_seeds(seeds)["all"].high == pytest.approx(0.5 + 4.303 * 0.1 / math.sqrt(3))
    assert rows.over_seeds(seeds[:1]) == seeds[0]


def claims(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["claims", "--quick", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_finished_row_is_kept(toy_nano_dir, tmp_path, capsys):
    given = ("--model", str(toy_nano_dir), "--out", str(tmp_path), "--only", "zero-shot-words-only")
    code, first, told = claims(capsys, *given)
    assert code == 0
    assert "1 rows, about 0.0 core-hours: zero-shot-words-only" in told
    path = tmp_path / "rows" / "zero-shot-words-only.json"
    row = json.loads(path.read_text())
    assert row["claim"] == "zero-shot"
    assert row["n"] == QUICK.prompts
    assert row["core_hours"] > 0
    assert row["config"]["seed"] == 0
    assert "scale" not in row["config"]  # nothing was trained
    written = path.stat().st_mtime_ns
    assert (tmp_path / "pictures" / "zero-shot-words-only.jpg").is_file()
    code, second, told = claims(capsys, *given)
    assert (code, second, told) == (0, first, "")
    assert path.stat().st_mtime_ns == written
    code, _, told = claims(capsys, *given, "--limit", "3")
    assert code == 2
    assert "was measured with prompts 4, not 3" in told


def test_experiments_are_found_by_name_and_by_claim():
    assert [one.name for one in run.chosen(["text"])] == [
        f"text-{name}" for name in ("foundation", "stage2", "stage3")
    ]
    assert len(run.chosen([])) == len({one.name for one in run.EXPERIMENTS})
    assert {one.claim for one in run.EXPERIMENTS} == set(rows.CLAIMS)
    with pytest.raises(
        ConfigError, match=r"no experiment 'zero-shot-stage4'; did you mean zero-shot"
    ):
        run.chosen(["zero-shot-stage4"])


def test_what_is_due_fits_the_budget_and_table_2s_rows_cost_the_same():
    budget = Budget()
    assert sum(one.cost_s(budget) for one in run.EXPERIMENTS) <= 24 * 3600
    costs = [one.cost_s(budget) for one in run.chosen(["alignment"])]
    assert len(costs) == 5
    assert max(costs) <= 1.05 * min(costs)
    for one in run.EXPERIMENTS:
        if one.claim in {"alignment", "data"}:
            assert {"seeds", "scale"} <= set(one.budget)
    assert (len(budget.seeds), budget.prompts) == (3, 1000)


def test_the_page_has_scores_the_judges_own_and_goals(tmp_path):
    row = rows.Row(
        name="zero-shot-stage3",
        claim="zero-shot",
        experiment="as it is",
        scores={
            name: Score(mean=0.74, low=0.7, high=0.78)
            for name in (
                "shape",
                "body_colour",
                "pattern",
                "accessory",
                "place",
                "all",
                "near_copy",
            )
        },
        judge={"shape": 0.98},
        n=512,
        seeds=(0,),
        config={"precision": "bfloat16"},
        weights="0123456789abcdef",
        commit="abc",
        hours=0.1,
        core_hours=0.1,
        machine="m",
    )
    run.config.save(row, tmp_path / "zero-shot-stage3.json")
    text = "".join(page.page(tmp_path, "images/"))
    assert "| 0.74 ± 0.04 / 0.98 | 0.74 ± 0.04 |" in text
    assert "| zero-shot-stage3 | all | at least 0.7 | 0.740 | yes |" in text
    assert "| zero-shot-stage3 | near copy | at most 0.05 | 0.740 | no |" in text
    assert "## Editing (InstructPix2Pix data)\n\nNot measured yet." in text
    run.config.save(replace(row, claim="other"), tmp_path / "odd.json")
    with pytest.raises(ConfigError, match="claim 'other'"):
        "".join(page.page(tmp_path, "images/"))


def test_half_of_the_pictures_shown_are_on_white():
    # What `creature_on_white` of the trained rows counts on.
    for case in cases(COUNT, seed=5):
        assert (case.references[0].place == BLANK) == bool(case.index & 1)
