"""How near is the simulator of bench/scale.py to this machine?

    python bench/scale_check.py [--rounds 3] [--repeats 9]

Trains a language model of 29 million parameters in one process of one thread, and in two with as
much each. The rates (products, copies, Adam, gloo) are measured in the same run: products by one
process alone, and by one beside another that does the same, since both share the memory.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from scale import Link, Machine, simulate

from kosmosg.model.mllm import MLLM
from kosmosg.train import arithmetic
from kosmosg.train.arithmetic import Need
from kosmosg.train.loop import fit
from kosmosg.train.optim import OptimConfig, make_optimizer
from kosmosg.train.shapes import Record, Sizes
from kosmosg.train.stage1_language import LanguageConfig
from kosmosg.train.trainconfig import TrainConfig

SMALL: dict[str, Any] = {
    **{"vocab_size": 8000, "hidden_size": 512, "intermediate_size": 2048, "dropout": 0.0},
    **{"num_hidden_layers": 8, "num_attention_heads": 8, "num_latents": 4, "image_size": 32},
    **{"vision_hidden_size": 16, "vision_intermediate_size": 32, "vision_layers": 1},
    **{"vision_heads": 2, "patch_size": 8},
}
STAGE = LanguageConfig(trainable=("layers.*", "layer_norm.*", "embed_tokens.*"))
ROWS, POSITIONS = 2, 128  # of a process, in each step


def check_config(gpus: int, gathered: Any) -> TrainConfig:  # noqa: ANN401 - of two names
    """Return the run of the check, as much for each process."""
    return TrainConfig(
        seed=0,
        steps=10_000,
        global_batch_size=ROWS * gpus,
        micro_batch=ROWS,
        optim=OptimConfig(lr=1e-4, clip_norm=1.0, schedule="linear", warmup_steps=1),
        ema=None,
        precision="float32",
        device="cpu",
        checkpoint_s=1e9,
        log_every=10_000,
        validate_every=10_000,
        gathered=gathered,
    )


class Enough(Exception):
    """As many steps as were asked for."""


class Words:
    """Stage 1 of rows of words; notes when each step begins."""

    trainable = STAGE.trainable

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.began: list[float] = []

    def collate(self, records: Sequence[Any]) -> torch.Tensor:
        """Return some words."""
        return torch.randint(4, 8000, (len(records), POSITIONS))

    def weight(self, batch: torch.Tensor) -> int:
        """Return how many there are."""
        return batch.numel()

    def loss(
        self, model: MLLM, batch: torch.Tensor, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Return what each costs, or end it all."""
        del generator  # nothing is drawn
        self.began.append(perf_counter())
        if len(self.began) == self.repeats + 3:
            raise Enough
        states = model(batch, torch.ones_like(batch, dtype=torch.bool))
        logits = model.logits(states.flatten(0, 1))
        error = torch.nn.functional.cross_entropy(logits, batch.flatten(), reduction="sum")
        return {"cross_entropy": error}

    def batch(self, step: int, size: int) -> list[int]:
        """Return records: nothing is in them."""
        return [step] * size


def child(gathered: str, repeats: int) -> None:
    """Measure steps and rates in this process, and print them."""
    torch.manual_seed(0)
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    model, words = MLLM(**SMALL), Words(repeats)
    with tempfile.TemporaryDirectory() as folder, suppress(Enough):
        fit(model, words, words, check_config(num_ranks, gathered), Path(folder) / "run")
    steps = [late - early for early, late in zip(words.began[1:], words.began[2:], strict=False)]
    found = {"step": min(steps), "median": statistics.median(steps)} | _rates(model, num_ranks)
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(found))


def _rates(model: MLLM, num_ranks: int) -> dict[str, float]:
    """Return what copies and Adam take here, and messages if there is another process."""
    source = torch.randn(2**24)
    target = torch.empty_like(source)
    found = {"memory": 2 * source.nbytes / _least(lambda: target.copy_(source))}
    learning = [p for p in model.parameters() if p.requires_grad]
    for one in learning:
        one.grad = torch.randn_like(one)
    adam = make_optimizer(check_config(1, "layer").optim, learning)
    found["adam_s"] = _least(adam.step) / sum(p.numel() for p in learning)
    if num_ranks > 1:
        for name, size in (("small", 2**8), ("large", 2**23)):
            whole, part = torch.randn(2 * size), torch.randn(size)
            found[f"gather_{name}"] = _least(lambda: dist.all_gather_into_tensor(whole, part))  # noqa: B023
            found[f"reduce_{name}"] = _least(lambda: dist.reduce_scatter_tensor(part, whole))  # noqa: B023
    return found


def _least(work: Any, times: int = 7) -> float:  # noqa: ANN401 - any call
    seconds = []
    for _ in range(times):
        began = perf_counter()
        work()
        seconds.append(perf_counter() - began)
    return min(seconds[1:])


def check(repeats: int, rounds: int) -> None:
    """Print steps of two processes beside what the simulator says from those of one.

    Runs take turns, and each is taken at its best, where it had the machine for itself.
    """
    sizes, record = Sizes(mllm=SMALL), Record(positions=POSITIONS, pictures=0.0)
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        runs.setdefault("alone", []).extend(_measure("layer", repeats, num_ranks=1))
        beside = _measure("layer", repeats, num_ranks=1, copies=2)
        runs.setdefault("beside", []).append(max(beside, key=lambda one: one["step"]))
        for gathered in ("layer", "step"):
            runs.setdefault(gathered, []).extend(_measure(gathered, repeats, num_ranks=2))
    best = {
        name: {key: min(one[key] for one in found) for key in found[0]}
        | {"memory": max(one["memory"] for one in found)}
        for name, found in runs.items()
    }
    print(
        "| weights gathered for | 1 process, s | 2, s | simulated | error |"
        " 1 beside another, s | simulated | error |\n|---|---|---|---|---|---|---|---|"
    )
    for gathered in ("layer", "step"):
        two = best[gathered]
        row = [f"a {gathered}", f"{best['alone']['step']:.3f}", f"{two['step']:.3f}"]
        for name in ("alone", "beside"):
            config = check_config(2, gathered)
            need = arithmetic.need(STAGE, config, sizes, record=record, gpus=2)
            step = simulate(need, config, _here(best[name], two, need), gpus=2)
            row += [f"{best[name]['step']:.3f}"] * (name == "beside")
            row += [f"{step.seconds:.3f}", f"{step.seconds / two['step'] - 1:+.1%}"]
        print(f"| {' | '.join(row)} |")
    for name, found in best.items():
        print(name, {key: float(f"{value:.3g}") for key, value in found.items()}, file=sys.stderr)


def _here(one: dict[str, float], two: dict[str, float], need: Need) -> Machine:
    """Return this machine, by a step of one process and the messages of two."""
    learns = sum(part.learns for part in need.parts)
    gather = two["gather_large"] - two["gather_small"]
    # A ring of two hands on half of what each then has: what one of them has.
    link = Link(bandwidth=2**23 * 4 / gather, latency=two["gather_small"])
    return Machine(
        rate=need.flops / 2 / (one["step"] - learns * one["adam_s"]),
        memory=two["memory"],
        adam_s=two["adam_s"],
        inside=link,
        between=link,
        overlaps=False,
        reducing=(two["reduce_large"] - two["reduce_small"]) / gather,
    )


def _measure(
    gathered: str, repeats: int, *, num_ranks: int, copies: int = 1
) -> list[dict[str, float]]:
    """Return what so many runs, at once, of so many processes each measure."""
    command = [sys.executable]
    if num_ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    command += [__file__, "--child", gathered, "--repeats", str(repeats)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(copies)
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a process of the check failed, see above")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def main() -> None:
    """Print the check, or do what a process of it does."""
    parser = argparse.ArgumentParser(description="How near the simulator is to this machine.")
    parser.add_argument("--child", help="what a process of the check does", default=None)
    parser.add_argument("--repeats", type=int, default=9, help="steps of each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind, in turns")
    options = parser.parse_args()
    if options.child:
        child(options.child, options.repeats)
    else:
        check(options.repeats, options.rounds)


if __name__ == "__main__":
    main()
