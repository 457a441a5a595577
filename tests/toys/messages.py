"""What a process tells the others, counted operation by operation."""

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

_C10D = {
    "c10d::_allgather_base_": ("all_gather", 0, 2),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", 1, 2),
    "c10d::allreduce_": ("all_reduce", 0, 1),
}
_FUNCTIONAL = {"_c10d_functional::all_reduce": "all_reduce"}


class Messages(TorchDispatchMode):
    """Adds up, in `count`, the bytes of whole tensors by operation and type.

    An all-gather counts what comes out, a reduce-scatter what goes in. Operations that are not
    known count 1 each under their own name, so that none is overlooked. What a rank tells itself
    alone counts nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(one, DTensor) for one in types):
            return NotImplemented  # it comes again, as what it is made of
        self._note(func.name().removesuffix(".default"), args)
        return func(*args, **(kwargs or {}))

    def _note(self, name: str, args: Any) -> None:
        if name in _C10D:
            kind, place, group = _C10D[name]
            sent = args[place]
            size = dist.ProcessGroup.unbox(args[group]).size()
        elif name in _FUNCTIONAL:
            kind, sent = _FUNCTIONAL[name], args[0]
            size = dist.distributed_c10d._resolve_process_group(args[-1]).size()
        else:
            if "c10d" in name and not name.endswith(("wait_tensor", "_wrap_tensor_autograd")):
                self.count[name] += 1
            return
        tensors = [sent] if isinstance(sent, torch.Tensor) else sent
        if size > 1:
            kind = f"{kind} {str(tensors[0].dtype).removeprefix('torch.')}"
            self.count[kind] += sum(tensor.nbytes for tensor in tensors)
            self.count[f"{kind} messages"] += 1
