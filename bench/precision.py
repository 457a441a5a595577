"""How far do bfloat16 and int8 move the conditions at full size, and what memory do they save?

    python bench/precision.py --model DIR

DIR is a full-size model: the converted one, or of random weights from `bench/convert.py --keep`.
Each precision runs in a process of its own: load, encode words and a prompt with two pictures, then
free the encoder as `kosmosg generate --offload` does, so that only U-Net and VAE stay. Prints a
table and writes outputs/bench-precision.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from kosmosg import drawing
from kosmosg.note import Picture

PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, int8": {"dtype": "bfloat16", "quantize": "int8"},
}
LIMIT = 0.03


def prompts() -> dict[str, list[str | Picture]]:
    """Return the two prompts; their pictures are noise that is smooth, as photographs are."""
    rng = np.random.default_rng(0)
    pictures = []
    for size in ((640, 480), (300, 400)):
        noise = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        image = noise.resize(size, Image.Resampling.BICUBIC)
        pictures.append(Picture(path=Path("noise.png"), image=image, sha256=""))
    return {
        "words": ["a photo of a dog wearing a red hat on the beach"],
        "2 pictures": ["a photo of", pictures[0], "wearing", pictures[1], "on the beach"],
    }


def resident_gib(field: str = "VmRSS:") -> float:
    """Return the memory that this process holds, or with VmHWM: has held at most (Linux)."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index(field) + 1]) / 2**20


def measure(model: str, precision: str, out: Path) -> None:
    """Write the conditions of one precision as tensors, and its memory as JSON."""
    pipe = drawing.load(model, **PRECISIONS[precision])
    memory = {"loaded": resident_gib()}
    embeds = {}
    Path("/proc/self/clear_refs").write_text("5")
    for name, prompt in prompts().items():
        embeds[name] = drawing.encode(pipe, prompt).prompt_embeds.float().contiguous()
    memory["encoding, at most"] = resident_gib("VmHWM:")
    pipe.free_encoder()
    memory["encoder freed"] = resident_gib()
    save_file(embeds, out.with_suffix(".safetensors"))
    out.with_suffix(".json").write_text(json.dumps(memory), encoding="utf-8")


def main() -> None:
    """Measure each precision and compare it with float32; exit 1 if bfloat16 moves too far."""
    parser = argparse.ArgumentParser(description="Conditions and memory by precision.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.precision:
        measure(options.model, options.precision, options.out)
        return
    rows: dict[str, Any] = {}
    exact: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as directory:
        for number, precision in enumerate(PRECISIONS):
            out = Path(directory) / str(number)
            words = ["--model", options.model, "--precision", precision, "--out", str(out)]
            subprocess.run([sys.executable, __file__, *words], check=True)
            memory = json.loads(out.with_suffix(".json").read_text())
            embeds = load_file(out.with_suffix(".safetensors"))
            exact = exact or embeds  # float32 is the first
            moved = {
                name: ((value - exact[name]).norm() / exact[name].norm()).item()
                for name, value in embeds.items()
            }
            rows[precision] = {"relative_l2": moved, "gib": memory}
    heads = ("words", "2 pictures", "loaded", "encoding, at most", "encoder freed")
    print(f"{'':16}{'relative L2 to float32':>24}{'GiB of memory':>48}")
    print(f"{'':16}" + "".join(f"{head:>20}" for head in heads))
    for precision, row in rows.items():
        moved, gib = row["relative_l2"], row["gib"]
        print(
            f"{precision:16}"
            + "".join(f"{moved[head]:20.4f}" for head in heads[:2])
            + "".join(f"{gib[head]:20.2f}" for head in heads[2:])
        )
    out = Path("outputs") / "bench-precision.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if max(rows["bfloat16"]["relative_l2"].values()) > LIMIT:
        sys.exit(f"bfloat16 moves a condition by more than {LIMIT}")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
