"""What a run tells while it runs: a progress line, a JSON line per entry, TensorBoard curves."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kosmosg.data.skips import Skips
from kosmosg.errors import ConfigError, KosmosGError

LOG_NAME = "log.jsonl"
SKIPS_NAME = "skips.json"


class RunLog:
    """Writes one run's log; on resuming it drops what lies after the resumed step.

    Args:
        run_dir: Where `log.jsonl` and `tensorboard/` go.
        first_step: Updates done so far.
        steps: Updates in all.
        batch_size: Records in a step, for the rate.

    Raises:
        ConfigError: If TensorBoard is not installed.
    """

    def __init__(self, run_dir: Path, *, first_step: int, steps: int, batch_size: int) -> None:
        self._board = _Board(run_dir / "tensorboard", first_step=first_step)
        path = run_dir / LOG_NAME
        kept = [entry for entry in read_log(run_dir) if entry["step"] <= first_step]
        path.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        # Without a buffer nothing is left to be written when the disk is full.
        self._file = path.open("ab", buffering=0)
        self._run_dir = run_dir
        # In a file each redraw is another line, so they come rarely there.
        interval = 0.5 if sys.stderr.isatty() else 30
        self._bar = tqdm(
            total=steps, initial=first_step, desc=run_dir.name, unit="step", mininterval=interval
        )
        self._batch_size = batch_size
        self._mark = (time.monotonic(), first_step)

    def advance(self) -> None:
        """Move the progress line by one step."""
        self._bar.update()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write values of one step everywhere; `loss` also stands in the progress line.

        Raises:
            KosmosGError: If the disk is full, or the log cannot be written for another reason.
        """
        then, done = self._mark
        now = time.monotonic()
        entry = {"step": step, **values}
        if step > done and "loss" in values:
            rate = (step - done) * self._batch_size / max(now - then, 1e-9)
            entry["samples_per_s"] = round(rate, 2)
            self._mark = (now, step)
            self._bar.set_postfix_str(
                f"loss {values['loss']:.4f}, {rate:.1f} samples/s", refresh=False
            )
        try:
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._board.write(step, {name: v for name, v in entry.items() if name != "step"})
        except OSError as error:
            raise self._cannot_write(error) from error

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
        self._board.close()


class _Board:
    """TensorBoard's event file, written at once.

    Not through SummaryWriter: that writes in a thread, which on a full disk dies with a traceback.
    """

    def __init__(self, directory: Path, *, first_step: int) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"training needs {error.name}; type: pip install 'kosmosg[train]'"
            ) from None

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
    """Return the entries of a run's log; a last line torn by a crash is left out."""
    path = run_dir / LOG_NAME
    if not path.exists():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries
