"""Run directories written by hand: a log and a configuration, as a run leaves them."""

import json
from pathlib import Path


def written(directory: Path, lines, config=None) -> Path:
    """Write a run of these entries; a str is a line as it stands, torn or not."""
    directory.mkdir(parents=True)
    (directory / ".lock").touch()
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    if text:
        (directory / "log.jsonl").write_text("\n".join(text) + "\n")
    (directory / "config.json").write_text(json.dumps(config or {"train": {"steps": 100}}))
    return directory


def losses(values, *, every=10, **more):
    """Return entries with these losses, every so many steps."""
    steps = range(every, every * (len(values) + 1), every)
    return [{"step": s, "loss": v, **more} for s, v in zip(steps, values, strict=True)]
