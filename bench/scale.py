"""How long would a step take on many GPUs, and what would it wait for? A small simulator.

    python bench/scale.py        the tables of docs/scale.md

A step is what `kosmosg.train.arithmetic` says of it from shapes alone: which units FSDP2 gathers,
in which pass, with how many FLOPs and bytes. Here they get times: products run at a share of the
stated rate, collectives are rings, each hop with a latency, copies and Adam go at the speed of
memory. The next unit's weights come while this one computes, and gradients leave while the one
before computes; all share one link. What is not known is left out: stragglers, other traffic, the
launch of kernels, reading of data.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from kosmosg import recipes
from kosmosg.train import arithmetic
from kosmosg.train.arithmetic import GIB, Need
from kosmosg.train.shapes import Sizes, mean_record
from kosmosg.train.traffic import Traffic, Use
from kosmosg.train.trainconfig import TrainConfig

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


if __name__ == "__main__":
    print("\n".join(tables()))
