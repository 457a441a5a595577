"""What a run tells while it runs: a progress line, a JSON line per entry, TensorBoard curves."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kosmosg.errors import ConfigError

LOG_NAME = "log.jsonl"


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
        # Imported late: it costs a second, and only training needs it.
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"training needs {error.name}; type: pip install 'kosmosg[train]'"
            ) from None

        path = run_dir / LOG_NAME
        kept = [entry for entry in read_log(run_dir) if entry["step"] <= first_step]
        path.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1)
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
        """Write values of one step everywhere; `loss` also stands in the progress line."""
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
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        for name, value in entry.items():
            if name != "step":
                self._board.add_scalar(name, value, step)

    def say(self, line: str) -> None:
        """Print one line above the progress line, on standard error."""
        self._bar.write(line, file=self._bar.fp)

    def close(self) -> None:
        """Finish the progress line and the files."""
        self._bar.close()
        self._file.close()
        self._board.close()


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
