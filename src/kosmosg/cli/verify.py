"""`kosmosg verify`: are our numbers the released model's."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kosmosg.cli.options import prepare_libraries

if TYPE_CHECKING:
    from kosmosg.verify import Check

app = typer.Typer()


@app.command()
def verify(
    golden_dir: Annotated[
        Path, typer.Argument(metavar="GOLDEN_DIR", help="The folder of recorded numbers.")
    ],
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The tokenizer of the recorded ids, if not tokenizer/ in the folder or beside it.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: every comparison, not the worst of each.")
    ] = False,
) -> None:
    """Compare this installation with numbers that the released code computed; exit 1 if one is off.

    The folder holds config.json (sizes, and the rule by which each weight follows from its name)
    and whatever was recorded with them: cases/*.safetensors, tokenizer.json, loaders.json,
    image_transform.safetensors with images/, train_align.json, the checkpoints themselves. Sizes
    may be any. Every tensor is computed anew and compared: hidden states, logits, conditions,
    losses and gradients to 1e-5; ids, masks and timesteps exactly. A file or a tensor that no
    part of kosmosg computes is a failure too: nothing is skipped in silence.

    The table has a line for each file, with its worst comparison, and a line for each that failed.

    \b
    Example:
      kosmosg verify tests/golden/data
    """  # noqa: D301 -- click's mark for text to be kept as it is
    import json
    import sys

    prepare_libraries()
    from tqdm import tqdm

    from kosmosg.verify import Golden, check_file, files

    golden = Golden(golden_dir, tokenizer)
    checks: list[Check] = []
    with tqdm(files(golden), unit="file", leave=False, disable=not sys.stderr.isatty()) as names:
        for name in names:
            names.set_postfix_str(name)
            checks += check_file(golden, name)
    failed = sum(not check.ok for check in checks)
    if as_json:
        print(json.dumps([_row(check) for check in checks], indent=2))
    else:
        print("\n".join(_table(checks)))
    if failed:
        raise typer.Exit(1)


def _row(check: "Check") -> dict[str, Any]:
    """JSON has no infinity; what could not be compared has no error."""
    error = check.error if check.error < float("inf") else None
    return {
        "case": check.case,
        "what": check.what,
        "error": error,
        "tolerance": check.tolerance,
        "ok": check.ok,
        "note": check.note,
    }


def _table(checks: list["Check"]) -> Iterator[str]:
    counts = Counter(check.case for check in checks)
    width = max(len(case) for case in counts)
    yield f"{'case':<{width}}  {'max error':>9}  {'tolerance':>9}         what"
    for check in _shown(checks):
        mark = "ok" if check.ok else "FAILED"
        yield (
            f"{check.case:<{width}}  {check.error:>9.1e}  {check.tolerance:>9.0e}  {mark:<6}  "
            + _words(check, counts[check.case])
        )
    failed = sum(not check.ok for check in checks)
    files = f"{len(counts)} files, {len(checks)} comparisons"
    yield f"{files}: {failed} FAILED" if failed else f"{files}: all within tolerance"


def _words(check: "Check", count: int) -> str:
    if not check.ok or count == 1:
        return f"{check.what}: {check.note}" if check.note else check.what
    return f"{check.what} (worst of {count})" if check.error else f"all {count} are equal"


def _shown(checks: Iterable["Check"]) -> Iterator["Check"]:
    """Yield what failed of each file, else its worst."""
    grouped: dict[str, list[Check]] = {}
    for check in checks:
        grouped.setdefault(check.case, []).append(check)
    for group in grouped.values():
        failed = [check for check in group if not check.ok]
        yield from failed or [max(group, key=lambda check: check.badness)]
