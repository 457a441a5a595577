"""Runs at toy size in several processes, as torchrun starts them: tests run this as a program."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kosmosg.train.loop import TrainConfig, fit
from toys.training import Pairs, Regression, net, train_config

STEPS = 20


def stage_parts(number: int) -> tuple[Any, Any, Any, TrainConfig]:
    """Return model, stage, stream and configuration of one of the paper's stages, dropout 0."""
    from kosmosg.model.magneto import Attention
    from kosmosg.train.run import Parts, make_stage
    from kosmosg.train.stage1_language import LanguageConfig
    from kosmosg.train.stage2_align import AlignConfig
    from kosmosg.train.stage3_instruct import InstructConfig
    from toys.stages import Captions, Documents, composed, toys

    made = toys()
    for module in made.model.modules():
        if isinstance(module, Attention):
            module.dropout = 0.0  # of weights; the layers' own is 0 already
    vision = ("vision.clip.encoder.layers.0.*", "vision.clip.post_layernorm.*")
    language = ("resampler.*", "embed_tokens.*", "layers.*", "layer_norm.*", *vision)
    match number:
        case 1:
            config: Any = LanguageConfig(trainable=language)
            model, stream = made.model.mllm, Documents()
        case 2:
            config = AlignConfig(padding="masked", mllm="eval")
            model, stream = made.model, Captions()
        case _:
            learns = ("aligner.encoder.*", *(f"mllm.{name}" for name in language))
            config = InstructConfig(trainable=learns, min_snr_gamma=None)
            model, stream = made.model, composed()
    parts = Parts(
        model=model,
        tokenizer=made.tokenizer,
        stream=stream,
        text_tower=made.text_tower,
        image_decoder=made.image_decoder,
    )
    train = train_config(
        steps=STEPS, global_batch_size=8, micro_batch=2, log_every=1, validate_every=STEPS
    )
    return model, make_stage(config, parts), stream, train


def train(run_dir: Path, name: str, dropout: float = 0.0, **changes: Any) -> torch.nn.Module:
    """Train one thing by name; return the model."""
    if name.startswith("stage"):
        model, stage, stream, config = stage_parts(int(name[-1]))
        validation = stream
    else:
        model, stage, stream = net(dropout), Regression(), Pairs(0)
        config = train_config(steps=STEPS, log_every=1, global_batch_size=8, micro_batch=2)
        validation = Pairs(9)
    fit(
        model,
        stage,
        stream,
        replace(config, **changes),
        run_dir,
        resume=True,
        validation=validation,
    )
    return model


def main() -> None:
    """Do each job of a list, `[{"run_dir": ..., "name": ..., ...}]`, in the same processes."""
    for job in json.loads(sys.argv[1]):
        model = train(Path(job.pop("run_dir")), job.pop("name"), **job)
        assert not any(isinstance(p, torch.distributed.tensor.DTensor) for p in model.parameters())


if __name__ == "__main__":
    main()
