"""How many toy pictures does one core draw in a second? The floor is 400 at 64 px.

    python bench/render.py

Prints a table and writes outputs/bench-render.json. Batches are of 256 scenes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from time import process_time

import numpy as np
import torch

from kosmosg.toyworld.render import render
from kosmosg.toyworld.scenes import Scene
from kosmosg.toyworld.streams import SceneStream

FLOOR = 400
BATCH = 256
SECONDS = 5.0


def per_second(draw: Callable[[list[Scene]], object], scenes: list[Scene]) -> float:
    """Return pictures per second of this process's own time: a busy machine matters less."""
    draw(scenes)
    began, count = process_time(), 0
    while process_time() - began < SECONDS:
        draw(scenes)
        count += len(scenes)
    return count / (process_time() - began)


def main() -> None:
    """Measure numpy at both sizes, torch beside it, and a GPU where there is one."""
    torch.set_num_threads(1)
    scenes = SceneStream(seed=0).batch(0, BATCH)
    rates = {
        "numpy, 64 px": per_second(lambda s: render(s, 64), scenes),
        "numpy, 128 px": per_second(lambda s: render(s, 128), scenes),
        "torch, 64 px": per_second(lambda s: render(s, 64, torch), scenes),
    }
    if torch.cuda.is_available():
        draw = lambda s: render(s, 64, torch, "cuda")[0].cpu()  # noqa: E731 -- waits for the GPU
        rates["torch on a GPU, 64 px"] = per_second(draw, scenes)
    rates["scenes alone"] = per_second(
        lambda _: SceneStream(seed=int(np.random.default_rng().integers(99))).batch(0, BATCH),
        scenes,
    )
    print(f"{'':24}{'a second':>10}{'of floor':>10}")
    for name, rate in rates.items():
        print(f"{name:24}{rate:10.0f}{rate / FLOOR:10.2f}")
    report = {"floor": FLOOR, "per_second": rates}
    out = Path("outputs") / "bench-render.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
