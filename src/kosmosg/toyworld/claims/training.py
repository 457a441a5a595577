"""One thing changed, trained again: table 2's ways to align, and what stage 3's data is made of.

Variations share the foundation and the language model after stage 1; those of stage 3 begin with
what ships after stage 2. Each is trained with several seeds, which decide data, noise and new
weights.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from kosmosg.config import to_dict
from kosmosg.data.compose import BACKGROUND_PROBABILITY, DROP_PROBABILITY, Composing
from kosmosg.data.mixture import Stream
from kosmosg.evaluate.metrics import Score
from kosmosg.model.image_decoder import ImageDecoder
from kosmosg.model.kosmosg import KosmosG
from kosmosg.recipes import JOINTLY
from kosmosg.toyworld import nano
from kosmosg.toyworld.alignment import new_aligner
from kosmosg.toyworld.claims import questions, scoring
from kosmosg.toyworld.claims.drawing import drawn, strip, wanted
from kosmosg.toyworld.claims.experiment import DRAWING, Budget, Experiment, Measured, Setting
from kosmosg.toyworld.claims.rows import over_seeds, scores_of
from kosmosg.toyworld.foundation import text_ids
from kosmosg.toyworld.streams import caption_stream, stage2_stream, stage3_stream
from kosmosg.toyworld.workspace import plain
from kosmosg.train.run import Parts, RunConfig, run
from kosmosg.train.stage2_align import AlignConfig, TextTower
from kosmosg.train.stage3_instruct import InstructConfig

Asks = Literal["captions", "all"]
Found = tuple[dict[str, Score], dict[str, float], Image.Image]


@dataclass(frozen=True, kw_only=True)
class Variation:
    """What is trained, and for how long.

    Args:
        recipe: Of nano, of which all else is taken.
        steps: In full.
        step_s: Seconds of one core that a step takes.
        stage: Fields of the stage that differ.
        aligner: Arguments of a new AlignerNet; None goes on from stage 2's.
        weights: Of examples, edits and captions in stage 3's data.
        drop_probability: That stage 3's data leave an entity's words out.
        background_probability: That an entity keeps its background.
        asks: What the judge is asked: captions, or everything.
    """

    recipe: Literal["stage2", "stage3"]
    steps: int
    step_s: float
    stage: Mapping[str, Any] = field(default_factory=dict)
    aligner: Mapping[str, Any] | None = None
    weights: tuple[int, int, int] = (2, 2, 1)
    drop_probability: float = DROP_PROBABILITY
    background_probability: float = BACKGROUND_PROBABILITY
    asks: Asks = "all"


def train(setting: Setting, variation: Variation, seed: int) -> KosmosG:
    """Return the trained model; a run that was stopped goes on.

    Raises:
        ConfigError: As `fit`.
    """
    made = nano.RECIPES[variation.recipe]()
    assert isinstance(made.stage, AlignConfig | InstructConfig)  # those are the two
    steps = setting.budget.steps(variation.steps)
    optim = replace(made.train.optim, warmup_steps=min(200, 1 + steps // 10))
    stage = replace(made.stage, **variation.stage)
    if isinstance(stage, InstructConfig):
        stage = replace(stage, trainable=JOINTLY)  # nano's own, whatever its vision tower's depth
    config = RunConfig(
        stage=stage,
        train=replace(
            made.train,
            seed=seed,
            steps=steps,
            optim=optim,
            samples_every=steps + 1,
            keep_checkpoints=1,
            validation_records=min(made.train.validation_records, setting.budget.points),
        ),
    )
    parts = _parts(setting, variation, seed)
    recipe = {**to_dict(config), "variation": to_dict(variation)}
    run_dir = setting.work_dir / f"seed-{seed}"
    run(config, parts, run_dir, resume=run_dir.exists(), recipe=recipe)
    assert isinstance(parts.model, KosmosG)  # stages 2 and 3 train one
    parts.model.to(setting.world.pipe.device)
    return parts.model


def _parts(setting: Setting, variation: Variation, seed: int) -> Parts:
    world, size = setting.world, setting.size
    tokenizer, begun = world.pipe.tokenizer, world.readers["stage2"]
    mllm = copy.deepcopy(begun.mllm)
    if variation.aligner is None:
        aligner = copy.deepcopy(begun.aligner)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            width = world.pipe.unet.config["cross_attention_dim"]
            aligner = new_aligner(mllm, tokenizer, embed_dim=width, **variation.aligner)
    model = KosmosG(mllm, aligner)
    if variation.recipe == "stage2":
        assert world.text_encoder is not None  # every experiment's world has it
        return Parts(
            model=model,
            tokenizer=tokenizer,
            stream=stage2_stream(seed),
            validation=stage2_stream(seed + 500),
            text_tower=TextTower(
                encoder=world.text_encoder, ids=lambda texts: text_ids(texts, tokenizer)
            ),
        )
    unet = plain(copy.deepcopy(world.pipe.unet))
    return Parts(
        model=model,
        tokenizer=tokenizer,
        stream=_composed(variation, seed, size),
        validation=_composed(variation, seed + 500, size),
        image_decoder=ImageDecoder(copy.deepcopy(world.pipe.vae), unet),
    )


def _composed(variation: Variation, seed: int, size: int) -> Stream:
    if variation.asks == "captions":
        return Composing(caption_stream(seed, size), seed=seed)
    records = stage3_stream(seed, size, weights=variation.weights)
    return Composing(
        records,
        seed=seed,
        drop_probability=variation.drop_probability,
        background_probability=variation.background_probability,
    )


def measured(variation: Variation) -> Callable[[Setting], Measured]:
    """Return what trains a variation with each seed and asks the judge."""

    def measure(setting: Setting) -> Measured:
        ask = {"captions": _of_captions, "all": _of_all}[variation.asks]
        found = [ask(setting, train(setting, variation, seed)) for seed in setting.budget.seeds]
        return Measured(
            scores=over_seeds([scores for scores, _, _ in found]),
            judge=found[0][1],
            n=setting.budget.points,
            seeds=setting.budget.seeds,
            picture=found[0][2],
            config={
                "steps": setting.budget.steps(variation.steps),
                "variation": to_dict(variation),
                "of_each_seed": [
                    {name: score.mean for name, score in scores.items()} for scores, _, _ in found
                ],
            },
        )

    return measure


def _of_captions(setting: Setting, model: KosmosG) -> Found:
    budget = setting.budget
    asked = questions.captioned(budget.points, budget.seed, setting.shown_size)
    images = drawn(setting, asked, model)
    scores, truth = scoring.with_fid(setting.world.judge, images, asked, seed=budget.seed)
    return scores, truth, strip(asked, images)


def _of_all(setting: Setting, model: KosmosG) -> Found:
    """Return answers about pictures with and without a noun, two of them, edits and captions."""
    budget, judge = setting.budget, setting.world.judge
    given = (budget.points, budget.seed, setting.shown_size)
    one = questions.pictured(*given)
    images, real = drawn(setting, one, model), wanted(one, setting.size)
    values, truth = (
        scoring.answered(judge, pictures, one) | scoring.likeness(judge, pictures, one)
        for pictures in (images, real)
    )
    # Every other creature is shown on white (cases.py).
    white = np.array([question.index & 1 == 1 for question in one])
    for name, among in (("creature_on_white", white), ("creature_on_ground", ~white)):
        values[name], truth[name] = values["creature"][among], truth["creature"][among]
    for name, ask in (
        ("no_noun", questions.without_noun),
        ("two", questions.pictured_two),
        ("captions", questions.captioned),
    ):
        asked = ask(*given)
        for into, pictures in (
            (values, drawn(setting, asked, model)),
            (truth, wanted(asked, setting.size)),
        ):
            into[f"{name}_all"] = scoring.answered(judge, pictures, asked)["all"]
    edits = questions.mixed_edits(*given)
    for into, pictures in (
        (values, drawn(setting, edits, model)),
        (truth, wanted(edits, setting.size)),
    ):
        answers = scoring.edited(judge, pictures, edits)
        into |= {f"edit_{name}": answers[name] for name in ("done", "kept", "both")}
    return scores_of(values), scoring.means(truth), strip(one, images)


# Table 2: a new AlignerNet, about ten minutes of one core each.
_JOINTLY = {"recipe": "stage3", "steps": 660, "step_s": 0.9, "asks": "captions"}
_ALONE = {"recipe": "stage2", "steps": 2000, "step_s": 0.3, "asks": "captions"}
_NO_N = {"with_reconstruction": False}
ALIGNMENT: Mapping[str, tuple[str, Variation]] = {
    "e2e-without-aligner": (
        "end to end, one linear map in AlignerNet's place",
        Variation(**_JOINTLY, aligner={"stacks": "none", **_NO_N}),
    ),
    "e2e": ("end to end, with AlignerNet", Variation(**_JOINTLY, aligner=_NO_N)),
    "decoder-only": (
        "stage 2, queries that read the words directly",
        Variation(**_ALONE, aligner={"stacks": "queries"}),
    ),
    "half-depth": ("stage 2, half the layers", Variation(**_ALONE, aligner={"num_layers": 1})),
    "full": ("stage 2 as it is", Variation(**_ALONE, aligner={})),
}
# Stage 3 as it is but shorter, a quarter of an hour of one core, and with one thing off; and
# stage 2 as released.
_STAGE3 = {"recipe": "stage3", "steps": 900, "step_s": 0.9}
DATA: Mapping[str, tuple[str, Variation]] = {
    "full": ("stage 3 as it is", Variation(**_STAGE3)),
    "words-kept": (
        "entities' words never dropped",
        Variation(**_STAGE3, drop_probability=0.0),
    ),
    "ground-removed": (
        "entities always on white",
        Variation(**_STAGE3, background_probability=0.0),
    ),
    "no-edits": ("examples and captions 2:1", Variation(**_STAGE3, weights=(2, 0, 1))),
    "no-captions": ("examples and edits 1:1", Variation(**_STAGE3, weights=(1, 1, 0))),
    "dropout": (
        "stage 2 with dropout in the frozen language model; compare alignment-full",
        Variation(**_ALONE, aligner={}, stage={"mllm": "train"}),
    ),
}


def _experiment(claim: str, name: str, says: str, variation: Variation) -> Experiment:
    def pictures(budget: Budget) -> int | float:
        rows = {"captions": 1, "all": 5}[variation.asks]
        return rows * budget.points * len(budget.seeds)

    def seconds(budget: Budget) -> int | float:
        return len(budget.seeds) * budget.steps(variation.steps) * variation.step_s

    return Experiment(
        name=f"{claim}-{name}",
        claim=claim,
        says=says,
        measure=measured(variation),
        pictures=pictures,
        seconds=seconds,
        budget=("points", "seeds", "scale", *DRAWING),
    )


EXPERIMENTS = tuple(
    _experiment(claim, name, says, variation)
    for claim, group in (("alignment", ALIGNMENT), ("data", DATA))
    for name, (says, variation) in group.items()
)
