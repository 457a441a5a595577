"""What a computation costs, found by running it on torch's meta device: no weights, no time."""

from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from kosmosg.model.magneto import MagnetoLayer

# What activation checkpointing computes a second time, one after another.
BLOCKS = (MagnetoLayer, ResnetBlock2D, BasicTransformerBlock)


class Tally:
    """Counts, while it is entered, the FLOPs of all products and the bytes kept for backward.

    A FLOP is a multiplication or an addition. Attention counts as the two products that it is,
    masked ones whole, four in backward, and keeps queries, keys, values and output, as the fused
    kernels do. Parameters are not counted as kept. Backward must run while it is entered too.

    Attributes:
        kept_bytes: What backward needs of forward.
        checkpointed_bytes: The same with activation checkpointing: the inputs of all blocks, and
            what is kept within the largest.
        recomputed_flops: What checkpointing computes a second time.

    Args:
        modules: Those that will run, on the meta device.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = list(modules)
        self._counter = FlopCounterMode(display=False)
        self._contexts = ExitStack()
        # By storage, as views share what they keep; the storage is held, so that none is reused.
        self._known: dict[int, object] = {}
        for module in self._modules:
            for tensor in [*module.parameters(), *module.buffers()]:
                self._known[_storage(tensor)] = tensor
        self._entered: list[tuple[int, int]] = []
        self._blocks: list[tuple[int, int]] = []  # kept within, kept of its input
        self.kept_bytes = 0
        self.recomputed_flops = 0

    def __enter__(self) -> "Tally":
        """Begin to count."""
        for block in (b for module in self._modules for b in module.modules()):
            if isinstance(block, BLOCKS):
                self._contexts.enter_context(block.register_forward_pre_hook(self._enter))
                self._contexts.enter_context(block.register_forward_hook(self._leave))
        hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        for context in (_Fused(), self._counter, hooks):
            self._contexts.enter_context(context)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End."""
        self._contexts.__exit__(kind, error, trace)

    @property
    def flops(self) -> int:
        """Return how many there were so far."""
        return self._counter.get_total_flops()

    @property
    def checkpointed_bytes(self) -> int:
        """See the class."""
        within = [kept for kept, _ in self._blocks]
        inputs = sum(size for _, size in self._blocks)
        return self.kept_bytes - sum(within) + inputs + max(within, default=0)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage not in self._known:
            self._known[storage] = tensor
            self.kept_bytes += tensor.untyped_storage().nbytes()
        return tensor

    def _enter(self, _block: nn.Module, _given: Any) -> None:  # noqa: ANN401 - torch's hook
        self._entered.append((self.kept_bytes, self.flops))

    def _leave(self, _block: nn.Module, given: Any, _result: Any) -> None:  # noqa: ANN401
        kept, flops = self._entered.pop()
        if self.kept_bytes > kept:  # else it is not learned through, and nothing is done twice
            self._blocks.append((self.kept_bytes - kept, given[0].untyped_storage().nbytes()))
            self.recomputed_flops += self.flops - flops


class _Fused(TorchFunctionMode):
    """Puts `_FusedAttention` where the meta device would write out and keep all scores."""

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _FusedAttention(torch.autograd.Function):
    """Attention's products, in shape alone."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ANN401
        out = (query @ key.mT) @ value
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, _out = ctx.saved_tensors
        needs_query, needs_key, needs_value = ctx.needs_input_grad
        weights = grad.new_empty(*query.shape[:-1], key.shape[-2])
        into = grad @ value.mT if needs_query or needs_key else weights
        return (
            into @ key if needs_query else None,
            into.mT @ query if needs_key else None,
            weights.mT @ grad if needs_value else None,
        )


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
