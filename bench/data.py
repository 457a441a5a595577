"""How fast are stage 3's batches made at 512 px, and how far is that from the least there is to do?

    python bench/data.py [--samples 160] [--rounds 15] [--memory-samples 100000]

Examples with two entities, cut from synthetic photographs, as JPEG shards; the same pictures as
rows in the authors' manner (tab-separated, base64 of PNG). Three readers make micro-batches in the
same kind of process, in turns:

    ours    bytes, records, coins of composition, views, tokens, a batch: all but the scaling of
            pictures' bytes, which stage 3 does on its device ("where used" below, by one thread)
    floor   only the JPEG decoding of the pictures that stage 3 shows and the two resizes, by Pillow
    rows    the authors' way: line, base64, PNG, float64 transforms, a batch

Each reader's rate is the best of its rounds, where the machine did nothing else. Memory:
`--memory-samples` small examples through one reading process; what it holds after the last tenth
against after the first.
Prints a table and writes outputs/bench-data.json.
"""

import argparse
import base64
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from kosmosg.data.mixture import Stream
from kosmosg.data.records import Entity, Example
from kosmosg.data.samples import from_bytes, to_bytes
from kosmosg.data.sources import DataConfig, SourceConfig, open_stream
from kosmosg.data.tars import read_index, read_sample, write_shard
from kosmosg.images import CLIP_MEAN, CLIP_STD
from kosmosg.memory import hold_on
from kosmosg.model.image_decoder import ImageDecoder
from kosmosg.sequence import with_values
from kosmosg.tokenizer import Tokenizer
from kosmosg.train.prefetch import Plan
from kosmosg.train.stage3_instruct import InstructBatch, InstructStage
from kosmosg.train.workers import Workers

SIDE, SEEN = 512, 224
MICRO_BATCH = 8
CAPTION = "a dog beside a hat on the beach"
SHARD = 32


def photograph(rng: np.random.Generator, side: int) -> Image.Image:
    """Return what a codec has as much work with as with a photograph: shapes, light and grain."""
    coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    soft = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(soft.filter(ImageFilter.GaussianBlur(2)), np.float32)
    fine = rng.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    texture = np.asarray(Image.fromarray(fine).resize((side, side), Image.Resampling.BICUBIC))
    grain = rng.normal(0, 4, (side, side, 1)).astype(np.float32)
    return Image.fromarray(
        (pixels + 0.12 * (texture.astype(np.float32) - 128) + grain).clip(0, 255).astype(np.uint8)
    )


def example(number: int, side: int) -> Example:
    """Return a picture with two things in it, each cut out twice, at the picture's size."""
    rng = np.random.default_rng(number)
    picture = photograph(rng, side)
    half = side // 2
    entities = []
    for mention, left in (("dog", 0), ("hat", half)):
        crop = picture.crop((left, half, left + half, side)).resize((side, side))
        cutout = Image.new("RGB", crop.size, "white")
        disc = Image.fromarray(
            np.where(
                np.hypot(*np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]) < 0.8, 255, 0
            ).astype(np.uint8)
        )
        cutout.paste(crop, mask=disc)
        start = CAPTION.index(mention)
        entities.append(
            Entity(mention=mention, start=start, end=start + len(mention), crop=crop, cutout=cutout)
        )
    return Example(key=f"{number:06}", caption=CAPTION, entities=tuple(entities), image=picture)


def write(folder: Path, samples: int, side: int) -> None:
    """Write the examples as JPEG shards and, if they are of full size, as the authors' rows."""
    rows: list[str] = []
    for first in range(0, samples, SHARD):
        shard = []
        for number in range(first, min(first + SHARD, samples)):
            record = example(number, side)
            shard.append((record.key, to_bytes(record, pictures="jpg")))
            pictures = [record.image]
            for entity in record.entities:
                pictures += [entity.crop, entity.cutout]
            if side == SIDE:
                tags = ",".join(entity.mention for entity in record.entities)
                rows.append("\t".join([record.caption, tags, *map(_row, pictures)]))
        write_shard(folder / f"{first // SHARD:05}.tar", shard)
    (folder / "rows.tsv").write_text("\n".join(rows))


def _row(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def instruct(side: int = SIDE, seen: int = SEEN) -> InstructStage:
    """Return stage 3 as far as batches go: its decoder is not needed for them."""
    nothing: Any = torch.nn.Identity()
    return InstructStage(
        tokenizer=Tokenizer.from_words(sorted(set(CAPTION.split()))),
        num_latents=64,
        image_size=seen,
        target_size=side,
        image_decoder=ImageDecoder(nothing, nothing),
        trainable=(),
        condition_drop=0.0,
        loss_weighting="uniform",
        min_snr_gamma=None,
    )


class Floor:
    """Decodes the target and one picture of each entity, and makes both of these small."""

    def __init__(self, folder: Path) -> None:
        self.samples: list[list[bytes]] = []
        for path in sorted(folder.glob("*.tar")):
            with path.open("rb") as file:
                for sample in read_index(path):
                    files = read_sample(file, sample)
                    self.samples.append([files["jpg"], files["0.crop.jpg"], files["1.cutout.jpg"]])

    def batch(self, step: int, size: int) -> list[int]:
        """Return how many pictures were made of each sample."""
        return [self._read(step * size + offset) for offset in range(size)]

    def _read(self, index: int) -> int:
        target, *shown = self.samples[index % len(self.samples)]
        Image.open(io.BytesIO(target)).load()
        for data in shown:
            Image.open(io.BytesIO(data)).resize((SEEN, SEEN), Image.Resampling.BICUBIC)
        return 1 + len(shown)


class Nothing:
    """Makes no batch."""

    trainable = ()

    def collate(self, records: Any) -> Any:  # noqa: ANN401 - of each reader its own
        """Return what was read."""
        return torch.tensor(records)

    def weight(self, batch: Any) -> int:  # noqa: ANN401
        """Return one: it is not what is measured."""
        del batch
        return 1

    def loss(self, model: Any, batch: Any, generator: Any) -> dict[str, Tensor]:  # noqa: ANN401
        """Never called: nothing is trained here."""
        raise NotImplementedError


class Rows:
    """The authors' rows: a line, its caption and tags, pictures as base64 of PNG.

    Written for this comparison after the project's description of their reader (NUMERICS sections
    3.1 and 9): the pictures shown are decoded, and turned into numbers in float64.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self.path, self.tokenizer = path, tokenizer
        self.file: BinaryIO | None = None  # opened by the process that reads

    def batch(self, step: int, size: int) -> list[tuple[list[int], list[Tensor], Tensor]]:
        """Return ids, pictures seen and target of each row, in the order of the file."""
        return [self._read(step * size + offset) for offset in range(size)]

    def _read(self, index: int) -> tuple[list[int], list[Tensor], Tensor]:
        if self.file is None:
            self.file = self.path.open("rb")
        line = self.file.readline()
        if not line:
            self.file.seek(0)
            line = self.file.readline()
        caption, tags, *columns = line.decode().rstrip("\n").split("\t")
        target = self._picture(columns[0])
        ids, seen, position = [0], [], 0
        rng = np.random.default_rng(index)
        for number, tag in enumerate(tags.split(",")):
            end = caption.index(tag) + len(tag)
            ids += [*self.tokenizer.encode(caption[position:end]), *[3] * 66]
            position = end
            shown = self._picture(columns[1 + 2 * number + int(rng.random() < 0.5)])
            shown = shown.resize((SEEN, SEEN), Image.Resampling.BICUBIC)
            pixels = (np.asarray(shown, np.float64) / 255 - CLIP_MEAN) / CLIP_STD
            seen.append(torch.from_numpy(pixels).permute(2, 0, 1))
        ids += self.tokenizer.encode(caption[position:])
        pixels = (np.asarray(target, np.float64) / 255 - 0.5) / 0.5
        return ids, seen, torch.from_numpy(pixels).permute(2, 0, 1)

    @staticmethod
    def _picture(column: str) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(column))).convert("RGB")


class RowBatches(Nothing):
    """Pads ids and stacks pictures."""

    def collate(self, records: Any) -> Any:  # noqa: ANN401
        """Return ids, pictures seen and targets as tensors."""
        ids = [torch.tensor(ids) for ids, _, _ in records]
        return (
            torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=1),
            torch.stack([view for _, views, _ in records for view in views]).float(),
            torch.stack([target for _, _, target in records]).float(),
        )


def plan(stream: Stream, stage: Any, batches: range) -> Plan:  # noqa: ANN401
    """Return the reading of these batches."""
    return Plan(
        stage=stage,
        stream=stream,
        steps=batches,
        indices=range(MICRO_BATCH),
        global_batch_size=MICRO_BATCH,
        micro_batch=MICRO_BATCH,
    )


def rate(make: Callable[[], tuple[Stream, Any]], samples: int, workers: int) -> float:
    """Return samples a second in the steady state: what is read before the clock starts is not."""
    stream, stage = make()
    first = 2 * workers + 1
    batches = range(first + samples // MICRO_BATCH)
    with closing(Workers(plan(stream, stage, batches), workers=workers, timeout_s=None)) as reading:
        steps = iter(reading)
        for _ in range(first):
            next(steps)
        began = perf_counter()
        for _ in steps:
            pass
        # The first of these were ready when the clock started; as many were begun before it.
        return (len(batches) - first) * MICRO_BATCH / (perf_counter() - began)


def speed(folder: Path, samples: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each number of workers."""
    source = SourceConfig(paths=str(folder))
    floor, stage = Floor(folder), instruct()
    tokenizer = Tokenizer.from_words(sorted(set(CAPTION.split())))
    readers: dict[str, Callable[[], tuple[Stream, Any]]] = {
        "ours": lambda: (open_stream(DataConfig(sources={"a": source}), stage="instruct"), stage),
        "floor": lambda: (floor, Nothing()),
        "rows": lambda: (Rows(folder / "rows.tsv", tokenizer), RowBatches()),
    }
    found = []
    for workers in (1, 2):
        rates: dict[str, list[float]] = {name: [] for name in readers}
        for turn in range(rounds + 1):
            # Floor before and after ours, so that a change of the machine's speed meets both.
            for name in ("ours", "floor", "rows")[:: 1 if turn % 2 else -1]:
                # Long runs: a fresh process takes a while until it has its memory.
                taken = rate(readers[name], samples // 4 if name == "rows" else samples, workers)
                if turn:  # the first is not like the others
                    rates[name].append(taken)
        best = {name: max(own) for name, own in rates.items()}
        found.append(
            {
                "workers": workers,
                **{name: round(own, 1) for name, own in best.items()},
                "of_floor": round(best["ours"] / best["floor"], 3),
                "of_rows": round(best["ours"] / best["rows"], 2),
                "rounds": {name: [round(one, 1) for one in own] for name, own in rates.items()},
            }
        )
    return found


class Watched(Nothing):
    """Says in each batch how much memory the process that makes it holds."""

    def __init__(self, stage: InstructStage) -> None:
        self.stage = stage

    def collate(self, records: Any) -> Tensor:  # noqa: ANN401
        """Make the batch, and return resident bytes in its place."""
        self.stage.collate(records)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return torch.tensor([pages * os.sysconf("SC_PAGE_SIZE")])


def memory(folder: Path, samples: int) -> dict[str, float]:
    """Return what a reading process holds after the first tenth and at the end."""
    stream = open_stream(
        DataConfig(sources={"a": SourceConfig(paths=str(folder))}), stage="instruct"
    )
    held: list[int] = []
    batches = range(samples // MICRO_BATCH)
    with closing(
        Workers(plan(stream, Watched(instruct(64, 64)), batches), workers=1, timeout_s=None)
    ) as reading:
        for _, (piece,) in reading:
            held.append(int(piece.batch))
    tenth = len(held) // 10
    first, last = held[tenth - 1], held[-1]
    return {
        "samples": samples,
        "first_tenth_mb": round(first / 1e6, 1),
        "end_mb": round(last / 1e6, 1),
        "ratio": round(last / first, 4),
    }


def profile(folder: Path) -> dict[str, float]:
    """Return milliseconds a sample of ours by part, in this process."""
    hold_on()  # as processes that read do
    tars = sorted(folder.glob("*.tar"))
    with tars[0].open("rb") as file:
        files = [(sample.key, read_sample(file, sample)) for sample in read_index(tars[0])]
    stream = open_stream(
        DataConfig(sources={"a": SourceConfig(paths=str(tars[0]))}), stage="instruct"
    )
    stage = instruct()
    composed = stream.batch(0, len(files))
    batch = stage.collate(composed)
    parts = {
        "bytes to record (target decoded)": lambda: [from_bytes(*one) for one in files],
        "all to composed": lambda: stream.batch(0, len(files)),
        "collate": lambda: stage.collate(composed),
        "where used: bytes to numbers": lambda: _scaled(batch),
    }
    found = {}
    for name, part in parts.items():
        times = []
        for _ in range(5):
            began = perf_counter()
            part()
            times.append(perf_counter() - began)
        found[name] = round(1e3 * min(times) / len(files), 3)
    return found


def _scaled(batch: InstructBatch) -> tuple[Tensor | None, list[Tensor | None]]:
    """Return targets and views as numbers, as the stage's loss does."""
    return batch.target_images, [with_values(one).pixel_values for one in batch.sequences.batches]


def main() -> None:
    """Write the data, measure and print."""
    parser = argparse.ArgumentParser(description="Stage 3's data at 512 px.")
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory-samples", type=int, default=100_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder, "large"), Path(folder, "small")
        for path, samples, side in ((large, 96, SIDE), (small, 512, 64)):
            path.mkdir()
            write(path, samples, side)
        kilobytes = sum(path.stat().st_size for path in large.glob("*.tar")) / 96 / 5 / 1e3
        print(f"a JPEG picture has {kilobytes:.0f} kB", file=sys.stderr)
        found["profile_ms"] = profile(large)
        found["speed"] = speed(large, options.samples, options.rounds)
        if options.memory_samples:
            found["memory"] = memory(small, options.memory_samples)
    print(f"{'workers':8}{'ours':>8}{'floor':>8}{'rows':>8}{'of floor':>10}{'of rows':>9}")
    for row in found["speed"]:
        print(
            f"{row['workers']:<8}{row['ours']:8.1f}{row['floor']:8.1f}{row['rows']:8.1f}"
            f"{row['of_floor']:10.3f}{row['of_rows']:9.2f}"
        )
    print(json.dumps({name: found[name] for name in found if name != "speed"}))
    out = Path("outputs") / "bench-data.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
