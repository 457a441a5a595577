"""Reading runs: whole ones, broken ones, those still going on; and what is drawn of them."""

import math
import os
import signal
from itertools import pairwise

import pytest

from kosmosg.errors import ConfigError
from kosmosg.train.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MAX_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    charts,
    curve_names,
    frame,
    thinned,
    ticks,
)
from kosmosg.train.curves import Curve, differences, read_runs
from kosmosg.train.loop import fit
from kosmosg.train.rundir import open_run_dir
from toys.runs import losses, written
from toys.training import Pairs, Regression, net, train_config


def read(*directories):
    return read_runs(list(directories))


def test_a_run_is_read_as_it_was_logged(tmp_path):
    lines = [*losses([3.0, 1.0, 2.0]), {"step": 30, "validation_loss": 5, "lr": 0.1}]
    (run,) = read(written(tmp_path / "a", lines))
    assert run.curves["loss"] == Curve(steps=[10, 20, 30], values=[3.0, 1.0, 2.0])
    assert (run.curves["loss"].last, run.curves["loss"].least) == ((30, 2.0), (20, 1.0))
    assert run.curves["validation_loss"].last == (30, 5)
    assert (run.name, run.step, run.steps, run.said) == ("a", 30, 100, "stopped at step 30 of 100")


def test_numbers_that_are_none_are_gaps(tmp_path):
    lines = [*losses([3.0, math.nan]), '{"step": 30, "loss": null}', '{"step": 40, "loss": 2.5}']
    lines += ['{"step": 50, "loss": Infinity}']
    (run,) = read(written(tmp_path / "a", lines))
    curve = run.curves["loss"]
    assert curve.steps == [10, 20, 30, 40, 50]
    assert [math.isfinite(value) for value in curve.values] == [True, False, False, True, False]
    assert (curve.last, curve.least) == ((40, 2.5), (40, 2.5))
    (chart,) = charts([run])
    where = frame(chart, last_step=50)
    assert [len(segment) for segment in where.segments(curve)] == [1, 1]
    (never,) = read(written(tmp_path / "b", losses([math.nan] * 3)))
    assert never.curves["loss"].last is None
    assert frame(charts([never])[0], last_step=30).segments(never.curves["loss"]) == []


def test_torn_lines_lose_themselves_alone(tmp_path):
    lines = [*losses([3.0]), '{"step": 20, "lo', *losses([2.0], every=30), '{"step": 40, "loss": 1']
    (run,) = read(written(tmp_path / "a", lines))
    assert run.curves["loss"] == Curve(steps=[10, 30], values=[3.0, 2.0])


def test_steps_done_again_count_as_they_were_the_last_time(tmp_path):
    event = {"step": 20, "event": "resumed"}
    again = [{"step": 25, "loss": 7.0}, {"step": 35, "loss": 6.0}]
    for name, between in {"noted": [event], "silent": []}.items():
        lines = [*losses([5.0, 4.0, 3.0, 2.0]), *between, *again]
        (run,) = read(written(tmp_path / name, lines))
        assert run.curves["loss"] == Curve(steps=[10, 20, 25, 35], values=[5.0, 4.0, 7.0, 6.0])
    twice = [*losses([5.0, 4.0, 3.0]), {"step": 20, "loss": 9.0}, {"step": 20, "grad_norm": 1.0}]
    (run,) = read(written(tmp_path / "same", twice))
    assert run.curves["loss"] == Curve(steps=[10, 20], values=[5.0, 9.0])
    assert run.step == 20


def test_the_later_line_of_a_step_holds(tmp_path):
    lines = [*losses([5.0]), {"step": 10, "loss": 4.0}, {"step": 10, "lr": 1.0}]
    (run,) = read(written(tmp_path / "a", lines))
    assert run.curves["loss"].values == [4.0]


def test_records_left_out_are_marked_where_the_count_rises(tmp_path):
    counts = [(10, 2), (20, 2), (30, 5), (40, 1), (50, 1)]  # from 40 on, by a resumed run
    lines = [{"step": step, "records_skipped": float(count)} for step, count in counts]
    (run,) = read(written(tmp_path / "a", lines))
    assert run.skipped == [(10, 2), (30, 3), (40, 1)]
    assert curve_names([run]) == []


def test_states(tmp_path):
    config = {"train": {"steps": 30}}
    finished = written(tmp_path / "finished", losses([1.0, 1.0, 1.0]), config)
    stopped = written(tmp_path / "stopped", losses([1.0]), config)
    empty = written(tmp_path / "empty", [], config)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "log.jsonl").write_text('{"step": 7, "loss": 1.0}\n')
    assert [run.said for run in read(finished, stopped, empty, bare)] == [
        "finished, 30 steps",
        "stopped at step 10 of 30",
        "nothing logged yet",
        "stopped at step 7",
    ]
    with open_run_dir(stopped, config, resume=True):
        assert read(stopped)[0].said == "going on, step 10 of 30"
    assert read(stopped)[0].state == "stopped"
    (stopped / "config.json").write_text('{"train": {"st')  # being written
    assert read(stopped)[0].said == "stopped at step 10"


def test_a_real_run_that_was_stopped_and_went_on(tmp_path):
    class Stops(Pairs):
        def batch(self, step, size):
            if step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(step, size)

    with pytest.raises(SystemExit):
        fit(net(), Regression(), Stops(0), train_config(), tmp_path / "run", validation=Pairs(9))
    (stopped,) = read(tmp_path / "run")
    assert stopped.state == "stopped"
    assert stopped.resumed == []
    fit(net(), Regression(), Pairs(0), train_config(), tmp_path / "run", resume=True)
    (run,) = read(tmp_path / "run")
    assert run.said == "finished, 12 steps"
    assert 0 < run.resumed[0] <= 6
    assert run.curves["loss"].steps[-1] == 12
    assert run.curves["loss"].steps == sorted(set(run.curves["loss"].steps))
    assert run.config["optim.lr"] == 1e-2


def test_runs_are_named_as_shortly_as_tells_them_apart(tmp_path):
    places = [tmp_path / "one" / "stage3", tmp_path / "two" / "stage3"]
    for place in places:
        written(place, losses([1.0]))
    assert [run.name for run in read(*places)] == ["one/stage3", "two/stage3"]
    assert read(places[0])[0].name == "stage3"
    with pytest.raises(ConfigError, match="named twice"):
        read(places[0], tmp_path / "one" / ".." / "one" / "stage3")


def test_what_is_no_run_is_named_with_the_runs_in_it(tmp_path):
    written(tmp_path / "runs" / "stage3", losses([1.0]))
    with pytest.raises(ConfigError, match=r"is no run .*; name one in it: .*runs/stage3$"):
        read(tmp_path / "runs")
    with pytest.raises(ConfigError, match=r"there is no directory .*nowhere"):
        read(tmp_path / "nowhere")
    (tmp_path / "mllm").mkdir()
    (tmp_path / "mllm" / "config.json").write_text("{}")  # a model's
    with pytest.raises(ConfigError, match=r"is no run .*; name the directory of a run"):
        read(tmp_path / "mllm")


def test_differences_are_what_differs(tmp_path):
    a = {"train": {"steps": 9, "lr": 0.1}, "stage": {"kind": "align"}, "names": ["x"]}
    b = {"train": {"steps": 9, "lr": 0.2}, "stage": {"kind": "align", "more": None}, "names": ["x"]}
    runs = read(written(tmp_path / "a", [], a), written(tmp_path / "b", [], b))
    assert differences(runs) == {"train.lr": ["0.1", "0.2"], "stage.more": ["-", "null"]}
    assert differences(runs[:1]) == {}


# ---------------------------------------------------------------------------------- in the frame


def test_a_frame_holds_all_its_values(tmp_path):
    (run,) = read(written(tmp_path / "a", losses([3.0, 1.0, 2.0])))
    (chart,) = charts([run])
    where = frame(chart, last_step=30)
    (segment,) = where.segments(run.curves["loss"])
    across = WIDTH - LEFT - RIGHT
    assert [x for x, _ in segment] == pytest.approx([LEFT + across * n / 3 for n in (1, 2, 3)])
    high, low, middle = (y for _, y in segment)
    assert TOP < high < middle < low < HEIGHT - BOTTOM
    assert middle == pytest.approx((high + low) / 2)
    assert not where.is_log


def test_wide_losses_are_logarithmic_and_rates_are_not(tmp_path):
    lines = [{"step": s, "loss": v, "lr": v, "a_per_s": v} for s, v in [(1, 100.0), (2, 1.0)]]
    lines += [{"step": 3, "loss": 10.0, "lr": 10.0, "a_per_s": 11.0}]
    (run,) = read(written(tmp_path / "a", lines))
    found = {chart.title: frame(chart, last_step=3) for chart in charts([run])}
    assert {title: where.is_log for title, where in found.items()} == {
        "loss": True,
        "a per s": False,
    }  # lr says the same as loss and is not shown
    ((_, high), (_, low), (_, middle)) = found["loss"].segments(run.curves["loss"])[0]
    assert middle == pytest.approx((high + low) / 2)


def test_a_flat_curve_has_a_frame(tmp_path):
    for name, value in {"zero": 0.0, "one": 1.0, "minus": -2.0}.items():
        (run,) = read(written(tmp_path / name, losses([value, value])))
        where = frame(charts([run])[0], last_step=20)
        assert where.low < value < where.high
        assert len(ticks(where.low, where.high)) >= 2


@pytest.mark.parametrize(("low", "high"), [(0, 7), (-3, 2), (1e-7, 3e-7), (0, 123456), (5, 5.01)])
def test_ticks_are_few_round_and_inside(low, high):
    found = ticks(float(low), float(high))
    assert 3 <= len(found) <= 11
    assert all(low - 1e-9 <= value <= high * (1 + 1e-9) for value in found)
    gaps = [b - a for a, b in pairwise(found)]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-3)


def test_long_curves_are_thinned_and_keep_spikes_and_gaps():
    steps = list(range(100_000))
    values = [math.sin(step / 9e3) for step in steps]
    values[54_321], values[70_000] = 9.0, math.nan
    kept = thinned(Curve(steps=steps, values=values))
    assert len(kept) <= MAX_POINTS * 1.1
    assert (54_321, 9.0) in kept
    assert sum(math.isnan(value) for _, value in kept) == 1
    assert [step for step, _ in kept] == sorted(step for step, _ in kept)
    short = Curve(steps=steps[:300], values=values[:300])
    assert len(thinned(short)) == 300


def test_one_run_shows_families_and_several_show_each_curve(tmp_path):
    values = {"loss": 1.0, "diffusion": 1.0, "loss/a": 0.5, "loss/b": 1.5, "samples_per_s": 3.0}
    lines = [
        {"step": 1, **values},
        {"step": 1, "validation_loss": 2.0, "validation_diffusion": 2.0},
    ]
    lines += [{"step": 1, "validation_loss/a": 1.5, "data_wait": 0.25, "pictures_per_s": 3.0}]
    one, two = (written(tmp_path / name, lines) for name in "ab")
    (run,) = read(one)
    shown = {chart.title: [line.label for line in chart.lines] for chart in charts([run])}
    assert shown == {
        "loss": ["loss", "validation loss"],
        "loss by source": ["a", "b"],
        "validation loss by source": ["a"],
        "pictures per s": ["pictures per s"],
        "data wait": ["data wait"],
    }  # the only term is the loss, and records are pictures
    several = charts(read(one, two))
    assert [chart.title for chart in several][:3] == ["loss", "validation loss", "loss/a"]
    assert [line.label for line in several[0].lines] == ["a", "b"]
    assert [line.colour for line in several[2].lines] == [0, 1]
