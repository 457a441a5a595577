"""What `kosmosg train RECIPE --dry-run` prints: a run's needs as tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kosmosg.recipes import Recipe
    from kosmosg.train.arithmetic import Need
    from kosmosg.train.shapes import Record, Tuning


def tables(
    recipe: "Recipe", *, gpus: int, kind: str, utilisation: float, tuning: "Tuning | None" = None
) -> str:
    """Return the tables of a run, or of a subject's tuning, on so many GPUs of a kind.

    Raises:
        ConfigError: If the kind or a number cannot be, or the recipe contradicts itself.
    """
    from kosmosg.train.arithmetic import need, rate_of
    from kosmosg.train.readiness import sizes
    from kosmosg.train.shapes import SUBJECT, mean_record

    rate_of(kind, recipe.train.precision)  # a wrong name is told before the seconds of counting
    record = mean_record(recipe.stage, recipe.data) if tuning is None else SUBJECT
    found = sizes(init=recipe.init, model=recipe.model)
    needed = need(
        recipe.stage,
        recipe.train,
        found,
        record=record,
        gpus=gpus,
        num_sources=0 if recipe.data is None else len(recipe.data.sources),
        tuning=tuning,
    )
    parts: list[tuple[str, ...]] = [
        ("model", "learns", "frozen"),
        *((part.name, f"{part.learns:,}", f"{part.frozen:,}") for part in needed.parts),
        ("all", *(f"{sum(column):,}" for column in _columns(needed))),
    ]
    blocks = [
        _table(parts),
        _table(_memory(recipe, needed, gpus=gpus, kind=kind)),
        _table(_work(recipe, needed, record, gpus=gpus, kind=kind, utilisation=utilisation)),
        *([_table(_traffic(needed))] if gpus > 1 else []),
    ]
    return "\n\n".join(blocks)


def _columns(needed: "Need") -> tuple[list[int], list[int]]:
    return [part.learns for part in needed.parts], [part.frozen for part in needed.parts]


def _memory(recipe: "Recipe", needed: "Need", *, gpus: int, kind: str) -> list[tuple[str, ...]]:
    from kosmosg.train.arithmetic import GIB, GPUS

    rows: list[tuple[str, ...]] = [
        (f"GiB on each of {gpus} {kind}", "activations kept", "recomputed")
    ]
    for name, size in needed.memory.items():
        again = needed.checkpointed_bytes if name == "activations" else size
        rows.append((name, _gib(size), _gib(again)))
    totals = [needed.total_bytes(checkpointing=again) for again in (False, True)]
    rows.append(("all", *(_gib(total) for total in totals)))
    limit = GPUS[kind].memory_gib
    fits = ["fits" if total <= limit * GIB else "too much" for total in totals]
    rows.append((f"of {limit:g}, micro-batch {recipe.train.micro_batch}", *fits))
    return rows


def _work(
    recipe: "Recipe",
    needed: "Need",
    record: "Record",
    *,
    gpus: int,
    kind: str,
    utilisation: float,
) -> list[tuple[str, ...]]:
    from kosmosg.train.arithmetic import rate_of
    from kosmosg.train.stage3_instruct import InstructConfig

    train = recipe.train
    records = train.steps * train.global_batch_size
    flops = (needed.flops, needed.flops + needed.recomputed_flops)
    rate = rate_of(kind, train.precision)
    hours = [
        needed.hours(
            train, gpus=gpus, kind=kind, utilisation=utilisation, checkpointing=checkpointing
        )
        for checkpointing in (False, True)
    ]
    drawn = isinstance(recipe.stage, InstructConfig)
    each = f"{record.positions} positions and {record.pictures:.3g} pictures"
    return [
        ("the run", "activations kept", "recomputed"),
        ("PFLOP a step", *(f"{value / 1e15:.4g}" for value in flops)),
        (f"hours at {utilisation:.0%} of {rate / 1e12:g} TFLOP/s", *(_hours(h) for h in hours)),
        ("steps", f"{train.steps:,}"),
        (f"records, {train.global_batch_size:,} a step", f"{records:,}"),
        (f"tokens, taking {each} a record", _many(records * record.positions)),
        ("pictures read", _many(records * record.pictures)),
        *([("pictures to draw", _many(records))] if drawn else []),
    ]


def _traffic(needed: "Need") -> list[tuple[str, ...]]:
    told = needed.traffic
    kinds = [
        ("all-gather, of weights", told.all_gather),
        ("reduce-scatter, of gradients", told.reduce_scatter),
        ("all-reduce between copies", told.all_reduce),
        ("norms and numbers of the loop", told.norms + told.numbers),
    ]
    return [
        ("bytes of a step", "of whole tensors"),
        *((name, f"{size:,}") for name, size in kinds if size),
        ("sent by each GPU, in rings", f"{told.sent:,}"),
        ("messages", f"{told.messages:,}"),
    ]


def _hours(value: float) -> str:
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def _many(value: int | float) -> str:
    for unit, name in ((1e9, " billion"), (1e6, " million")):
        if value >= unit:
            return f"{value / unit:,.4g}{name}"
    return f"{value:,.0f}"


def _gib(size: int) -> str:
    from kosmosg.train.arithmetic import GIB

    return f"{size / GIB:.2f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows in columns, the first to the left and numbers to the right."""
    full = [[*row, *[""] * (3 - len(row))] for row in rows]
    widths = [max(len(row[index]) for row in full) for index in range(3)]
    return "\n".join(
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}".rstrip()
        for row in full
    )
