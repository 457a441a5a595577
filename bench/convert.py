"""Does the full-size checkpoint convert within 12 GiB of memory, and are its parts as released?

    python bench/convert.py --manifest MANIFEST --dir DIR [--tokenizer DIR] [--keep]

MANIFEST lists every key and shape of the released checkpoint (golden/manifest_full.json of the
project's shared folder). DIR needs 12 GB. A checkpoint of float16 is written there, its values
those of the golden data's fill rule (two minutes), then converted in a process of its own, whose
seconds and peak memory are printed and written to outputs/bench-convert.json. --keep leaves
DIR/model, the full-size model of random weights, for other measurements; the real one is made by

    kosmosg convert checkpoint_final.pt -o kosmosg-1.9b
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from kosmosg.convert import archive, convert
from kosmosg.convert.reading import DEAD_SCALE, EMBEDDING, TIED
from kosmosg.verify.golden import fill

LIMIT_GIB = 12
# NUMERICS section 12.
RELEASED = {
    "mllm": 1_340_180_480 + 303_179_776 + 19_015_680,
    "aligner": 225_461_760,
    "unet": 859_520_964,
    "vae": 83_653_863,
}


@dataclass(frozen=True, eq=False)
class Made:
    """A weight of the synthetic checkpoint, made when it is written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float16

    def read(self) -> torch.Tensor:
        """Return its values; the same each time."""
        return fill(self.name, self.shape, seed=0).to(self.dtype)


def write(manifest: Path, path: Path) -> None:
    """Write the synthetic checkpoint."""
    keys = json.loads(manifest.read_text(encoding="utf-8"))["keys"]
    model = {name: Made(name, tuple(shape)) for name, (shape, _dtype) in keys.items()}
    model[TIED] = model[EMBEDDING]
    assert DEAD_SCALE in model, "not a manifest of the released checkpoint"
    options = {"decoder_attention_heads": 32, "flash_attention": True}
    archive.write_archive(path, {"args": None, "cfg": {"model": options}, "model": model})


def toy_tokenizer(folder: Path, size: int) -> None:
    """Write a tokenizer of as many ids as the released one, of words that mean nothing."""
    from kosmosg.tokenizer import FIRST_SYMBOLS, LAST_SYMBOLS, Tokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    count = size - len(FIRST_SYMBOLS) - len(LAST_SYMBOLS) - 1
    words = [
        "".join(letters[index // 26**place % 26] for place in range(4)) for index in range(count)
    ]
    Tokenizer.from_words(words).save_pretrained(folder)


def measured(checkpoint: Path, out: Path, tokenizer: Path) -> None:
    """Convert, and print what it took as JSON: the child's side."""
    began = perf_counter()
    parameters = convert(checkpoint, out, tokenizer=tokenizer)
    seconds = perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "peak_gib": peak, "parameters": parameters}))


def main() -> None:
    """Write, convert, compare, report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, help="of 64007 ids; made where not given")
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    given.dir.mkdir(parents=True, exist_ok=True)
    checkpoint, out = given.dir / "synthetic.pt", given.dir / "model"
    tokenizer = given.tokenizer or given.dir / "tokenizer"
    if given.tokenizer is None:
        toy_tokenizer(tokenizer, 64007)
    began = perf_counter()
    write(given.manifest, checkpoint)
    print(f"wrote {checkpoint.stat().st_size / 1e9:.2f} GB in {perf_counter() - began:.0f} s")

    words = [sys.executable, __file__, "--child", str(checkpoint), str(out), str(tokenizer)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
    report = json.loads(done.stdout)
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    report |= {"checkpoint_gb": checkpoint.stat().st_size / 1e9, "written_gb": written / 1e9}
    print(f"{'':14}{'measured':>16}{'limit or released':>20}")
    print(f"{'seconds':14}{report['seconds']:16.0f}")
    print(f"{'peak GiB':14}{report['peak_gib']:16.2f}{LIMIT_GIB:20}")
    for part, count in RELEASED.items():
        print(f"{part:14}{report['parameters'][part]:16,}{count:20,}")
    path = Path("outputs") / "bench-convert.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    checkpoint.unlink()
    if not given.keep:
        import shutil

        shutil.rmtree(out)
    if report["parameters"] != RELEASED or report["peak_gib"] > LIMIT_GIB:
        sys.exit("not as it should be")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        measured(*(Path(word) for word in sys.argv[2:]))
    else:
        main()
