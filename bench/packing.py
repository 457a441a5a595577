"""How full are packed rows beside padded ones, and how fast are they found?

    python bench/packing.py --tokenizer DIR [--documents 4000]

DIR holds the released `sentencepiece.bpe.model` and `dict.txt`. Documents are made of this
project's own English sentences, in numbers drawn from a log-normal distribution: text (37 sentences
in the mean), captioned pictures, and pages with one to six pictures. Three ways to make batches of
them: one document in each row of 2048 positions; eight documents padded to the longest of them;
packed rows. Speed is of this process's own time on one core: cutting into sentences, tokenising and
packing, beside tokenising the same texts alone. Prints a table and writes
outputs/bench-packing.json.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
from PIL import Image

from kosmosg.data.measure import measure
from kosmosg.data.packing import SEQ_LEN, Lengths, pack, sentences
from kosmosg.data.records import Document
from kosmosg.tokenizer import Tokenizer

NUM_LATENTS = 64
TOGETHER = 8
ROUNDS = 5
KINDS = ("text", "pairs", "interleaved")
SHARES = {"text": 5, "pairs": 5, "interleaved": 2}  # of the rows, paper appendix A
PICTURE = Image.new("RGB", (1, 1))  # its pixels are not looked at here


def corpus() -> list[str]:
    """Return sentences of the documentation, tables and code left out."""
    root = Path(__file__).parents[1]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(root.glob("docs/**/*.md")))
    found = [sentence.strip() for sentence in sentences(text)]
    return [one for one in found if one[:1].isupper() and one.endswith(".")]


def documents(kind: str, count: int) -> list[Document]:
    """Return documents of one kind, the same each time."""
    rng = np.random.default_rng(KINDS.index(kind))
    known = corpus()
    made: list[Document] = []
    for index in range(count):
        number = 1 if kind == "pairs" else 1 + int(rng.lognormal(3.1, 1.0))
        text = " ".join(known[i] for i in rng.integers(0, len(known), number))
        parts: list[str | Image.Image] = [text]
        if kind == "pairs":
            parts = [PICTURE, text]
        elif kind == "interleaved":
            cuts = np.sort(rng.integers(0, len(text), int(rng.integers(1, 7))))
            parts = []
            for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
                parts += [text[begin:end], PICTURE] if end < len(text) else [text[begin:end]]
        made.append(Document(key=str(index), parts=tuple(part for part in parts if part)))
    return made


def padded(sizes: Sequence[int], together: int) -> float:
    """Return the share of positions that hold something when documents are padded to the longest.

    What a document has beyond a row goes into rows of its own, as in packing.
    """
    rows = [min(SEQ_LEN, size - at) for size in sizes for at in range(0, size, SEQ_LEN)]
    batches = [rows[at : at + together] for at in range(0, len(rows), together)]
    return sum(rows) / sum(len(batch) * max(batch) for batch in batches)


def fills(lengths: Lengths) -> dict[str, float]:
    """Return the fill rates of three ways to make batches."""
    begin = np.cumsum(lengths.counts) - lengths.counts
    sizes = (np.add.reduceat(lengths.sizes, begin) + 1).tolist()
    rows = [min(SEQ_LEN, size - at) for size in sizes for at in range(0, size, SEQ_LEN)]
    bounds = pack(lengths)
    held = int(lengths.sizes.sum()) + len(sizes) + int(bounds[:-1, 1:].any(1).sum())
    return {
        "one a row": sum(rows) / (SEQ_LEN * len(rows)),
        f"padded, {TOGETHER} together": padded(sizes, TOGETHER),
        "packed": held / (SEQ_LEN * (len(bounds) - 1)),
    }


def seconds(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the median of this process's own seconds for each call; they take turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = process_time()
            call()
            taken[name].append(process_time() - began)
    return {name: median(times) for name, times in taken.items()}


def main() -> None:
    """Measure the three kinds, and their blend."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizer", required=True, type=Path)
    parser.add_argument("--documents", type=int, default=4000)
    chosen = parser.parse_args()
    tokenizer = Tokenizer.from_pretrained(chosen.tokenizer)
    report: dict[str, Any] = {"documents": chosen.documents, "seq_len": SEQ_LEN, "kinds": {}}
    for kind in KINDS:
        made = documents(kind, chosen.documents)
        texts = [part for one in made for part in one.parts if isinstance(part, str)]
        lengths = measure(made, tokenizer, num_latents=NUM_LATENTS).lengths
        ids = int(lengths.sizes[~lengths.pictures].sum())
        taken = seconds(
            {
                "tokenise": lambda texts=texts: [tokenizer.encode(text) for text in texts],
                "measure": lambda made=made: measure(made, tokenizer, num_latents=NUM_LATENTS),
                "pack": lambda lengths=lengths: pack(lengths),
            }
        )
        report["kinds"][kind] = {
            "ids_per_document": ids / len(made),
            "fill": fills(lengths),
            "ids_per_s": ids / (taken["measure"] + taken["pack"]),
            "ids_per_s_packing_alone": ids / taken["pack"],
            "of_tokenising_alone": taken["tokenise"] / (taken["measure"] + taken["pack"]),
        }
    ways = list(report["kinds"]["text"]["fill"])
    # Each kind has its share of the positions that hold something.
    report["blend"] = {
        way: sum(SHARES.values())
        / sum(share / report["kinds"][kind]["fill"][way] for kind, share in SHARES.items())
        for way in ways
    }
    print(f"{'':14}{'ids each':>10}" + "".join(f"{way:>20}" for way in ways) + f"{'ids/s':>12}")
    for kind, one in report["kinds"].items():
        row = "".join(f"{one['fill'][way]:20.3f}" for way in ways)
        print(f"{kind:14}{one['ids_per_document']:10.0f}{row}{one['ids_per_s']:12,.0f}")
    print(f"{'5:5:2':14}{'':10}" + "".join(f"{report['blend'][way]:20.3f}" for way in ways))
    for kind, one in report["kinds"].items():
        print(
            f"{kind}: {one['of_tokenising_alone']:.2f} of tokenising alone; packing alone"
            f" {one['ids_per_s_packing_alone'] / 1e6:.0f} M ids/s"
        )
    out = Path("outputs") / "bench-packing.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
