"""The time that a machine needs for the matrix products of a computation, and for nothing else.

The floor of a computation is the sum over its matrix products of max(bytes of the weight / read
bandwidth, time of that very product alone, its weight not in cache), both measured in the run that
measures the computation too. Everything else (biases, norms, GELU, softmax, casts, copies) is what
the ratio to it shows.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

CACHE_BYTES = 2**28
SQUARE = 2048


@dataclass(frozen=True)
class Product:
    """One matrix product: `rows` x `inner` times `inner` x `columns`, `count` times alike.

    `weight` says what is as large as a weight and so lies in memory: its second operand, which is
    "read", or what comes out, "made", as a weight's gradient is. `share` is how much of it is
    computed: half of a causal attention.
    """

    rows: int
    inner: int
    columns: int
    count: int = 1
    weight: Literal["read", "made", "none"] = "read"
    share: float = 1.0

    @property
    def flops(self) -> float:
        """Multiplications and additions, all of them."""
        return 2 * self.rows * self.inner * self.columns * self.count * self.share

    def nbytes(self, dtype: torch.dtype) -> int:
        """Bytes of what is as large as a weight."""
        size = {
            "read": self.inner * self.columns,
            "made": self.rows * self.columns,
            "none": 0,
        }
        return size[self.weight] * dtype.itemsize


class Recorder(TorchDispatchMode):
    """Notes the shape of every matrix product that runs meanwhile, backward passes among them."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        """Run the operation, and note it if it is a product."""
        result = func(*args, **(kwargs or {}))
        aten = torch.ops.aten
        if func.overloadpacket in (aten.addmm, aten.mm):
            left, right = args[-2:]
            # A weight's gradient is the only product whose first operand is turned.
            turned = left.stride(0) == 1 and left.stride(1) > 1
            weight = "made" if turned else "read"
            self.products.append(Product(len(left), len(right), right.shape[1], weight=weight))
        elif func.overloadpacket in (aten.bmm, aten.baddbmm):
            left, right = args[-2:]
            count, rows, inner = left.shape
            self.products.append(Product(rows, inner, right.shape[2], count, "none"))
        elif func.overloadpacket is aten.convolution:
            weight = args[1]
            positions = result[:, 0].numel()
            self.products.append(Product(positions, weight[0].numel(), len(weight)))
        elif func is aten._scaled_dot_product_flash_attention_for_cpu.default:
            self._attention(*args[:3], causal=len(args) > 4 and args[4], passes=2)
        elif func is aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
            self._attention(*args[1:4], causal=args[7], passes=5)
        elif "attention" in func.name() or func.overloadpacket is aten.convolution_backward:
            raise RuntimeError(f"{func.name()} is not counted")
        return result

    def _attention(
        self, query: Tensor, key: Tensor, _: Tensor, *, causal: bool, passes: int
    ) -> None:
        """Note the products of a fused attention: scores and sums, or what the gradients need."""
        batch, heads, rows, head_dim = query.shape
        share = 0.5 if causal else 1.0
        one = Product(rows, head_dim, key.shape[2], batch * heads, "none", share)
        self.products += [one] * passes


class Rates:
    """Measures products as calls that may take turns with others; least times say the floor."""

    def __init__(self, products: Iterable[Product], dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._products = set(products)
        largest = max(CACHE_BYTES, *(product.nbytes(dtype) for product in self._products))
        # What is read and what is written, shared by all products: only its place matters.
        self._pools = [torch.randn(largest // dtype.itemsize).to(dtype) for _ in range(2)]
        self._read = torch.ones(CACHE_BYTES)
        self._square = torch.randn(SQUARE, SQUARE).to(dtype)

    def calls(self) -> dict[Any, Callable[[], object]]:
        """Return the calls to be timed: each product in two layouts, and the machine's limits."""
        found: dict[Any, Callable[[], object]] = {
            "read": self._read.sum,
            "large": lambda: self._square @ self._square.t(),
        }
        for product in self._products:
            for layout in ("plain", "turned"):
                found[product, layout] = self._call(product, layout)
        return found

    def bandwidth(self, least: Mapping[Any, float]) -> float:
        """Return the bytes read in a second."""
        return self._read.nbytes / least["read"]

    def rate(self, least: Mapping[Any, float]) -> float:
        """Return the FLOPs of a large product in a second."""
        return 2 * SQUARE**3 / least["large"]

    def floor(self, products: Sequence[Product], least: Mapping[Any, float]) -> float:
        """Return the seconds that these products need, each in its better layout."""
        total = 0.0
        for product in products:
            taken = min(least[product, layout] for layout in ("plain", "turned"))
            alone = taken / self._turns(product) * product.share
            total += max(product.nbytes(self._dtype) / self.bandwidth(least), alone)
        return total

    def _turns(self, product: Product) -> int:
        if product.weight == "none":
            return 1
        return max(1, CACHE_BYTES // product.nbytes(self._dtype))

    def _call(self, product: Product, layout: str) -> Callable[[], object]:
        """Return a call that multiplies as often as fills the cache with weights."""
        rows, inner, columns, count = product.rows, product.inner, product.columns, product.count
        plain = layout == "plain"
        if product.weight == "none":
            left = torch.randn(count, rows, inner).to(self._dtype)
            right = torch.randn(count, columns, inner).to(self._dtype).transpose(1, 2)
            right = right.contiguous() if plain else right
            return lambda: torch.bmm(left, right)
        source, target = self._pools
        pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        for turn in range(self._turns(product)):
            if product.weight == "read":
                left = torch.randn(rows, inner).to(self._dtype) if not pairs else pairs[0][0]
                weight = _piece(source, turn, inner * columns)
                right = weight.view(inner, columns) if plain else weight.view(columns, inner).t()
                out = torch.empty(rows, columns, dtype=self._dtype) if not pairs else pairs[0][2]
            else:
                left = torch.randn(inner, rows).to(self._dtype).t() if not pairs else pairs[0][0]
                right = torch.randn(inner, columns).to(self._dtype) if not pairs else pairs[0][1]
                weight = _piece(target, turn, rows * columns)
                out = weight.view(rows, columns) if plain else weight.view(columns, rows).t()
            pairs.append((left, right, out))

        def multiply() -> None:
            for left, right, out in pairs:
                torch.mm(left, right, out=out)

        return multiply


def _piece(pool: Tensor, turn: int, size: int) -> Tensor:
    return pool[turn * size : (turn + 1) * size]


def least_seconds(calls: Mapping[Any, Callable[[], object]], repeats: int) -> dict[Any, float]:
    """Return the least time of each call.

    They take turns, so that what else the machine does meets floor and model alike, and each is
    taken at its best, where it does nothing else.
    """
    least = dict.fromkeys(calls, math.inf)
    for turn in range(repeats + 1):
        for name, call in calls.items():
            began = perf_counter()
            call()
            if turn:  # the first is not like the others
                least[name] = min(least[name], perf_counter() - began)
    return least


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most memory this process holds during the work (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    work()
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) * 1024


@torch.no_grad()
def fill(module: nn.Module) -> nn.Module:
    """Return a module on the meta device with random weights, made in place."""
    module = module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    for name, buffer in module.named_buffers():
        assert name.endswith("position_ids"), name
        buffer.copy_(torch.arange(buffer.numel()).view_as(buffer))
    return module
