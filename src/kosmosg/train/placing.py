"""The model and the stage of a run, on its devices."""

import copy
import functools

from torch import nn

from kosmosg.train import distributed
from kosmosg.train.distributed import Ranks
from kosmosg.train.stage import HoldingStage, Stage
from kosmosg.train.trainconfig import TrainConfig


def prepared(model: nn.Module, config: TrainConfig, ranks: Ranks) -> nn.Module:
    """Return what trains: the model on its device, or a copy that is sharded or otherwise changed.

    The caller's own model keeps its plain modules, so that it can be used and saved afterwards.
    """
    is_plain = config.recompute == config.compiled == "nothing"
    if ranks.mesh is None and is_plain:
        return model.to(ranks.device)
    model = copy.deepcopy(model).to(ranks.device)
    if config.recompute == "blocks":
        distributed.recompute_blocks(model)
    if config.compiled == "blocks":
        for block in distributed.blocks(model):
            block.compile()
    if ranks.mesh is not None:
        distributed.shard(
            model,
            ranks,
            precision=config.precision,
            frozen=config.frozen_parts,
            gathered=config.gathered,
        )
    return model


def shared(stage: Stage, config: TrainConfig, ranks: Ranks) -> Stage:
    """Return the stage, or one like it that shares its own frozen parts with other ranks."""
    if ranks.mesh is None or config.frozen_parts == "whole":
        return stage
    if not isinstance(stage, HoldingStage):
        return stage
    return stage.sharded(functools.partial(distributed.shard_frozen, ranks=ranks))
