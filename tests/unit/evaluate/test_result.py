from dataclasses import replace
from pathlib import Path

import pytest

from kosmosg.errors import ConfigError
from kosmosg.evaluate.metrics import Score
from kosmosg.evaluate.report import page
from kosmosg.evaluate.result import Result, Row, Seen, compare, load, save, table, unlike, warnings
from toys.benchmarks import picture


def score(value: float) -> Score:
    return Score(mean=value, low=value - 0.05, high=value + 0.05)


def rows(shift: float) -> list[Row]:
    return [
        Row(
            name=f"dog{s}/{n:02d}-0",
            subject=f"dog{s}",
            text=f"a <b>dog</b> {n}",
            template=f"a {{}} <{n}>",
            scores={"dino": 0.1 * s + 0.01 * n + shift, "clip_t": 0.3 - 0.01 * n},
        )
        for s in range(4)
        for n in range(3)
    ]


def result(shift: float = 0.0, model: str = "a") -> Result:
    return Result(
        benchmark="dreambench",
        protocol={"name": "kosmosg"},
        encoders={"dino": Seen(name="vits16", sha256="1", view="v")},
        data={"pictures": "2", "prompts": "3"},
        drawing={"num_inference_steps": 100},
        num_pictures=12,
        model={"mllm": model},
        scores={"dino": score(0.165 + shift), "clip_t": score(0.29)},
        oracle={"dino": score(0.7)},
        rows=rows(shift),
        versions={"torch": "2"},
    )


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    save(result(), tmp_path)
    assert load(tmp_path) == result()
    assert load(tmp_path / "result.json") == result()
    save(replace(result(), format_version=2), tmp_path)
    with pytest.raises(ConfigError, match="has format version 2"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "nowhere.json")


def test_a_difference_is_paired_so_that_subjects_do_not_blur_it() -> None:
    found = compare(result(), result(shift=0.02, model="b"))
    assert found["dino"].mean == pytest.approx(0.02)
    assert found["dino"].high - found["dino"].low < 1e-9  # subjects differ by much more
    assert found["clip_t"].mean == 0
    alone = compare(replace(result(), rows=[]), replace(result(shift=0.02), rows=[]))
    assert alone["dino"].mean == pytest.approx(0.02)
    assert alone["dino"].low == alone["dino"].mean == alone["dino"].high


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"protocol": {"name": "uno-multi"}}, "protocol.name: kosmosg and uno-multi"),
        ({"encoders": {"dino": Seen(name="vits16", sha256="9", view="v")}}, "encoders.dino"),
        ({"data": {"pictures": "2", "prompts": "4"}}, "data.prompts: 3 and 4"),
        ({"drawing": {"num_inference_steps": 50}}, "drawing.num_inference_steps: 100 and 50"),
        ({"num_pictures": 8}, "num_pictures: 12 and 8"),
    ],
)
def test_unlike_results_are_not_compared(change: dict[str, object], reason: str) -> None:
    other = replace(result(), **change)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=reason):
        compare(result(), other)


def test_models_and_versions_may_differ() -> None:
    assert not unlike(result(), replace(result(model="b"), versions={"torch": "3"}))


def test_a_score_above_that_of_real_pictures_is_warned_of() -> None:
    high = {"dino": score(0.8), "clip_t": score(0.9)}
    (line,) = warnings(high, {"dino": score(0.7)})
    assert line.startswith("dino 0.800 is above that of real pictures, 0.700")
    assert not warnings({"dino": score(0.6)}, {"dino": score(0.7)})


def test_the_table_says_what_is_known() -> None:
    lines = table(result().scores, result().oracle).splitlines()
    assert lines[1].split() == ["dino", "0.165", "0.115", "to", "0.215", "0.700"]
    assert lines[2].split() == ["clip_t", "0.290", "0.240", "to", "0.340", "-"]


def test_the_page_shows_scores_beside_the_papers_and_pictures_and_no_strangers_markup(
    tmp_path: Path,
) -> None:
    for number, row in enumerate(rows(0)):
        path = tmp_path / f"{row.name}.png"
        path.parent.mkdir(exist_ok=True)
        picture(number).save(path)
    text = "".join(page(replace(result(), notes=["look <here>"]), tmp_path))
    assert "<td>0.694</td>" in text  # the paper's DINO
    assert "0.165 <small>0.115 to 0.215</small>" in text
    assert "look &lt;here&gt;" in text
    assert "<b>dog</b>" not in text
    assert "a &lt;b&gt;dog&lt;/b&gt; 1" in text
    assert text.index("Highest DINO") < text.index("0.320 dog3") < text.index("Lowest DINO")
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("<img") == 4 * 8 + 12
    assert '<th scope="row">a {} &lt;2&gt; (4)</th><td>0.170</td>' in text


def test_the_page_of_a_score_without_rows_of_its_own_shows_pictures_and_no_empty_table(
    tmp_path: Path,
) -> None:
    picture(1).save(tmp_path / "00000-0.png")
    shown = Row(name="00000-0", subject="", text="a hat", scores={})
    whole = replace(result(), benchmark="coco", scores={"fid": score(9.0)}, rows=[shown])
    text = "".join(page(whole, tmp_path))
    assert "The first 1 pictures" in text
    assert text.count("<img") == 1
    assert "<td>10.99</td>" in text  # the paper's
    assert "By subject" not in text


def test_two_subjects_stand_beside_numbers_of_two(tmp_path: Path) -> None:
    pairs = replace(result(), protocol={"name": "uno-multi"}, rows=[])
    text = "".join(page(pairs, tmp_path))
    assert "<td>0.542</td>" in text  # UNO's
    assert "0.694" not in text  # of one subject
