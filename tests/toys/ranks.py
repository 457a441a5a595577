"""Runs at toy size in several processes, as torchrun starts them: tests run this as a program."""

import json
import os
import resource
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from kosmosg import checkpoint
from kosmosg.data.shards import Shards
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError, KosmosGError
from kosmosg.train.loop import fit
from kosmosg.train.trainconfig import TrainConfig
from toys.messages import Messages
from toys.training import Pairs, Regression, net, train_config

STEPS = 20


def stage_parts(number: int, length_groups: int | None = None) -> tuple[Any, Any, Any, TrainConfig]:
    """Return model, stage, stream and configuration of one of the paper's stages, dropout 0."""
    from kosmosg.model.magneto import Attention
    from kosmosg.train.run import Parts, make_stage
    from toys.stages import Captions, Documents, composed, toys

    made = toys()
    for module in made.model.modules():
        if isinstance(module, Attention):
            module.dropout = 0.0  # of weights; the layers' own is 0 already
    config = stage_config(number, length_groups)
    model = made.model.mllm if number == 1 else made.model
    stream: Any = {1: Documents, 2: Captions, 3: composed}[number]()
    parts = Parts(
        model=model,
        tokenizer=made.tokenizer,
        stream=stream,
        text_tower=made.text_tower,
        image_decoder=made.image_decoder,
    )
    train = train_config(
        steps=STEPS, global_batch_size=4, micro_batch=1, log_every=1, validate_every=STEPS
    )
    return model, make_stage(config, parts), stream, train


def stage_config(number: int, length_groups: int | None = None) -> Any:
    """Return the configuration of one of the paper's stages."""
    from kosmosg.train.stage1_language import LanguageConfig
    from kosmosg.train.stage2_align import AlignConfig
    from kosmosg.train.stage3_instruct import InstructConfig

    vision = ("vision.clip.encoder.layers.0.*", "vision.clip.post_layernorm.*")
    language = ("resampler.*", "embed_tokens.*", "layers.*", "layer_norm.*", *vision)
    match number:
        case 1:
            return LanguageConfig(trainable=language)
        case 2:
            return AlignConfig(padding="masked", mllm="eval", length_groups=length_groups or 1)
    learns = ("aligner.encoder.*", *(f"mllm.{name}" for name in language))
    return InstructConfig(trainable=learns, min_snr_gamma=None, length_groups=length_groups)


class Heard:
    """A stage that notes, as each loss is begun, what was told so far."""

    def __init__(self, stage: Any, messages: Messages) -> None:
        self.stage, self.messages = stage, messages
        self.trainable = stage.trainable
        self.collate, self.weight = stage.collate, stage.weight
        self.counts: list[dict[str, int]] = []

    def loss(self, *given: Any) -> dict[str, torch.Tensor]:
        self.counts.append(dict(self.messages.count))
        return self.stage.loss(*given)

    def sharded(self, shard: Any) -> "Heard":
        self.stage = self.stage.sharded(shard)
        return self


class Numbers(Regression):
    """Keeps which records each micro-batch had, by what its draws are made of."""

    def __init__(self, story: Path):
        super().__init__()
        self.story = story

    def collate(self, records):
        ids = torch.tensor([int(record.key.rpartition("-")[2]) for record in records])
        return *super().collate(records), ids

    def loss(self, model, batch, generator):
        *pair, ids = batch
        with self.story.open("a") as file:
            file.write(json.dumps([generator.initial_seed(), ids.tolist()]) + "\n")
        own = {f"metric_of_rank_{RANK}": torch.tensor(float(len(ids)))}
        return super().loss(model, pair, generator) | own


@dataclass
class Fault:
    """What befalls a run once: a signal at the reading of a step, or while a checkpoint is written.

    Number 0 is no signal but an error of the data.

    A mark is left before, since the process that starts anew must not do it again: of which attempt
    of torchrun's it was.
    """

    mark: str
    number: int
    ranks: list[int]
    step: int | None = None

    def strike(self) -> None:
        marks = {rank: Path(f"{self.mark}-{rank}") for rank in self.ranks}
        if RANK not in marks or marks[RANK].exists():
            return
        marks[RANK].write_text(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        patience = time.monotonic() + 60
        while not all(mark.exists() for mark in marks.values()) and time.monotonic() < patience:
            time.sleep(0.01)  # so that several are struck at once
        os.kill(MAIN, self.number)


class Faulty:
    """A stream that some faults befall; where it says so, one of its records is no number."""

    def __init__(self, stream, faults, poison):
        self.stream, self.faults, self.poison = stream, faults, poison
        if hasattr(stream, "skips"):
            self.skips = stream.skips

    def batch(self, step, size):
        for fault in self.faults:
            if fault.step is not None and fault.step * 8 <= step * size < fault.step * 8 + 8:
                if fault.number == 0 and RANK in fault.ranks:
                    raise DataError("this disk is gone")
                fault.strike()
        records = self.stream.batch(step, size)
        for record in records:
            if record.key in self.poison:
                record.given[:] = float("nan")
        return records


def pair_of(key, files):
    """Return the pair that a sample of a tar stands for."""
    if files["txt"] == b"bad":
        raise DataError(f"record {key} is bad", reason="bad word")
    return Pairs(0)._record(int(files["txt"]))


def strike_while_writing(fault: Fault) -> None:
    """Let the fault befall this process when it has written its part of a checkpoint."""
    write = checkpoint._write_tensors

    def wrapped(state, directory, rank, group):
        sums = write(state, directory, rank, group)
        if state.step >= 8:
            fault.strike()
        return sums

    checkpoint._write_tensors = wrapped


RANK = int(os.environ.get("RANK", "0"))
MAIN = os.getpid()


def train_net(
    run_dir: Path,
    *,
    dropout: float = 0.0,
    tars: str | None = None,
    workers: int = 0,
    poison: list[str] = [],  # noqa: B006
    faults: list[dict[str, Any]] = [],  # noqa: B006
    room: int | None = None,
    **changes: Any,
) -> torch.nn.Module:
    """Train the small net; `room` is the largest file that may be written from step 9 on."""
    struck = [Fault(**fault) for fault in faults]
    for fault in struck:
        if fault.step is None:
            strike_while_writing(fault)
    stream: Any = Pairs(0)
    if tars is not None:
        paths = sorted(Path(tars).glob("*.tar"))
        stream = Shards(paths, decode=pair_of, seed=0, window=2, skips=Skips(limit=0.5))
    stream = Faulty(stream, struck, poison)
    stage = Numbers(run_dir.with_name(f"{run_dir.name}.ids-{RANK}"))
    config = train_config(steps=STEPS, log_every=1, global_batch_size=8, micro_batch=2)
    if room is not None:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit))
    model = net(dropout)
    fit(
        model,
        stage,
        stream,
        replace(config, **changes),
        run_dir,
        resume=True,
        workers=workers,
        validation=Pairs(9),
    )
    return model


def train_stage(
    run_dir: Path,
    stage: int,
    trainable: list[str] | None = None,
    length_groups: int | None = None,
    counted: bool = False,
    **changes: Any,
) -> torch.nn.Module:
    """Train one of the paper's stages; count what each step tells other ranks, if asked for."""
    model, made, stream, config = stage_parts(stage, length_groups)
    made.trainable = made.trainable if trainable is None else tuple(trainable)
    config = replace(config, **changes)
    if counted:
        with Messages() as messages:
            heard = Heard(made, messages)
            fit(model, heard, stream, config, run_dir, resume=True)
        run_dir.with_name(f"{run_dir.name}.messages-{RANK}").write_text(json.dumps(heard.counts))
        return model
    fit(model, made, stream, config, run_dir, resume=True, validation=stream)
    return model


def main() -> None:
    """Do each job of a list, `[{"run_dir": ..., "stage": ..., ...}]`, in the same processes.

    How each ended goes into a file beside its run directory.
    """
    for job in json.loads(sys.argv[1]):
        run_dir = Path(job.pop("run_dir"))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            model = (train_stage if "stage" in job else train_net)(run_dir, **job)
            end = "trained"
            assert not any(isinstance(p, DTensor) for p in model.parameters())
        except KosmosGError as error:
            end = str(error)
        except SystemExit as stop:
            end = f"exit {stop.code}"
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        run_dir.with_name(f"{run_dir.name}.end-{RANK}").write_text(end)


if __name__ == "__main__":
    main()
