"""Where to compute, and in which precision, where nobody says."""

from dataclasses import dataclass
from typing import Literal

import torch

from kosmosg.errors import ConfigError

DType = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Devices:
    """What a machine has to compute on beside its CPU."""

    num_cuda: int = 0
    has_mps: bool = False

    @property
    def names(self) -> list[str]:
        """As torch names them, the best first; `cuda` is the first of several."""
        cuda = [f"cuda:{index}" for index in range(self.num_cuda)]
        return [*(["cuda"] if cuda else []), *cuda, *(["mps"] if self.has_mps else []), "cpu"]


def find() -> Devices:
    """Return what this machine has, and this torch was built for."""
    return Devices(
        num_cuda=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        has_mps=torch.backends.mps.is_available(),
    )


def choose(device: str, there: Devices) -> str:
    """Return the device that is meant: `auto` is the best there is.

    Raises:
        ConfigError: If there is no such device.
    """
    if device == "auto":
        return there.names[0]
    check(device, there)
    return device


def of_rank(device: str, there: Devices, local_rank: int) -> str:
    """Return the device of one of a machine's processes: each takes its own of several GPUs.

    Args:
        device: As chosen; a GPU that is named by its number stays.
        there: What the machine has.
        local_rank: Which of the machine's processes, as torchrun numbers them.
    """
    if device == "cuda" and there.num_cuda > 1:
        return f"cuda:{local_rank % there.num_cuda}"
    return device


def check(device: str, there: Devices) -> None:
    """Pass a device that a machine has.

    Raises:
        ConfigError: Naming those that it has.
    """
    if device not in there.names:
        raise ConfigError(f"this machine has no device {device!r}; it has {', '.join(there.names)}")


def choose_dtype(dtype: Literal["auto"] | DType, device: str) -> DType:
    """Return the precision that is meant: `auto` is float32 on a CPU and float16 elsewhere.

    float16 and not bfloat16, where there are both: it is what the released model was trained and
    is drawn with, every GPU has it, and it is ten times closer to float32 (nano's conditions: 5e-4
    against 5e-3; the largest value in any part is 157 of 65,504).

    Source:
        NUMERICS sections 10 and 14 (the released demo runs in float16).
    """
    if dtype != "auto":
        return dtype
    return "float32" if device == "cpu" else "float16"
