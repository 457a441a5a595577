"""How long would a step take on many GPUs, and what would it wait for? A small simulator.

    python bench/scale.py                            the tables of docs/scale.md
    python bench/scale.py --check [--rounds 3]       the simulator against this machine

A step is what `kosmosg.train.arithmetic` says of it from shapes alone: which units FSDP2 gathers,
in which pass, with how many FLOPs and bytes. Here they get times: products run at a share of the
stated rate, collectives are rings, each hop with a latency, copies and Adam go at the speed of
memory. The next unit's weights come while this one computes, and gradients leave while the one
before computes; all share one link. What is not known is left out: stragglers, other traffic, the
launch of kernels, reading of data.

The check trains a language model of 29 million parameters in one process of one thread, and in two
with as much each, whose rates (products, copies, Adam, gloo) are measured in the same run.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

from kosmosg import recipes
from kosmosg.model.mllm import MLLM
from kosmosg.train import arithmetic
from kosmosg.train.arithmetic import GIB, Need
from kosmosg.train.loop import TrainConfig, fit
from kosmosg.train.optim import OptimConfig, make_optimizer
from kosmosg.train.shapes import Record, Sizes, mean_record
from kosmosg.train.stage1_language import LanguageConfig
from kosmosg.train.traffic import Traffic, Use

ADAM_BYTES = 28  # a parameter: weight, gradient and two moments read, all but the gradient written
NAMES = ("stage1", "stage2", "stage3")
LAYOUTS = ((8, None), (64, None), (64, 8), (256, None), (256, 8))  # GPUs, `shard_ranks`
# Of what is stated: of products as in docs/training.md, of links and memory as benchmarks of
# collectives and copies come near it.
UTILISATION, REACHED = 0.4, 0.8


@dataclass(frozen=True, kw_only=True)
class Link:
    """Bytes a second in one direction out of one GPU, and the seconds of a hop."""

    bandwidth: float
    latency: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What computes: FLOPs and bytes of memory a second, reached, and links within and between.

    `adam_s` is what Adam takes for a parameter. With `overlaps` messages go while products run;
    gloo's are waited for. `reducing` is how much longer a reduce-scatter takes than an all-gather.
    """

    rate: float
    memory: float
    adam_s: float
    inside: Link
    between: Link
    node: int = 8
    overlaps: bool = True
    reducing: float = 1.0

    def ring(self, size: float, gpus: int) -> float:
        """Return the seconds of an all-gather or reduce-scatter of so many bytes in all.

        Each GPU hands on a part to its neighbour, gpus - 1 times. Between nodes there are as many
        rings as a node has GPUs, each through a network card of its own.
        """
        if gpus == 1 or not size:
            return 0.0
        nodes = -(-gpus // self.node)
        bandwidth, hops = self.inside.bandwidth, (gpus - nodes) * self.inside.latency
        if nodes > 1:
            bandwidth = min(bandwidth, self.node * self.between.bandwidth)
            hops += (nodes - 1) * self.between.latency
        else:
            hops = (gpus - 1) * self.inside.latency
        return hops + size * (gpus - 1) / gpus / bandwidth

    def between_copies(self, size: float, copies: int) -> float:
        """Return the seconds of an all-reduce between nodes, each GPU with its like in the others.

        Their rings share no network card.
        """
        if copies == 1 or not size:
            return 0.0
        sent = 2 * size * (copies - 1) / copies / self.between.bandwidth
        return sent + 2 * (copies - 1) * self.between.latency

    def copied(self, size: float) -> float:
        """Return the seconds in which so many bytes are read and written."""
        return 2 * size / self.memory


# NVLink and memory: NVIDIA's data sheets of the A100 80GB SXM (600 GB/s in both directions, 2,039
# GB/s), H100 SXM (900, 3,350) and H200 SXM (900, 4,800). InfiniBand: a ConnectX-6 of 200 Gb/s a GPU
# in the DGX A100, a ConnectX-7 of 400 Gb/s in the DGX H100 and H200. The hops are guesses.
LINKS: dict[str, tuple[float, float, float]] = {
    "A100-80GB": (600e9 / 2, 200e9 / 8, 2.039e12),
    "H100": (900e9 / 2, 400e9 / 8, 3.35e12),
    "H200": (900e9 / 2, 400e9 / 8, 4.8e12),
}
INSIDE_HOP_S, BETWEEN_HOP_S = 3e-6, 8e-6


def machine(kind: str) -> Machine:
    """Return nodes of eight GPUs of a kind, computing in bfloat16."""
    nvlink, infiniband, memory = LINKS[kind]
    return Machine(
        rate=arithmetic.rate_of(kind, "bfloat16") * UTILISATION,
        memory=memory * REACHED,
        adam_s=ADAM_BYTES / (memory * REACHED),
        inside=Link(bandwidth=nvlink * REACHED, latency=INSIDE_HOP_S),
        between=Link(bandwidth=infiniband * REACHED, latency=BETWEEN_HOP_S),
    )


# ------------------------------------------------------------------------------------- one step


@dataclass(frozen=True, kw_only=True)
class Item:
    """What computes for some seconds: a unit in one pass, or (`use` is None) what is in none."""

    seconds: float
    use: Use | None = None
    backward: bool = False
    is_last: bool = False  # of the unit's passes in this micro-batch, going back


@dataclass(frozen=True, kw_only=True)
class Step:
    """Seconds of a step: of all, of products and copies alone, of messages alone."""

    seconds: float
    products_s: float
    messages_s: float


class Clock:
    """Two lines of time, what computes and what sends; one waits for the other where it must."""

    def __init__(self, on: Machine) -> None:
        self.on = on
        self.now = self.began = self.sent = self.shared = 0.0
        self.products_s = self.messages_s = 0.0

    def send(self, seconds: float, *, asked: float) -> float:
        """Send from when it is asked for, or the link is free; return when it is over."""
        if not self.on.overlaps:
            asked = self.now
        self.sent = max(self.sent, asked) + seconds
        if not self.on.overlaps:
            self.now = self.sent
        self.messages_s += seconds
        return self.sent

    def compute(self, seconds: float, *, after: float = 0.0) -> None:
        """Compute, as soon as what came before is done and what is needed is here."""
        self.began = max(self.now, after)
        self.now = self.began + seconds
        self.products_s += seconds


def simulate(need: Need, config: TrainConfig, on: Machine, *, gpus: int) -> Step:
    """Return the time of one step that needs so much, on so many GPUs."""
    share = -(-config.global_batch_size // gpus)
    micro_batches = -(-share // min(config.micro_batch, share))
    clock = Clock(on)
    whole: set[int] = set()
    items = schedule(need, config, on, records=share / micro_batches)
    for number in range(micro_batches):
        _run(clock, items, whole, need.traffic, sends=number + 1 == micro_batches)
    numbers = 4 * 2 * on.ring(8.0, gpus)  # sums of the loop and the norm
    learns = sum(part.learns for part in need.parts)
    adam = learns / need.traffic.shard_ranks * on.adam_s
    return Step(
        seconds=max(clock.now, clock.sent) + numbers + adam,
        products_s=clock.products_s,
        messages_s=clock.messages_s + numbers,
    )


def schedule(need: Need, config: TrainConfig, on: Machine, *, records: float) -> list[Item]:
    """Return a micro-batch in order: forward passes, what is in no unit, backward passes."""
    uses = _in_order(need.uses)
    scale = records / need.count
    own = {id(use): _own_flops(use, uses) * scale for use in uses}
    left = need.flops / config.global_batch_size * records
    forward: list[Item] = []
    backward: list[Item] = []
    passes = max((len(use.passages) for use in uses), default=0)
    for number in range(passes):
        for use in uses:
            if number >= len(use.passages):
                continue
            flops = own[id(use)]
            back = flops * (use.passages[0].comes_back + (use.whole_gradients > 0))
            left -= flops + back
            forward.append(Item(seconds=flops / on.rate, use=use))
            if use.passages[0].comes_back:
                is_last = number == 0
                seconds = back / on.rate
                backward.append(Item(seconds=seconds, use=use, backward=True, is_last=is_last))
    return [*forward, Item(seconds=max(left, 0.0) / on.rate), *reversed(backward)]


def _in_order(uses: Sequence[Use]) -> list[Use]:
    """Return units as they are called: what a stack has outside its blocks, then these."""
    called = [use for use in uses if use.passages]
    outer = [use for use in called if not any(_holds(other, use) for other in called)]
    return [one for use in outer for one in (use, *(u for u in called if _holds(use, u)))]


def _holds(outer: Use, inner: Use) -> bool:
    return outer is not inner and any(m is inner.unit.module for m in outer.unit.module.modules())


def _own_flops(use: Use, uses: Sequence[Use]) -> float:
    """Return the FLOPs of a forward pass through a unit, those of units within left out."""
    inner = sum(one.passages[0].flops for one in uses if _holds(use, one))
    return max(0, use.passages[0].flops - inner)


def _run(
    clock: Clock, items: Sequence[Item], whole: set[int], told: Traffic, *, sends: bool
) -> None:
    """Go through a micro-batch; `whole` are the units whose weights are here."""
    on, shard_ranks = clock.on, told.shard_ranks
    asked = clock.now
    for item in items:
        use = item.use
        if use is None:
            clock.compute(item.seconds)
            asked = clock.now  # the first unit going back was not foreseen
            continue
        here = 0.0
        if id(use) not in whole and use.weights and shard_ranks > 1:
            here = clock.send(on.ring(use.weights, shard_ranks), asked=asked)
            clock.compute(on.copied(use.weights), after=here)
        whole.add(id(use))
        clock.compute(item.seconds, after=here)
        asked = clock.began
        lets_go = use.passages[0].goes_on if item.backward else not use.unit.kept
        if lets_go and not use.stays:
            whole.discard(id(use))
        if item.is_last and sends and (use.gradients or use.copies):
            clock.compute(on.copied(use.gradients))
            # Only one waits to be sent: the one before must have gone.
            clock.now = max(clock.now, clock.shared)
            seconds = on.reducing * on.ring(use.gradients, shard_ranks)
            clock.shared = clock.send(seconds, asked=clock.now)
            clock.send(on.between_copies(use.copies, told.num_copies), asked=clock.shared)
    whole &= {id(item.use) for item in items if item.use is not None and item.use.stays}


# ---------------------------------------------------------------------------------------- tables


@functools.cache
def _counted(name: str, records: int) -> arithmetic.Counted:
    recipe = recipes.RECIPES[name]()
    return arithmetic.count(
        *(recipe.stage, recipe.train, Sizes(aligner=recipe.model.aligner)),
        record=mean_record(recipe.stage, recipe.data),
        records=records,
    )


def needed(name: str, gpus: int, shard_ranks: int | None = None) -> tuple[Need, TrainConfig]:
    """Return what a stage of the paper needs on so many GPUs, and its run."""
    recipe = recipes.RECIPES[name]()
    train = replace(recipe.train, shard_ranks=shard_ranks)
    records = min(train.micro_batch, -(-train.global_batch_size // gpus))
    sources = len(recipe.data.sources) if recipe.data else 1
    counted = _counted(name, records)
    return arithmetic.shared_out(counted, train, gpus=gpus, num_sources=sources), train


def tables() -> Iterator[str]:
    """Yield a table for each stage, in Markdown, and an empty line."""
    for name in NAMES:
        train = needed(name, LAYOUTS[0][0])[1]
        yield f"`{name}`: {train.steps:,} steps of {train.global_batch_size:,} records"
        yield ""
        yield (
            "| GPUs | records each | GiB, with blocks recomputed | GB sent | messages | "
            + " | ".join(
                f"{kind}: step, of it products, messages; hours; efficiency" for kind in LINKS
            )
            + " |"
        )
        yield "|---|---|---|---|---|" + "---|" * len(LINKS)
        base: dict[str, float] = {}
        for gpus, shard_ranks in LAYOUTS:
            need, train = needed(name, gpus, shard_ranks)
            told = need.traffic
            cells = [
                f"{gpus}" + (f", `shard_ranks={shard_ranks}`" if shard_ranks else ""),
                f"{-(-train.global_batch_size // gpus)}",
                ", ".join(f"{need.total_bytes(checkpointing=c) / GIB:.1f}" for c in (False, True)),
                f"{told.sent / 1e9:.2f}",
                f"{told.messages:,}",
            ]
            for kind in LINKS:
                step = simulate(need, train, machine(kind), gpus=gpus)
                whole = base.setdefault(kind, step.seconds * gpus)
                hours = step.seconds * train.steps / 3600
                cells.append(
                    f"{step.seconds:.3f} s, {step.products_s:.3f}, {step.messages_s:.3f};"
                    f" **{hours:,.1f} h**; {whole / (step.seconds * gpus):.2f}"
                )
            yield f"| {' | '.join(cells)} |"
        yield ""


# ----------------------------------------------------------------------------------------- check

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
    """Print the tables, or the check."""
    parser = argparse.ArgumentParser(description="How long a step takes on many GPUs.")
    parser.add_argument("--check", action="store_true", help="the simulator against this machine")
    parser.add_argument("--child", help="what a process of the check does", default=None)
    parser.add_argument("--repeats", type=int, default=9, help="steps of each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind, in turns")
    options = parser.parse_args()
    if options.child:
        child(options.child, options.repeats)
    elif options.check:
        check(options.repeats, options.rounds)
    else:
        print("\n".join(tables()))


if __name__ == "__main__":
    main()
