"""What is installed, what is wrong with it, and what to type to mend it."""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NANO = Path(__file__).parent / "nano"


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `remedy` is empty where nothing is wrong."""

    what: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Yield what there is to say about this installation, the cheap things first."""
    yield Finding(f"Python {sys.version.split()[0]} at {sys.executable}")
    yield from _requirements()
    yield _torch()
    yield _torchvision()
    yield _nano()


def _requirements() -> Iterator[Finding]:
    """Yield each package that kosmosg needs, with the version that is there."""
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires("kosmosg") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue  # of an extra
        remedy = f"pip install -c constraints.txt '{wanted.name}{wanted.specifier}'"
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(f"{wanted.name} is missing", remedy)
            continue
        fits = wanted.specifier.contains(version, prereleases=True)
        yield Finding(f"{wanted.name} {version}", "" if fits else remedy)


def _torch() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding(f"torch does not import ({error})", "./scripts/setup, with TORCH if needed")
    if torch.cuda.is_available():
        return Finding(f"torch computes on {torch.cuda.get_device_name()}")
    return Finding(
        f"torch computes on the CPU, {torch.get_num_threads()} of {os.cpu_count()} cores"
    )


def _torchvision() -> Finding:
    """A torchvision of another torch breaks transformers, which looks for it and imports it."""
    if importlib.util.find_spec("torchvision") is None:
        return Finding("no torchvision, and none is needed")
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return Finding(
            f"torchvision is broken ({' '.join(str(error).split())})",
            "pip uninstall torchvision, or install the one that belongs to your torch",
        )
    return Finding("torchvision imports")


def _nano() -> Finding:
    remedy = "install kosmosg again: the model is part of the package"
    try:
        parts = json.loads((NANO / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return Finding(f"the shipped model is not whole ({error})", remedy)
    names = [name for name, kind in parts.items() if not name.startswith("_") and kind[0]]
    empty = [name for name in [*names, "tokenizer"] if not any((NANO / name).glob("*"))]
    if empty:
        return Finding(f"the shipped model lacks {', '.join(empty)}", remedy)
    return Finding(f"the shipped model is in {NANO}")
