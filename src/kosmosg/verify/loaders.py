"""Training sequences: what stages 2 and 3 make of the rows that the released loaders read."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from kosmosg.data.compose import DROP_PROBABILITY, compose
from kosmosg.data.mentions import mentions
from kosmosg.data.readers.tsv import keeps_size
from kosmosg.data.records import Edit, Entity, Example, Record
from kosmosg.images import decoder_view
from kosmosg.sequence import Encoded, collate, encode
from kosmosg.tokenizer import Tokenizer
from kosmosg.verify.compare import Check, exactly, not_checked
from kosmosg.verify.golden import Golden, read_json
from kosmosg.verify.inputs import PICTURE


def loaders(golden: Golden, name: str) -> Iterator[Check]:
    """Yield the ids and slots of each recorded row, and of the batches made of them.

    Source:
        NUMERICS sections 2.2 and 9.
    """
    recorded = read_json(golden.directory / name)
    for section, rows in recorded.items():
        kind, _, options = section.partition(".")
        if section == "laion.filter.size":
            yield from _sizes(name, section, rows)
        elif section.endswith(".batch"):
            if section.removesuffix(".batch") not in recorded:
                yield not_checked(name, f"{section} is a batch of rows that are not there")
        elif kind == "laion":
            yield from _captions(golden, name, section, rows, recorded.get(f"{section}.batch"))
        elif kind == "instructpix2pix" and _dropped(options) is not None:
            yield from _edits(golden, name, section, rows, recorded.get(f"{section}.batch"))
        elif kind == "openimage" and _dropped(options) is not None:
            yield from _open_images(golden, name, section, rows)
        else:
            yield not_checked(name, f"no part of kosmosg makes {section}")


def _open_images(
    golden: Golden, name: str, section: str, rows: list[dict[str, Any]]
) -> Iterator[Check]:
    dropped = bool(_dropped(section.partition(".")[2]))
    for row in rows:
        record = example(row["caption"], row["tags"].split(","))
        what = f"{section} {row['caption'][:24]!r}"
        prompt = compose(record, coins(dropped=dropped)).prompt
        if row["dropped_sample"]:
            # The release loses a sample whose words would be empty. Ours begins with the picture.
            begins = isinstance(prompt[0], Image.Image)
            yield exactly(name, f"{what}: kept, a picture first", begins, True)
            continue
        yield exactly(name, f"{what}: pictures", len(record.entities), row["n_images"])
        yield from _same(_encode(record, golden.tokenizer, row, dropped), row, name, what)


def _edits(
    golden: Golden,
    name: str,
    section: str,
    rows: list[dict[str, Any]],
    batch: Any,  # noqa: ANN401
) -> Iterator[Check]:
    dropped = bool(_dropped(section.partition(".")[2]))
    encoded = []
    for row in rows:
        if "error" in row:  # the released loader fails on such a row
            continue
        record = Edit(
            key="row",
            caption=row["input"],
            before=(PICTURE,),
            instruction=row["edit"],
            after=PICTURE,
        )
        size = batch["gpt_img_shape"][-1] if batch else PICTURE.width
        one = _encode(record, golden.tokenizer, row | {"n_images": 1}, dropped, size)
        encoded.append(one)
        yield from _same(one, row, name, f"{section} {row['edit'][:24]!r}")
    if batch:
        yield from _same_batch(encoded, batch, golden.tokenizer, name, f"{section}.batch")


def _captions(
    golden: Golden,
    name: str,
    section: str,
    rows: list[dict[str, Any]],
    batch: Any,  # noqa: ANN401
) -> Iterator[Check]:
    """Rows that the released filter of lengths drops have only their length to compare."""
    encoded, tokenizer = [], golden.tokenizer
    for number, row in enumerate(rows):
        one = encode([row["caption"]], tokenizer, num_latents=1, image_size=PICTURE.width)
        what = f"{section} row {number}"
        yield exactly(name, f"{what}: length", len(one.input_ids) - 1, row["n_tokens"])
        if row["kept"]:
            encoded.append(one)
            ours = [*one.input_ids.tolist(), tokenizer.eos_id]
            yield exactly(name, f"{what}: ids", ours, row["tokens"])
    if batch:
        yield from _same_batch(encoded, batch, tokenizer, name, f"{section}.batch")


def _sizes(name: str, section: str, rows: list[dict[str, Any]]) -> Iterator[Check]:
    for row in rows:
        stage = 2 if row["align"] else 3
        kept = keeps_size(row["w"], row["h"], stage)
        what = f"{section} {row['w']!r} x {row['h']!r}, stage {stage}: left out"
        yield exactly(name, what, not kept, row["filtered"])


def _same(one: Encoded, row: dict[str, Any], name: str, what: str) -> Iterator[Check]:
    """The released loaders end with `</s>` and cut it off before the model."""
    yield exactly(name, f"{what}: ids", one.input_ids.tolist(), row["tokens"][:-1])
    slots = one.image_mask.int().tolist()
    yield exactly(name, f"{what}: slots", slots, row["input_mask"][:-1])


def _same_batch(
    encoded: list[Encoded], expected: dict[str, Any], tokenizer: Tokenizer, name: str, what: str
) -> Iterator[Check]:
    batch = collate(encoded, pad_id=tokenizer.pad_id)
    yield exactly(name, f"{what}: ids", batch.input_ids.tolist(), expected["src_tokens"])
    yield exactly(name, f"{what}: sequences", len(encoded), expected["nsentences"])
    real = int(batch.attention_mask.sum()) + len(encoded)  # the release counts each `</s>` too
    yield exactly(name, f"{what}: tokens", real, expected["ntokens"])
    if "img_mask_true" in expected:
        slots = [row.nonzero().flatten().tolist() for row in batch.image_mask]
        yield exactly(name, f"{what}: slots", slots, expected["img_mask_true"])
        assert batch.pixel_values is not None  # each row has a picture
        shown = list(batch.pixel_values.shape)
        yield exactly(name, f"{what}: pictures", shown, expected["gpt_img_shape"])
        target = decoder_view(PICTURE, expected["tgt_shape"][-1])
        yield exactly(
            name, f"{what}: targets", [len(encoded), *target.shape], expected["tgt_shape"]
        )


def example(caption: str, tags: Sequence[str]) -> Example:
    """Return a caption as a record, with the things of these tags in it."""
    entities = tuple(
        Entity(mention=caption[start:end], start=start, end=end, crop=PICTURE, cutout=PICTURE)
        for start, end, _ in mentions(caption, tags)
    )
    return Example(key="row", caption=caption, entities=entities, image=PICTURE)


def _encode(
    record: Record,
    tokenizer: Tokenizer,
    row: dict[str, Any],
    dropped: bool,
    image_size: int = PICTURE.width,
) -> Encoded:
    """The slots of a picture are as many as the row has; how many pictures is checked apart."""
    num_latents = sum(row["input_mask"]) // max(1, row["n_images"])
    return encode(
        compose(record, coins(dropped=dropped)).prompt,
        tokenizer,
        num_latents=max(1, num_latents),
        image_size=image_size,
    )


def coins(*, dropped: bool) -> np.random.Generator:
    """Return a generator whose first coin, that of the words, falls as asked."""
    seeds = (np.random.default_rng(seed) for seed in range(64))
    fell = ((rng.random() < DROP_PROBABILITY) == dropped for rng in seeds)
    return np.random.default_rng(next(seed for seed, same in enumerate(fell) if same))


def _dropped(options: str) -> bool | None:
    """Whether the words are dropped; None where a coin was tossed that nobody recorded."""
    return {"drop0.0": False, "drop1.0": True}.get(options)
