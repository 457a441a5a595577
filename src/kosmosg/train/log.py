"""What a run tells while it runs: a progress line, a JSON line per entry, TensorBoard curves."""

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from kosmosg.data.skips import Skips
from kosmosg.errors import KosmosGError

LOG_NAME = "log.jsonl"
SKIPS_NAME = "skips.json"

T = TypeVar("T")


class RunLog:
    """Writes one run's log; on resuming it drops what lies after the resumed step, and notes it.

    Args:
        run_dir: Where `log.jsonl` and `tensorboard/` go.
        first_step: Updates done so far.
        steps: Updates in all.
        batch_size: Records in a step, for the rate.
        counts: What a step's `weight` counts, such as tokens; None: nothing but records.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        first_step: int,
        steps: int,
        batch_size: int,
        counts: str | None = None,
    ) -> None:
        self._board = _board(run_dir / "tensorboard", first_step=first_step)
        self._run_dir = run_dir
        path = run_dir / LOG_NAME
        kept = [entry for entry in read_log(run_dir) if entry["step"] <= first_step]
        self._keep(LOG_NAME, "".join(_line(entry) for entry in kept))
        # Without a buffer nothing is left to be written when the disk is full.
        self._file = path.open("ab", buffering=0)
        if first_step >= steps:
            sys.stderr.write(f"{run_dir} is finished: its {steps} steps are done\n")
        elif first_step:
            sys.stderr.write(f"{run_dir} goes on after step {first_step} of {steps}\n")
            self.note(first_step, "resumed")
        # In a file each redraw is another line, so they come rarely there.
        interval = 0.5 if sys.stderr.isatty() else 30
        self._bar = tqdm(
            total=steps,
            initial=first_step,
            desc=run_dir.name,
            unit="step",
            mininterval=interval,
            dynamic_ncols=True,
            bar_format="{desc} {n_fmt}/{total_fmt}, {elapsed} gone, {remaining} left{postfix}",
        )
        self._batch_size = batch_size
        self._counts = counts
        self._mark = (time.monotonic(), first_step)
        self._waited = 0.0

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; the time until each of them is there counts as waiting for data."""
        pending = iter(items)
        while True:
            began = time.monotonic()
            try:
                item = next(pending)
            except StopIteration:
                return
            finally:
                self._waited += time.monotonic() - began
            yield item

    def advance(self) -> None:
        """Move the progress line by one step."""
        self._bar.update()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write values of one step everywhere.

        With a `loss` come how fast the steps since the last one were, which share of the time they
        waited for data, and the time of day. `weight`, the terms of a step's loss, is not written:
        it is for the rate.

        Raises:
            KosmosGError: If the disk is full, or the log cannot be written for another reason.
        """
        entry = {name: value for name, value in values.items() if name != "weight"}
        if "loss" in values:
            rates = self._rates(step, values.get("weight"))
            entry |= rates
            self._bar.set_postfix_str(self._told(entry), refresh=False)
        self._append({"step": step, **entry, **({"time": _now()} if "loss" in entry else {})})
        if self._board:
            try:
                self._board.write(step, entry)
            except OSError as error:
                raise self._cannot_write(error) from error

    def note(self, step: int, event: str) -> None:
        """Write that something happened after this step, for `kosmosg runs` to mark.

        Raises:
            KosmosGError: As `write`.
        """
        self._append({"step": step, "event": event, "time": _now()})

    def write_skips(self, step: int, skips: Skips) -> None:
        """Write how many records were left out since the run began or went on, if any were.

        `skips.json` has the reasons and names the first records of each.

        Raises:
            KosmosGError: As `write`.
        """
        counts = {**skips.reasons, **skips.noted}
        if not counts:
            return
        values = {f"records/{what}": float(count) for what, count in counts.items()}
        self.write(step, {"records_skipped": float(skips.num_skipped), **values})
        story = {
            "kept": skips.num_kept,
            "skipped": dict(skips.reasons.most_common()),
            "noted": dict(skips.noted.most_common()),
            "named": dict(skips.named),  # a copy: a thread may be reading on
        }
        self._keep(SKIPS_NAME, json.dumps(story, indent=1, ensure_ascii=False) + "\n")

    def _rates(self, step: int, weight: float | None) -> dict[str, float]:
        (then, done), now = self._mark, time.monotonic()
        elapsed, steps = max(now - then, 1e-9), step - done
        rates = {"samples_per_s": round(steps * self._batch_size / elapsed, 2)}
        if self._counts and weight is not None:
            rates[f"{self._counts}_per_s"] = round(steps * weight / elapsed, 2)
        rates["data_wait"] = round(min(1.0, self._waited / elapsed), 4)
        self._mark, self._waited = (now, step), 0.0
        return rates

    def _told(self, entry: Mapping[str, float]) -> str:
        """Return the progress line's words."""
        counts = self._counts or "samples"
        parts = [f"loss {entry['loss']:.4f}"]
        if of := [f"{n[5:]} {v:.4f}" for n, v in entry.items() if n.startswith("loss/")]:
            parts[0] += f" ({', '.join(of)})"
        if "grad_norm" in entry:
            parts.append(f"grad {entry['grad_norm']:.3g}")
        if "lr" in entry:
            parts.append(f"lr {entry['lr']:.2e}")
        parts.append(f"{entry.get(f'{counts}_per_s', entry['samples_per_s']):.4g} {counts}/s")
        return ", ".join([*parts, f"data wait {entry['data_wait']:.0%}"])

    def _append(self, entry: Mapping[str, Any]) -> None:
        try:
            self._file.write(_line(entry).encode())
        except OSError as error:
            raise self._cannot_write(error) from error

    def _keep(self, name: str, text: str) -> None:
        part = self._run_dir / f".{name}.part"
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(self._run_dir / name)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> KosmosGError:
        return KosmosGError(
            f"cannot write the log in {self._run_dir}: {error.strerror or error}; make room,"
            " then continue with --resume (the checkpoints are intact)"
        )

    def close(self) -> None:
        """Finish the progress line and the files."""
        self._bar.close()
        self._file.close()
        if self._board:
            self._board.close()


def _now() -> float:
    return round(time.time(), 1)


def _line(entry: Mapping[str, Any]) -> str:
    # JSON knows no NaN: a value that is no number is null.
    values = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in entry.items()
    }
    return json.dumps(values) + "\n"


def _board(directory: Path, *, first_step: int) -> "_Board | None":
    try:
        return _Board(directory, first_step=first_step)
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"no TensorBoard curves: {error.name} is not installed (pip install 'kosmosg[train]');"
            f" {LOG_NAME} has the same values, and `kosmosg runs` draws them\n"
        )
        return None


class _Board:
    """TensorBoard's event file, written at once.

    Not through SummaryWriter: that writes in a thread, which on a full disk dies with a traceback.
    """

    def __init__(self, directory: Path, *, first_step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        directory.mkdir(exist_ok=True)
        # pyright does not see classes that protobuf makes at import.
        events: Any = event_pb2
        summaries: Any = summary_pb2
        self._event, self._summary = events.Event, summaries.Summary
        name = f"events.out.tfevents.{time.time():.6f}.{os.getpid()}"
        self._file = (directory / name).open("ab", buffering=0)
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        # Tells TensorBoard to forget what an interrupted run had written beyond this step.
        start = events.SessionLog(status=events.SessionLog.START)
        self._write(step=first_step + 1, session_log=start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [
            self._summary.Value(tag=name, simple_value=value) for name, value in values.items()
        ]
        self._write(step=step, summary=self._summary(value=scalars))

    def _write(self, **fields: object) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())

    def close(self) -> None:
        self._file.close()


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's log; lines that a crash has torn are left out."""
    path = run_dir / LOG_NAME
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
    return entries
