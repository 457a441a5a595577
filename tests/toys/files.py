"""Torch files by hand, honest ones and others."""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kosmosg.convert.sizes import Architecture
from toys.model import toy_pipeline


def torch_file(
    path: Path, data: bytes, storages: Mapping[str, bytes] | None = None, **more: bytes
) -> Path:
    """Write what torch.save would for this pickle and these storages; `more` are other entries."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for key, values in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", values)
        for name, values in more.items():
            archive.writestr(f"archive/{name}", values)
    return path


class Reduces:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def pickled(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)


def toy_architecture(**more: Any) -> Architecture:
    """What the weights of `toy_pipeline` do not show."""
    pipe = toy_pipeline()
    return Architecture(
        vision_heads=pipe.mllm.config["vision_heads"],
        aligner_heads=pipe.aligner.config["num_heads"],
        unet=public(pipe.unet.config),
        vae=public(pipe.vae.config),
        **more,
    )


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}
