"""The one loop: any module, any stage, any stream; stops and continues to the bit."""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from kosmosg import checkpoint
from kosmosg.config import to_dict
from kosmosg.data.mixture import Stream, rank_slice, seed_of
from kosmosg.errors import CheckpointError, ConfigError, KosmosGError
from kosmosg.train.bysource import by_source, means, named
from kosmosg.train.log import RunLog
from kosmosg.train.optim import (
    Average,
    EmaConfig,
    OptimConfig,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    set_rate,
)
from kosmosg.train.prefetch import MicroBatch, Plan, held_out, to_device
from kosmosg.train.rundir import open_run_dir, signals_received
from kosmosg.train.stage import (
    CountingStage,
    Stage,
    buffers,
    freeze_except,
    frozen_sum,
    micro_batch_generator,
)
from kosmosg.train.workers import read_ahead

_COUNTS = (
    "steps",
    "global_batch_size",
    "micro_batch",
    "keep_checkpoints",
    "log_every",
    "validate_every",
    "validation_records",
    "samples_every",
)
Samples = Callable[[nn.Module, int], Image.Image]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of the loop.

    `steps` counts optimiser updates of `global_batch_size` records, which are computed
    `micro_batch` records at a time. `checkpoint_s` is in seconds; the `*_every` fields are in
    steps. Validation takes the first `validation_records` of the validation stream, with the
    same noise each time.
    """

    seed: int
    steps: int
    global_batch_size: int
    micro_batch: int
    optim: OptimConfig
    ema: EmaConfig | None
    precision: Literal["float32", "bfloat16"]
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_s: float = 180.0
    keep_checkpoints: int = 2
    log_every: int = 10
    validate_every: int = 100
    validation_records: int = 64
    samples_every: int = 1000


def fit(
    model: nn.Module,
    stage: Stage,
    stream: Stream,
    config: TrainConfig,
    run_dir: Path,
    *,
    resume: bool = False,
    workers: int = 0,
    validation: Stream | None = None,
    samples: Samples | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> Path:
    """Train what the stage names; return the last checkpoint's directory.

    Afterwards the model holds the averaged weights, if there is an average, and is in evaluation
    mode. SIGINT and SIGTERM let the step finish, save, print how to continue and exit with 130
    and 0.

    Args:
        model: Trained in place, in float32; frozen parts may have any type.
        stage: What learns from which loss.
        stream: Gives step number k its records, k from 0.
        config: The run.
        run_dir: Holds config.json, log.jsonl, tensorboard/, checkpoints/ and samples/.
        resume: Continue from the newest whole checkpoint there; start anew if there is none.
        workers: Processes that read ahead, for the same result; 0 is a thread.
        validation: Records that are not trained on.
        samples: Makes a picture of what the model can do by now.
        recipe: The whole configuration that `config` is a part of, kept in config.json and
            compared when resuming; None means `config` alone.

    Raises:
        ConfigError: If the run directory, the patterns or the configuration do not fit.
        CheckpointError: If the state cannot be written or read.
        KosmosGError: If the loss is no longer finite.
    """
    run_dir = Path(run_dir)
    kept = dict(recipe) if recipe is not None else to_dict(config)
    with open_run_dir(run_dir, kept, resume=resume), torch.random.fork_rng():
        run = _Run(model, stage, config, run_dir, kept)
        if resume:
            run.restore()
        run.train(stream, workers, validation, samples)
        return run.finish()


class _Run:
    """The state of one run: what a checkpoint holds, and the files it writes to."""

    def __init__(
        self,
        model: nn.Module,
        stage: Stage,
        config: TrainConfig,
        run_dir: Path,
        kept: Mapping[str, Any],
    ) -> None:
        self.model, self.stage, self.config = model, stage, config
        self.run_dir, self.kept = run_dir, kept
        self.device = _device(config.device)
        self.model.to(self.device)
        freeze_except(model, stage.trainable)
        self.named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        _check(self.named, config)
        self.frozen_sum = frozen_sum(model)
        self.optimizer = make_optimizer(config.optim, self.named.values())
        self.average = Average(config.ema, self.named) if config.ema else None
        self.step = 0
        self.saved_step: int | None = None

    # ------------------------------------------------------------------------------ the loop

    def train(
        self,
        stream: Stream,
        workers: int,
        validation: Stream | None,
        samples: Samples | None,
    ) -> None:
        config = self.config
        plan = Plan(
            stage=self.stage,
            stream=stream,
            steps=range(self.step, config.steps),
            indices=rank_slice(config.global_batch_size, rank=0, num_ranks=1),
            global_batch_size=config.global_batch_size,
            micro_batch=config.micro_batch,
        )
        reading = read_ahead(plan, workers=workers)
        with closing(reading), closing(self._open_log()) as log:
            asked = self._held_out(validation)
            saved_at = time.monotonic()
            recent: list[dict[str, Tensor]] = []
            with signals_received() as received:
                for step, pieces in log.waiting(reading):
                    recent.append(self._update(step, pieces))
                    self.step = step + 1
                    log.advance()
                    if self._due(config.log_every):
                        log.write(self.step, means(recent))
                        recent.clear()
                        if plan.skips is not None:
                            log.write_skips(self.step, plan.skips)
                    if asked and self._due(config.validate_every):
                        log.write(self.step, self._validate(asked))
                    if samples and self._due(config.samples_every):
                        self._draw(samples)
                    if received:
                        self._stop(received[0], log)
                    if time.monotonic() - saved_at >= config.checkpoint_s:
                        self.save()
                        saved_at = time.monotonic()

    def _open_log(self) -> RunLog:
        return RunLog(
            self.run_dir,
            first_step=self.step,
            steps=self.config.steps,
            batch_size=self.config.global_batch_size,
            counts=self.stage.counts if isinstance(self.stage, CountingStage) else None,
        )

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _update(self, step: int, pieces: list[MicroBatch]) -> dict[str, Tensor]:
        """Do one update from the micro-batches of step number `step`; return what to log."""
        config = self.config
        self.model.train()
        # Dropout alone draws from the global generator: seeding it by step needs no saved state.
        torch.manual_seed(seed_of(config.seed, step, "dropout"))
        total_weight = sum(piece.weight for piece in pieces)
        if total_weight == 0:
            raise KosmosGError(f"step {step}: no term in the loss; records {_keys(pieces)}")
        sums: dict[str, Tensor] = {}
        for piece in pieces:
            terms = self._loss(piece, step)
            (_learned(terms) / total_weight).backward()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float()
        norm = nn.utils.clip_grad_norm_(self.named.values(), config.optim.clip_norm)
        values = {name: value / total_weight for name, value in sums.items()}
        values = {"loss": _learned(values), **values, "grad_norm": norm}
        if not torch.isfinite(values["loss"] + norm):
            raise KosmosGError(
                f"step {step}: loss {float(values['loss'])}, gradient norm {float(norm)}: not"
                f" finite; records {_keys(pieces)}; lower optim.lr or look at these records"
                f" (checkpoints before this step are intact: {self.run_dir})"
            )
        rate = set_rate(self.optimizer, config.optim, updates_done=step, total_steps=config.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(step + 1)
        told = {"lr": torch.tensor(rate, dtype=torch.float64), "weight": torch.tensor(total_weight)}
        return {**values, **told}

    def _loss(self, piece: MicroBatch, step: int | str) -> dict[str, Tensor]:
        generator = micro_batch_generator(self.config.seed, step, piece.first_index)
        half = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            batch = to_device(piece.batch, self.device)
            return by_source(self.stage.loss(self.model, batch, generator), piece.sources)

    # ----------------------------------------------------------------- validation and samples

    def _held_out(self, validation: Stream | None) -> list[MicroBatch]:
        if validation is None:
            return []
        count, micro_batch = self.config.validation_records, self.config.micro_batch
        return held_out(self.stage, validation, count=count, micro_batch=micro_batch)

    def _validate(self, asked: list[MicroBatch]) -> dict[str, float]:
        sums: dict[str, Tensor] = {}
        with self._result():
            for piece in asked:
                for name, value in self._loss(piece, "validation").items():
                    sums[name] = sums.get(name, 0.0) + value.float()
        weight = sum(piece.weight for piece in asked)
        mean = {name: value / weight for name, value in sums.items()}
        told = named({"loss": float(_learned(mean)), **{n: float(v) for n, v in mean.items()}})
        return {f"validation_{name}": value for name, value in told.items()}

    def _draw(self, samples: Samples) -> None:
        directory = self.run_dir / "samples"
        directory.mkdir(exist_ok=True)
        with self._result():
            samples(self.model, self.step).save(directory / f"step-{self.step:08d}.png")

    @contextmanager
    def _result(self) -> Iterator[None]:
        """Within, the model is what the run would export: averaged weights, evaluation mode."""
        self.model.eval()
        if self.average:
            self.average.swap()
        try:
            with torch.no_grad():
                yield
        finally:
            if self.average:
                self.average.swap()

    # -------------------------------------------------------------------- stopping, continuing

    def save(self) -> Path:
        if self.saved_step == self.step:
            return checkpoint.step_directory(self.run_dir, self.step)
        state = checkpoint.TrainingState(
            step=self.step,
            weights=self.named | buffers(self.model),
            average=self.average.tensors if self.average else {},
            optimizer=optimizer_tensors(self.optimizer, self.named),
            numbers={
                "average_updates": self.average.updates if self.average else 0,
                "frozen": self.frozen_sum,
            },
        )
        path = checkpoint.save_training_state(
            self.run_dir, state, config=self.kept, keep=self.config.keep_checkpoints
        )
        self.saved_step = self.step
        return path

    def restore(self) -> None:
        state, refused = checkpoint.latest(self.run_dir)
        for reason in refused:
            sys.stderr.write(f"passed over: {reason}\n")
        if state is None and refused:
            raise CheckpointError(
                f"no checkpoint in {self.run_dir} can be used; the newest: {refused[0]}; put a"
                " whole one back, or start a new run in another directory"
            )
        if state is None:
            return
        if state.numbers["frozen"] != self.frozen_sum:
            raise CheckpointError(
                f"the frozen weights are not those that {self.run_dir} was trained with;"
                " resume with the same starting weights"
            )
        self.step = self.saved_step = state.step
        frozen = {n: p for n, p in self.model.named_parameters() if n not in self.named}
        checkpoint.load_weights(self.model, {**frozen, **state.weights}, source=str(self.run_dir))
        restore_optimizer(self.optimizer, self.named, state.optimizer)
        if self.average:
            self.average.updates = state.numbers["average_updates"]
            for name, value in state.average.items():
                self.average.tensors[name].copy_(value)

    def _stop(self, number: int, log: RunLog) -> None:
        path = self.save()
        log.close()
        sys.stderr.write(
            f"stopped after step {self.step} and saved {path}; continue with the same command and"
            " --resume\n"
        )
        raise SystemExit(130 if number == signal.SIGINT else 0)

    def finish(self) -> Path:
        path = self.save()
        if self.average:
            self.average.swap()
        self.model.eval()
        return path


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda', but torch sees no GPU; use device=cpu or device=auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _check(named: Mapping[str, nn.Parameter], config: TrainConfig) -> None:
    for name, parameter in named.items():
        if parameter.dtype != torch.float32:
            raise ConfigError(
                f"{name} is {parameter.dtype}; what learns must be float32 (model.float()), and"
                " precision=bfloat16 then computes in bfloat16"
            )
    for name in _COUNTS:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} = {getattr(config, name)}; it must be at least 1")
    if not 0 <= config.seed < 2**63:
        raise ConfigError(f"seed = {config.seed}; it must lie between 0 and 2**63 - 1")


def _learned(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the terms that are learned from."""
    return torch.stack(
        [value.float() for name, value in terms.items() if not name.startswith("metric_")]
    ).sum()


def _keys(pieces: Sequence[MicroBatch]) -> str:
    keys = [key for piece in pieces for key in piece.keys]
    return ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
