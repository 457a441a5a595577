"""How much of a picture, how much of the words: curves of what is kept and what is done.

Edits are where the two pull apart: the picture says what there is, the words what is to change.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from PIL import Image

from kosmosg.evaluate.metrics import Score
from kosmosg.toyworld.claims import questions, scoring
from kosmosg.toyworld.claims.drawing import drawn, wanted
from kosmosg.toyworld.claims.experiment import DRAWING, Budget, Experiment, Measured, Setting
from kosmosg.toyworld.claims.rows import scores_of
from kosmosg.train.chart import (
    BOTTOM,
    COLOURS,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Frame,
    label,
    ticks,
)
from kosmosg.train.plot import FAINT, FINE, GRID, INK, Pen

Control = Literal["picture_guidance", "picture_weight"]
VALUES: Mapping[Control, Sequence[float]] = {
    "picture_guidance": (0.0, 1.0, 2.0, 3.0, 5.0, 8.0),
    "picture_weight": (0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0),
}


def curve(control: Control) -> Callable[[Setting], Measured]:
    """Return what measures edits at each value of a control."""

    def measure(setting: Setting) -> Measured:
        budget, judge = setting.budget, setting.world.judge
        asked = questions.mixed_edits(budget.points, budget.seed, setting.shown_size)
        scores: dict[str, Score] = {}
        for value in VALUES[control]:
            images = drawn(setting, asked, "stage3", **_arguments(setting, control, value))
            values = scoring.edited(judge, images, asked)
            values["like_shown"] = scoring.likeness(judge, images, asked)["like_shown"]
            scores |= {f"{value:g}/{name}": one for name, one in scores_of(values).items()}
        real = wanted(asked, setting.size)
        truth = scoring.means(scoring.edited(judge, real, asked))
        truth["like_shown"] = scoring.likeness(judge, real, asked)["like_shown"].mean().item()
        return Measured(
            scores=scores,
            judge={
                f"{value:g}/{name}": one for value in VALUES[control] for name, one in truth.items()
            },
            n=len(asked),
            picture=chart(control, scores),
        )

    return measure


def _arguments(setting: Setting, control: Control, value: float) -> dict[str, Any]:
    if control == "picture_weight":
        return {"weight": value}
    words = setting.world.pipe.generation_config.guidance_scale
    if value == words:
        return {}
    return {"controls": {"text_guidance_scale": words, "picture_guidance_scale": value}}


def chart(control: Control, scores: Mapping[str, Score]) -> Image.Image:
    """Return a curve through the values: from left to right what is done, upwards what is kept."""
    page = Image.new("RGB", (FINE * WIDTH, FINE * (HEIGHT + BOTTOM)), "white")
    pen, frame = Pen(page, (0, 0)), Frame(last_step=1, low=0.0, high=1.0, is_log=False)
    pen.text((LEFT, 4), f"{control.replace('_', ' ')}: the rest kept", INK, size=13)
    ground = HEIGHT - BOTTOM
    for tick in ticks(0.0, 1.0):
        pen.line([(LEFT, frame.y(tick)), (WIDTH - RIGHT, frame.y(tick))], GRID)
        pen.line([(frame.x(tick), TOP), (frame.x(tick), ground)], GRID)
        pen.text((LEFT - 6, frame.y(tick)), label(tick), FAINT, size=11, anchor="rm")
        pen.text((frame.x(tick), ground + 5), label(tick), FAINT, size=11, anchor="ma")
    pen.text((WIDTH / 2, ground + 22), "the edit done", INK, size=12, anchor="ma")
    points = {
        value: (frame.x(scores[f"{value:g}/done"].mean), frame.y(scores[f"{value:g}/kept"].mean))
        for value in VALUES[control]
    }
    pen.line(list(points.values()), COLOURS[0], 1.5)
    for value, (x, y) in points.items():
        pen.dot((x, y), COLOURS[1], 2.5)
        pen.text((x + 5, y - 5), label(value), INK, size=11, anchor="ls")
    return page.reduce(FINE)


def _curve(control: Control, says: str) -> Experiment:
    def pictures(budget: Budget) -> int | float:
        dearer = 1.5 if control == "picture_guidance" else 1  # a third branch
        return dearer * budget.points * len(VALUES[control])

    return Experiment(
        name=f"curves-{control.replace('_', '-')}",
        claim="curves",
        says=says,
        measure=curve(control),
        pictures=pictures,
        budget=("points", *DRAWING),
    )


EXPERIMENTS = (
    _curve("picture_guidance", "edits; words guided by the model's own scale, pictures by 0 to 8"),
    _curve("picture_weight", "edits; the picture counts 0 to 2 times"),
)
