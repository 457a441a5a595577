"""What is installed, what is wrong with it, and what to type to mend it."""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NANO = Path(__file__).parent / "nano"
SUMS = "SHA256SUMS"  # as `sha256sum -c` reads it


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `remedy` is empty where nothing is wrong."""

    what: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Yield what there is to say about this installation, the cheap things first."""
    yield Finding(f"Python {sys.version.split()[0]} at {sys.executable}")
    yield from _requirements()
    yield from _torch()
    yield _torchvision()
    yield from _nano()


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


def _torch() -> Iterator[Finding]:
    """Yield where torch computes, and what keeps it from computing there."""
    remedy = "./scripts/setup, with TORCH if needed"
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding(f"torch does not import ({_line(error)})", remedy)
        return
    try:
        torch.zeros(1).numpy()
    except RuntimeError as error:
        yield Finding(f"torch and numpy do not fit ({_line(error)})", remedy)
    gpu = Path("/dev/nvidia0").exists() or Path("/dev/dxg").exists()  # the latter under Windows
    if torch.cuda.is_available():
        yield Finding(f"torch computes on {torch.cuda.get_device_name()}")
    else:
        yield without_gpu(torch.version.cuda, torch.version.hip, gpu_present=gpu)
        yield Finding(
            f"torch computes on the CPU, {torch.get_num_threads()} of {os.cpu_count()} cores"
        )


def without_gpu(cuda: str | None, hip: str | None, *, gpu_present: bool) -> Finding:
    """Return what there is to say about a torch that sees no GPU.

    Args:
        cuda: The CUDA that torch was built for, None for another build.
        hip: The ROCm likewise.
        gpu_present: Whether the machine has an NVIDIA GPU.
    """
    if gpu_present and cuda is None:
        return Finding(
            f"this torch is built for {'ROCm' if hip else 'CPUs'}, and there is an NVIDIA GPU",
            'TORCH="torch --index-url URL" ./scripts/setup, with the index of a CUDA build',
        )
    if gpu_present:
        return Finding(
            f"torch is built for CUDA {cuda} and cannot use the GPU",
            "install a driver that is new enough (nvidia-smi says which CUDA it knows), or "
            "a torch built for an older CUDA",
        )
    return Finding(f"torch is built for {f'CUDA {cuda}' if cuda else 'CPUs'}; no NVIDIA GPU here")


def _torchvision() -> Finding:
    """A torchvision of another torch breaks transformers, which looks for it and imports it."""
    if importlib.util.find_spec("torchvision") is None:
        return Finding("no torchvision, and none is needed")
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # noqa: BLE001 -- whatever a broken package raises
        return Finding(
            f"torchvision is broken ({_line(error)})",
            "pip uninstall torchvision, or install the one that belongs to your torch",
        )
    return Finding("torchvision imports")


def _nano() -> Iterator[Finding]:
    """Yield whether each file of the shipped model is there and has not changed."""
    remedy = "install kosmosg again: the model is part of the package"
    try:
        lines = (NANO / SUMS).read_text(encoding="utf-8").splitlines()
        wanted = {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}
    except (OSError, ValueError) as error:
        yield Finding(f"the shipped model is not whole ({_line(error)})", remedy)
        return
    wrong = 0
    for name, digest in wanted.items():
        try:
            with (NANO / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            found = None
            yield Finding(f"the shipped {name} cannot be read ({error.strerror})", remedy)
        if found not in (None, digest):
            yield Finding(f"the shipped {name} is damaged (its sha256 differs)", remedy)
        wrong += found != digest
    if not wrong:
        yield Finding(f"the shipped model is whole: {len(wanted)} files in {NANO}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
