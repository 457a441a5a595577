"""Does tuning to a creature help it, and what does it cost the others? Asked of the judge.

For each held-out creature an adapter is tuned on a few pictures of it, with records of other
creatures beside them; then it is asked for in every place, and other held-out ones are asked for as
ever. Before and after start from the same noise, so that each difference is one of pairs.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from tqdm import tqdm

from kosmosg.data.samples import to_bytes
from kosmosg.data.sources import DataConfig, SourceConfig
from kosmosg.data.tars import write_shard
from kosmosg.errors import ConfigError
from kosmosg.toyworld.captions import PLACE_PHRASES
from kosmosg.toyworld.cases import NOUN, Case, cases, draw, full_name
from kosmosg.toyworld.evaluate import ROWS, images_of, verdict
from kosmosg.toyworld.scenes import PLACES, RADII, Scene, Subject, sample_subject, stand
from kosmosg.toyworld.scores import SCORED, Row, grid
from kosmosg.toyworld.streams import stage3_stream
from kosmosg.toyworld.version import VERSION
from kosmosg.toyworld.world import World
from kosmosg.train.subject import SubjectConfig, tune

Right = Bool[np.ndarray, "questions cases"]
NUM_PICTURES = 5
QUESTIONS = (*SCORED, "all")
OTHERS_SEED = 12_345
PRIOR_SEED = 31
BOOTSTRAPS = 10_000


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """One creature before and after, and the others with it; seconds of tuning."""

    name: str
    before: Right
    after: Right
    others_after: Right
    seconds: float


def evaluate(
    world: World,
    config: SubjectConfig,
    *,
    num_subjects: int,
    limit: int,
    num_others: int,
    seed: int,
    num_prior: int = 256,
    num_inference_steps: int | None = None,
    tell: Callable[[str], object] = lambda _line: None,
) -> dict[str, Row]:
    """Return the judge's rates of tuned creatures and of others, before and after tuning.

    `subject` and `others` hold rates and their changes with 95% intervals: creatures are drawn
    again with replacement, and within them their prompts.

    Args:
        world: The model that `config.init` names.
        config: How each is tuned; its pictures, name and prior are filled in here.
        num_subjects: Creatures, each tuned by itself.
        limit: Prompts for each.
        num_others: Prompts for other creatures, after each tuning.
        seed: Of the creatures, their pictures, the prompts and the noise.
        num_prior: Records of other creatures that tuning sees; 0: none.
        num_inference_steps: None is the model's own.
        tell: Gets a line about each creature.

    Raises:
        ConfigError: If a number is below 1.
    """
    if min(num_subjects, limit, num_others) < 1:
        raise ConfigError("ask for at least 1 subject, 1 prompt of it and 1 of others")
    creatures = held_out(num_subjects, seed=seed)
    theirs = {_kind(creature) for creature in creatures}
    drawn = cases(2 * num_others + 100, seed=OTHERS_SEED + seed)
    others = [case for case in drawn if _kind(case.target.subjects[0]) not in theirs][:num_others]
    work = num_others + num_subjects * (2 * limit + num_others)
    with (
        tempfile.TemporaryDirectory() as temporary,
        tqdm(total=work, unit="picture", mininterval=1.0, dynamic_ncols=True) as bar,
    ):

        def asked(prompts: Sequence[Case]) -> Right:
            return _right(world, prompts, seed, num_inference_steps, bar.update)

        before = asked(others)
        if num_prior:
            config = replace(config, prior=_prior(Path(temporary) / "prior.tar", num_prior))
        tuned = []
        for number, creature in enumerate(creatures):
            rng = np.random.default_rng([seed, 5, number])
            shown = photos(creature, NUM_PICTURES, rng)
            prompts = prompts_of(creature, shown, limit, rng)
            folder = Path(temporary) / str(number)
            own = replace(config, name=NOUN, pictures=_written(shown, folder))
            first = asked(prompts)
            start = time.monotonic()
            path = tune(own, folder / "run")
            seconds = time.monotonic() - start
            world.pipe.load_adapter(path)
            one = Tuned(
                name=full_name(creature),
                before=first,
                after=asked(prompts),
                others_after=asked(others),
                seconds=seconds,
            )
            world.pipe.unload_adapter()
            tuned.append(one)
            tell(
                f"{one.name}: {_all(one.before):.2f} to {_all(one.after):.2f}, others"
                f" {_all(before):.3f} to {_all(one.others_after):.3f}, {one.seconds:.0f} s"
            )
    rng = np.random.default_rng([seed, 6])
    return {
        "subject": _row([(one.before, one.after) for one in tuned], rng),
        "others": _row([(before, one.others_after) for one in tuned], rng),
        "settings": {
            "subjects": num_subjects,
            "limit": limit,
            "num_others": num_others,
            "num_prior": num_prior,
            "seed": seed,
            "seconds": float(np.mean([one.seconds for one in tuned])),
            "toyworld": VERSION,
        },
        "each": {
            one.name: {
                "before": _all(one.before),
                "after": _all(one.after),
                "others": _all(one.others_after) - _all(before),
            }
            for one in tuned
        },
    }


def held_out(count: int, *, seed: int) -> list[Subject]:
    """Return creatures that no stage has seen, no two of one shape, colour and pattern."""
    found: dict[tuple[str, str, str], Subject] = {}
    index = 0
    while len(found) < count:
        drawn = sample_subject(np.random.default_rng([seed, 4, index]), held_out=True)
        found.setdefault(_kind(drawn), drawn)
        index += 1
    return list(found.values())


def _kind(creature: Subject) -> tuple[str, str, str]:
    return creature.shape, creature.colour, creature.pattern


def photos(creature: Subject, count: int, rng: np.random.Generator) -> list[Scene]:
    """Return pictures of a creature to tune on: each in another place, of another size."""
    return [
        Scene(
            subjects=stand((replace(creature, radius=float(rng.uniform(0.22, 0.3))),), rng),
            place=PLACES[int(place)],
            seed=int(rng.integers(1 << 31)),
        )
        for place in rng.permutation(len(PLACES))[:count]
    ]


def prompts_of(
    creature: Subject, shown: Sequence[Scene], count: int, rng: np.random.Generator
) -> list[Case]:
    """Return questions about a creature: one of its pictures shown, every place in turn."""
    asked = []
    for index in range(count):
        dx, dy = rng.uniform(-0.04, 0.04), rng.uniform(-0.03, 0.03)
        standing = replace(creature, x=0.5 + dx, y=0.6 + dy, radius=RADII["medium"])
        target = Scene(
            subjects=(standing,),
            place=PLACES[index % len(PLACES)],
            seed=int(rng.integers(1 << 31)),
        )
        reference = shown[int(rng.integers(len(shown)))]
        asked.append(Case(index=index, target=target, references=(reference,)))
    return asked


def table(report: Mapping[str, Row]) -> str:
    """Return the report as text: rates before, after, and the change with its interval."""
    blocks = []
    for name in ("subject", "others"):
        rows = {f"{name} {when}": report[name][when] for when in ("before", "after", "change")}
        ends = zip(*report[name]["interval"].values(), strict=True)
        for end, numbers in zip(("from", "to"), ends, strict=True):
            rows[f"{name} {end}"] = dict(zip(QUESTIONS, numbers, strict=True))
        blocks.append(grid(("", *QUESTIONS), rows))
    blocks.append(grid(("", "before", "after", "others"), report["each"]))
    return "\n\n".join(blocks)


def _written(shown: Sequence[Scene], folder: Path) -> tuple[str, ...]:
    """Write pictures with the words for their places, as a user would; return their paths."""
    folder.mkdir()
    paths = []
    for number, (scene, picture) in enumerate(zip(shown, draw(shown, 64), strict=True)):
        path = folder / f"{number}.png"
        picture.save(path)
        path.with_suffix(".txt").write_text(PLACE_PHRASES[scene.place][0], encoding="utf-8")
        paths.append(str(path))
    return tuple(paths)


def _prior(path: Path, count: int) -> DataConfig:
    records = stage3_stream(PRIOR_SEED).batch(0, count)
    write_shard(path, ((record.key, to_bytes(record, pictures="png")) for record in records))
    return DataConfig(sources={"prior": SourceConfig(paths=str(path))})


def _right(
    world: World,
    asked: Sequence[Case],
    seed: int,
    num_inference_steps: int | None,
    advance: Callable[[int], object],
) -> Right:
    images = images_of(
        world,
        ROWS["stage3"],
        asked,
        seed=seed,
        num_inference_steps=num_inference_steps,
        guidance_scale=None,
        precision="bfloat16",
        advance=advance,
    )
    answers = verdict(world.judge, images, asked, 0, None)
    rows = np.stack([answers[question].numpy() for question in SCORED])
    return np.concatenate([rows, rows.all(0, keepdims=True)])


def _all(right: Right) -> float:
    return float(right[-1].mean())


def _row(pairs: Sequence[tuple[Right, Right]], rng: np.random.Generator) -> Row:
    before = np.mean([first.mean(1) for first, _ in pairs], 0)
    after = np.mean([second.mean(1) for _, second in pairs], 0)
    changes = [second.astype(float) - first for first, second in pairs]
    drawn = np.empty((BOOTSTRAPS, len(QUESTIONS)))
    for number in range(BOOTSTRAPS):
        again = [changes[int(i)] for i in rng.integers(len(changes), size=len(changes))]
        picked = [one[:, rng.integers(one.shape[1], size=one.shape[1])].mean(1) for one in again]
        drawn[number] = np.mean(picked, 0)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    named = {"before": before, "after": after, "change": after - before}
    row: Row = {when: _named(rates) for when, rates in named.items()}
    ends = zip(low.tolist(), high.tolist(), strict=True)
    row["interval"] = dict(zip(QUESTIONS, ends, strict=True))
    return row


def _named(rates: np.ndarray) -> dict[str, float]:
    return dict(zip(QUESTIONS, rates.tolist(), strict=True))
