"""What of a model travels together when it is sharded: units, each gathered in one message."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from kosmosg.model.magneto import MagnetoLayer
from kosmosg.model.mllm import MLLM


@dataclass(frozen=True, eq=False)
class Unit:
    """A module whose parameters, but for those of units within it, are gathered when it is called.

    Attributes:
        module: Called as a whole.
        parameters: Those that are shared out.
        kind: A "block" of the model travels in the precision of the products where a GPU computes,
            what else the model has ("root") in float32, and what is "frozen" beside it as it is.
        kept: Whole from its call until the backward pass is over.
        may_lack: Whether a batch may leave some of what learns in it without a gradient.
    """

    module: nn.Module
    parameters: tuple[nn.Parameter, ...]
    kind: Literal["block", "root", "frozen"]
    kept: bool = False
    may_lack: bool = False

    def padded(self, num_ranks: int, *, learns: bool = False) -> int:
        """Return how many numbers all shards hold: each parameter is cut along its first dimension.

        Args:
            num_ranks: That share it.
            learns: Count only what has gradients.
        """
        return sum(
            -(-len(one) // num_ranks) * num_ranks * one[0].numel()
            for one in map(_with_rows, self.parameters)
            if one.requires_grad or not learns
        )


def learning_units(model: nn.Module, frozen: Literal["whole", "sharded"]) -> list[Unit]:
    """Return the units of the model that learns: each Magneto layer, then what else each stack has.

    Frozen parameters are in none of them, or with the part that they belong to.
    """
    spread = has_parameters if frozen == "sharded" else learns
    known = {p for p in model.parameters() if not p.requires_grad} if spread is learns else set()
    blocks = spread_blocks(model, spread)
    units = [_unit(block, known, kind="block") for block in blocks]
    for root in _roots(model, spread):
        if root not in blocks:
            # What learns stays together until the backward pass is over: `MLLM.logits`, which is
            # called beside `forward`, finds the embedding there. Registered as a forward method it
            # would reduce the embedding's gradient twice.
            lacks = isinstance(root, MLLM)  # of pictures, in a batch of words
            units.append(_unit(root, known, kind="root", kept=learns(root), may_lack=lacks))
    return units


def frozen_units(part: nn.Module) -> list[Unit]:
    """Return the units of a part that is frozen and called as a whole: its blocks, then the rest.

    A block is a member of an outermost list of modules, as the U-Net, the VAE and CLIP have them.
    """
    known: set[nn.Parameter] = set()
    blocks = [block for block in _listed(part) if has_parameters(block)]
    return [_unit(module, known, kind="frozen") for module in (*blocks, part)]


def learns(module: nn.Module) -> bool:
    """Return whether any parameter does."""
    return any(parameter.requires_grad for parameter in module.parameters())


def has_parameters(module: nn.Module) -> bool:
    """Return whether there is any."""
    return any(True for _ in module.parameters())


def spread_blocks(model: nn.Module, spread: Callable[[nn.Module], bool]) -> list[nn.Module]:
    """Return the layers of M, N and the language model of which `spread` is true."""
    return [m for m in model.modules() if isinstance(m, MagnetoLayer) and spread(m)]


def _unit(module: nn.Module, known: set[nn.Parameter], **how: Any) -> Unit:  # noqa: ANN401
    """Return a unit of what is not known yet, and note it."""
    own = tuple(p for p in module.parameters() if p not in known)
    known.update(own)
    return Unit(module, own, **how)


def _with_rows(parameter: Tensor) -> Tensor:
    return parameter if parameter.ndim else parameter[None]


def _roots(module: nn.Module, spread: Callable[[nn.Module], bool]) -> list[nn.Module]:
    """Return the modules that hold what is spread outside the blocks, each called as a whole.

    What does nothing but hold stacks of blocks, such as AlignerNet, is not called as a whole.
    """
    parts = [child for child in module.children() if spread(child)]
    own = any(spread(nn.ParameterList([p])) for p in module.parameters(recurse=False))
    is_stack = [any(isinstance(m, MagnetoLayer) for m in part.modules()) for part in parts]
    if own or not all(is_stack) or isinstance(module, MagnetoLayer):
        return [module]
    return [root for part in parts for root in _roots(part, spread)]


def _listed(module: nn.Module) -> Sequence[nn.Module]:
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [block for child in module.children() for block in _listed(child)]
