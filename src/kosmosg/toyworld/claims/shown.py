"""What the shipped weights do: one creature shown, several, accessories, places and styles, words.

Rows of one claim ask the same questions in other ways, from the same noise.
"""

from collections.abc import Callable, Mapping

from kosmosg.toyworld.claims import questions, scoring
from kosmosg.toyworld.claims.drawing import Reader, drawn, strip, wanted
from kosmosg.toyworld.claims.experiment import Budget, Experiment, Measured, Setting
from kosmosg.toyworld.claims.questions import Ask, Edit
from kosmosg.toyworld.claims.rows import scores_of


def _prompts(budget: Budget) -> int:
    return budget.prompts


def answers(
    ask: Ask, reader: Reader, *, shown: Ask | None = None, with_style: bool = False
) -> Callable[[Setting], Measured]:
    """Return what measures answers about creatures, and likeness to the pictures that are shown.

    Args:
        ask: What is asked.
        reader: Of the prompts.
        shown: What shows pictures where the prompts of `ask` do not, so that all rows of a claim
            are compared with the same ones.
        with_style: Whether a style is asked for.
    """

    def measure(setting: Setting) -> Measured:
        budget, judge = setting.budget, setting.world.judge
        given = (budget.prompts, budget.seed, setting.shown_size)
        asked = ask(*given)
        pictured = shown(*given) if shown else asked
        images = drawn(setting, asked, reader)
        real = wanted(asked, setting.size)
        values, truth = (
            scoring.answered(judge, one, asked) | scoring.likeness(judge, one, pictured)
            for one in (images, real)
        )
        if with_style:
            values["style"] = scoring.styled(judge, images, asked)
            truth["style"] = scoring.styled(judge, real, asked)
        return Measured(
            scores=scores_of(values),
            judge=scoring.means(truth),
            n=len(asked),
            picture=strip(pictured, images),
        )

    return measure


def in_words(reader: Reader) -> Callable[[Setting], Measured]:
    """Return what measures captions: answers, and FID against the renderer's pictures."""

    def measure(setting: Setting) -> Measured:
        budget = setting.budget
        asked = questions.captioned(budget.prompts, budget.seed, setting.shown_size)
        images = drawn(setting, asked, reader)
        values, truth = scoring.with_fid(setting.world.judge, images, asked, seed=budget.seed)
        return Measured(scores=values, judge=truth, n=len(asked), picture=strip(asked, images))

    return measure


def edit(kind: Edit) -> Callable[[Setting], Measured]:
    """Return what measures edits of one kind."""

    def measure(setting: Setting) -> Measured:
        budget, judge = setting.budget, setting.world.judge
        asked = questions.edits(kind)(budget.prompts, budget.seed, setting.shown_size)
        images = drawn(setting, asked, "stage3")
        real = wanted(asked, setting.size)
        return Measured(
            scores=scores_of(scoring.edited(judge, images, asked)),
            judge=scoring.means(scoring.edited(judge, real, asked)),
            n=len(asked),
            picture=strip(asked, images),
        )

    return measure


def _one(name: str, says: str, ask: Ask, reader: Reader) -> Experiment:
    return Experiment(
        name=f"zero-shot-{name}",
        claim="zero-shot",
        says=says,
        measure=answers(ask, reader, shown=questions.pictured),
        pictures=_prompts,
    )


def _several(name: str, says: str, ask: Ask) -> Experiment:
    return Experiment(
        name=f"several-{name}",
        claim="several",
        says=says,
        measure=answers(ask, "stage3", with_style=name.startswith("style")),
        pictures=_prompts,
    )


def _several_in_words(number: str, ask: Ask, shown: Ask) -> Experiment:
    return Experiment(
        name=f"several-{number}-oracle",
        claim="several",
        says=f"{number}, all in words, own text tower",
        measure=answers(ask, "text_encoder", shown=shown),
        pictures=_prompts,
    )


def _text(name: str, says: str, reader: Reader) -> Experiment:
    return Experiment(
        name=f"text-{name}",
        claim="text",
        says=says,
        measure=in_words(reader),
        pictures=_prompts,
    )


def _edit(kind: Edit, says: str) -> Experiment:
    return Experiment(
        name=f"editing-{kind}",
        claim="editing",
        says=says,
        measure=edit(kind),
        pictures=_prompts,
    )


_SHOWN = {number: questions.several(number) for number in (3, 4)}
_WHEN: Mapping[str, Reader] = {"before": "stage2", "after": "stage3"}
EXPERIMENTS = (
    _one("oracle", "all in words, own text tower", questions.captioned, "text_encoder"),
    _one("words-only", "`a creature` and the place", questions.unshown, "stage3"),
    _one("stage2", "picture and place, after stage 2", questions.pictured, "stage2"),
    _one("stage3", "picture and place, after stage 3", questions.pictured, "stage3"),
    _one("stage3-no-noun", "the same without `a creature`", questions.without_noun, "stage3"),
    _several_in_words("two", questions.captioned_two, questions.pictured_two),
    _several("two", "two pictures", questions.pictured_two),
    _several_in_words("three", questions.several(3, in_words=True), _SHOWN[3]),
    _several("three", "three pictures", _SHOWN[3]),
    _several_in_words("four", questions.several(4, in_words=True), _SHOWN[4]),
    _several("four", "four pictures, one more than in training", _SHOWN[4]),
    _several(
        "accessory-said",
        "creature; `wearing a hat` and a picture of it",
        questions.with_accessory("said"),
    ),
    _several(
        "accessory",
        "creature; `wearing` and a picture of a hat",
        questions.with_accessory("dropped"),
    ),
    _several(
        "scene-said", "creature; `in the snow` and a picture of it", questions.with_scene("said")
    ),
    _several("scene", "creature; `in` and a picture of a place", questions.with_scene("dropped")),
    _several(
        "style-said",
        "`a sticker` and one of another creature; creature",
        questions.with_style("said"),
    ),
    _several(
        "style", "`a picture` and a sticker of another; creature", questions.with_style("dropped")
    ),
    _text("foundation", "captions, own text tower", "text_encoder"),
    _text("stage2", "captions, after stage 2", "stage2"),
    _text("stage3", "captions, after stage 3", "stage3"),
    *(
        Experiment(
            name=f"instruction-two-{when}",
            claim="instruction",
            says=f"two pictures, {when} stage 3",
            measure=answers(questions.pictured_two, reader),
            pictures=_prompts,
        )
        for when, reader in _WHEN.items()
    ),
    _edit("place", "picture and `make it night`, `put it on the beach`, ..."),
    _edit("accessory", "picture of a bare creature and `put a hat on it`, ..."),
    _edit("remove", "picture of one that wears something and `take off the hat`, ..."),
    _edit("colour", "picture and `paint it red`, ..."),
    _edit("style", "picture and `turn it into a sticker`, ..."),
)
