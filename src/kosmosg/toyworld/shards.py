"""Two sets of stage 3 examples of the same pictures: the renderer's truth, and the steps'.

They answer what construction costs: stage 3 is trained from each, all else alike; what the steps
leave out (`chain.MAX_OVERLAP`) the truth keeps. Edits and plain captions are the same for both.
Drawn as `streams.stage3_stream` draws them, nothing held out.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from kosmosg.construct.example import ONE_MASK, Source, Steps, construct
from kosmosg.data.mixture import seed_of
from kosmosg.data.records import Entity, Example, Record
from kosmosg.data.samples import to_bytes
from kosmosg.data.tars import write_shard
from kosmosg.errors import ConfigError
from kosmosg.toyworld.captions import FULL, arrange, name
from kosmosg.toyworld.chain import MAX_OVERLAP
from kosmosg.toyworld.render import render
from kosmosg.toyworld.scenes import Scene
from kosmosg.toyworld.segmenter import SIZE
from kosmosg.toyworld.streams import (
    caption_stream,
    cut,
    edit_stream,
    example_scene,
    seen_mask,
    stays_generic,
)

# Records of each kind for one caption: paper section 3.2.
PARTS = {"examples": 2, "edits": 2, "captions": 1}
SETS = ("truth", "constructed", "edits", "captions")
SETTINGS = "settings.json"
FROM = {"source": "toyworld"}
BATCH = 64


def write(
    steps: Steps, out: Path, *, model: str, num_captions: int, per_shard: int = 512, seed: int = 11
) -> None:
    """Write the shards `OUT/SET/NUMBER.tar` of each of `SETS`; those that are there stay.

    Args:
        steps: Make `constructed`.
        out: A new directory, or one that an earlier call with the same settings began.
        model: What the steps' models are called, to be kept.
        num_captions: There are twice as many examples of each set, and edits.
        per_shard: Records of each.
        seed: Of everything drawn.

    Raises:
        ConfigError: If `num_captions` is below 1, or the directory was begun with other settings.
        DataError: If the captioner says nothing of a picture.
    """
    if num_captions < 1:
        raise ConfigError(f"num_captions = {num_captions}; it must be at least 1")
    settings = {
        "model": model,
        "seed": seed,
        "num_captions": num_captions,
        "per_shard": per_shard,
        "max_overlap": MAX_OVERLAP,
    }
    _same_settings(out, settings)
    for part in SETS:
        (out / part).mkdir(exist_ok=True)
    plan = [
        (kind, start, min(per_shard, weight * num_captions - start))
        for kind, weight in PARTS.items()
        for start in range(0, weight * num_captions, per_shard)
    ]
    for kind, start, count in tqdm(plan, unit="shard", dynamic_ncols=True):
        file = f"{start // per_shard:06d}.tar"
        if kind == "examples":
            paths = (out / "truth" / file, out / "constructed" / file)
            if not all(path.exists() for path in paths):
                for path, records in zip(
                    paths, _examples(steps, start, count, model=model, seed=seed), strict=True
                ):
                    _write(path, records)
        elif not (out / kind / file).exists():
            make = edit_stream if kind == "edits" else caption_stream
            stream = make(seed, SIZE)
            # One at a time, as a stream's batches begin at multiples of their size.
            _write(out / kind / file, (stream.batch(start + i, 1)[0] for i in range(count)))


def _same_settings(out: Path, settings: dict[str, object]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / SETTINGS
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise ConfigError(f"{path} was written with other settings; choose another directory")
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _write(path: Path, records: Iterable[Record]) -> None:
    write_shard(path, ((record.key, to_bytes(record)) for record in records))


def _examples(
    steps: Steps, start: int, count: int, *, model: str, seed: int
) -> tuple[list[Example], list[Example]]:
    """Return the truth and the steps' work for pictures number `start` and following."""
    truths: list[Example] = []
    made: list[Example] = []
    for first in range(start, start + count, BATCH):
        numbers = range(first, min(first + BATCH, start + count))
        keys = [f"toy-{seed}-example-{number}" for number in numbers]
        generators = [np.random.default_rng(seed_of(seed, "example", n)) for n in numbers]
        scenes = [example_scene(rng) for rng in generators]
        pixels, masks = render(scenes, SIZE)
        pictures = [Image.fromarray(picture) for picture in pixels]
        truths += map(_truth, keys, pictures, scenes, masks, generators)
        sources = [
            Source(key=key, image=picture, provenance={**FROM, "constructed_by": model})
            for key, picture in zip(keys, pictures, strict=True)
        ]
        for record in construct(
            sources, steps, size=SIZE, max_overlap=MAX_OVERLAP, without_entities="keep"
        ):
            if isinstance(record, Example):
                made.append(record)
            elif record.reason != ONE_MASK:  # an empty caption: no captioner worth comparing
                raise record
    return [_as_prompted(record, seed) for record in truths], [
        _as_prompted(record, seed) for record in made
    ]


def _truth(
    key: str, picture: Image.Image, scene: Scene, masks: np.ndarray, rng: np.random.Generator
) -> Example:
    """Return the example that the renderer makes: all words and masks are right."""
    alone = len(scene.subjects) == 1
    names = [name(subject, rng, FULL, alone=alone) for subject in scene.subjects]
    parts = arrange(names, scene, rng, FULL)
    entities: list[Entity] = []
    for slot, mention in enumerate(names):
        start = sum(map(len, parts[: 2 * slot + 1]))
        mask = seen_mask(masks, slot)
        if mask is not None:
            entities.append(
                Entity(
                    mention=mention,
                    start=start,
                    end=start + len(mention),
                    crop=picture,  # cut out with those of the steps
                    cutout=picture,
                    mask=mask,
                )
            )
    return Example(
        key=key,
        caption="".join(parts),
        entities=tuple(entities),
        image=picture,
        provenance={**FROM, "constructed_by": "renderer"},
    )


def _as_prompted(record: Example, seed: int) -> Example:
    """Return the example with crops and some mentions as the world's own examples have them.

    Crops leave a margin; mostly a mention is `a creature`, which is all that the evaluation's
    prompts say of one.
    """
    rng = np.random.default_rng(seed_of(seed, record.key))
    caption, shift = record.caption, 0
    entities: list[Entity] = []
    for entity in record.entities:
        start, mention = entity.start + shift, entity.mention
        if stays_generic(rng):
            mention = "a creature"
            caption = caption[:start] + mention + caption[entity.end + shift :]
            shift += len(mention) - len(entity.mention)
        crop, cutout = cut(record.image, np.asarray(entity.mask) > 0)
        entities.append(
            replace(
                entity,
                mention=mention,
                start=start,
                end=start + len(mention),
                crop=crop,
                cutout=cutout,
            )
        )
    return replace(record, caption=caption, entities=tuple(entities))
