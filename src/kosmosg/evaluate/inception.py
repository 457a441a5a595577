"""The Inception network that FID is defined by, under the names of its published weights.

It is Inception v3 of TensorFlow's model zoo (2015), not torchvision's: pooled branches leave
padding out of their averages, and the last block takes a maximum.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from kosmosg.convert import pickled
from kosmosg.convert.stored import StoredTensor, read_safetensors
from kosmosg.errors import CheckpointError

SIDE = 299
NUM_FEATURES = 2048
Features = Float[Tensor, "images 2048"]
Size = int | tuple[int, int]


class _Conv(nn.Module):
    """Convolution without bias, normalisation, ReLU."""

    def __init__(
        self, inner: int, outer: int, kernel: Size, *, stride: int = 1, padding: Size = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outer, eps=0.001)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(hidden_states)))


def _mean(hidden_states: Tensor) -> Tensor:
    return F.avg_pool2d(hidden_states, 3, stride=1, padding=1, count_include_pad=False)


class _Mixed35(nn.Module):
    """A block on 35 x 35 positions."""

    def __init__(self, inner: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inner, 64, 1)
        self.branch5x5_1 = _Conv(inner, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Conv(inner, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, padding=1)
        self.branch_pool = _Conv(inner, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_mean(x))], 1)


class _To17(nn.Module):
    """From 35 x 35 positions to 17 x 17."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(inner, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(inner, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class _Mixed17(nn.Module):
    """A block on 17 x 17 positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(768, 192, 1)
        self.branch7x7_1 = _Conv(768, width, 1)
        self.branch7x7_2 = _Conv(width, width, (1, 7), padding=(0, 3))
        self.branch7x7_3 = _Conv(width, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = _Conv(768, width, 1)
        self.branch7x7dbl_2 = _Conv(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = _Conv(width, width, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = _Conv(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = _Conv(width, 192, (1, 7), padding=(0, 3))
        self.branch_pool = _Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_mean(x))], 1)


class _To8(nn.Module):
    """From 17 x 17 positions to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(768, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(768, 192, 1)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        three = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([three, self.branch7x7x3_4(seven), F.max_pool2d(x, 3, stride=2)], 1)


class _Mixed8(nn.Module):
    """A block on 8 x 8 positions; `last` pools by the maximum."""

    def __init__(self, inner: int, *, last: bool) -> None:
        super().__init__()
        self.last = last
        self.branch1x1 = _Conv(inner, 320, 1)
        self.branch3x3_1 = _Conv(inner, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = _Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = _Conv(inner, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = _Conv(inner, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.last else _mean(x)
        return torch.cat(
            [
                self.branch1x1(x),
                *(self.branch3x3_2a(three), self.branch3x3_2b(three)),
                *(self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)),
                self.branch_pool(pooled),
            ],
            1,
        )


class Inception(nn.Module):
    """Pictures of 299 x 299 to the 2,048 numbers that FID compares.

    Source:
        Szegedy et al. 2015, as trained for TensorFlow; names as in torch-fidelity's weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b = _Mixed35(192, 32)
        self.Mixed_5c = _Mixed35(256, 64)
        self.Mixed_5d = _Mixed35(288, 64)
        self.Mixed_6a = _To17(288)
        self.Mixed_6b = _Mixed17(128)
        self.Mixed_6c = _Mixed17(160)
        self.Mixed_6d = _Mixed17(160)
        self.Mixed_6e = _Mixed17(192)
        self.Mixed_7a = _To8()
        self.Mixed_7b = _Mixed8(1280, last=False)
        self.Mixed_7c = _Mixed8(2048, last=True)

    def forward(self, pixels: Float[Tensor, "images 3 299 299"]) -> Features:
        """Return the features of pictures whose values are bytes, 0 to 255."""
        x = self.Conv2d_1a_3x3((pixels - 128) / 128)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(x))
        x = self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2))
        x = F.max_pool2d(self.Conv2d_4a_3x3(x), 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))


def load_inception(path: Path) -> Inception:
    """Return the network with the weights of a file, in evaluation mode, frozen.

    Args:
        path: A safetensors file or a torch file (nothing in it is executed) with torch-fidelity's
            names; its classifier is left out.

    Raises:
        CheckpointError: If it cannot be read, or holds another network.
    """
    stored = read_safetensors(path) if path.suffix == ".safetensors" else pickled.load(path)
    if not isinstance(stored, dict) or not all(_is_tensor(value) for value in stored.values()):
        raise CheckpointError(f"{path} is not a state of tensors by name; fetch it again")
    kept = {name: value for name, value in stored.items() if not _left_out(name)}
    network = Inception()
    own = {name: value for name, value in network.state_dict().items() if not _left_out(name)}
    odd = sorted(own.keys() ^ kept.keys()) + [
        name for name in own if name in kept and own[name].shape != kept[name].shape
    ]
    if odd:
        raise CheckpointError(
            f"{path} does not fit FID's Inception: {odd[0]} and {len(odd) - 1} more are missing,"
            " unexpected or of another shape; get torch-fidelity's weights"
        )
    # What counts batches is no weight, and not in old files.
    network.load_state_dict({name: one.read() for name, one in kept.items()}, strict=False)
    return network.eval().requires_grad_(False)


def _is_tensor(value: object) -> bool:
    return isinstance(value, StoredTensor)


def _left_out(name: str) -> bool:
    return name.startswith("fc.") or name.endswith("num_batches_tracked")


def resize_as_tensorflow(
    pixels: Iterable[UInt8[Tensor, "3 _ _"]],
) -> Float[Tensor, "images 3 299 299"]:
    """Return pictures of any sizes at 299 x 299, as TensorFlow 1 resized: aliased, corners first.

    Pixel number n of the result lies at n * side / 299 of the picture, without the half pixel that
    other programs add.

    Source:
        What torch-fidelity does, and torchmetrics did when the paper was written.
    """
    return torch.stack([_resized(picture.float()) for picture in pixels])


def _resized(picture: Float[Tensor, "3 height width"]) -> Float[Tensor, "3 299 299"]:
    for axis in (1, 2):
        side = picture.shape[axis]
        places = torch.arange(SIDE, device=picture.device, dtype=torch.float32) * (side / SIDE)
        low = places.floor().long()
        high = (low + 1).clamp_max(side - 1)
        share = (places - low).reshape([-1 if i == axis else 1 for i in range(3)])
        below, above = picture.index_select(axis, low), picture.index_select(axis, high)
        picture = below + (above - below) * share
    return picture
