"""The one loop: any module, any stage, any stream; stops and continues to the bit.

Under torchrun each process runs it: they read different records of the same step, and do the same
update to their parts of the weights.
"""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from kosmosg import checkpoint
from kosmosg.config import to_dict
from kosmosg.data.mixture import Stream, rank_slice, seed_of
from kosmosg.data.skips import Skips
from kosmosg.errors import CheckpointError, KosmosGError
from kosmosg.memory import hold_on
from kosmosg.train import distributed
from kosmosg.train.bysource import by_source, means, named
from kosmosg.train.distributed import DTYPES, Ranks
from kosmosg.train.keeping import Keeper, restore
from kosmosg.train.log import RunLog
from kosmosg.train.optim import (
    Average,
    LossScale,
    make_optimizer,
    optimizer_tensors,
    room_for_optimizer,
    set_rate,
)
from kosmosg.train.placing import prepared, shared
from kosmosg.train.prefetch import MicroBatch, Plan, held_out, to_device
from kosmosg.train.rundir import CONFIG_NAME, open_run_dir, require_same, signals_received
from kosmosg.train.stage import (
    CountingStage,
    Stage,
    buffers,
    freeze_except,
    frozen_sum,
    micro_batch_generator,
)
from kosmosg.train.trainconfig import MAX_BAD_IN_A_ROW, TrainConfig, check, is_even
from kosmosg.train.workers import read_ahead

Samples = Callable[[nn.Module, int], Image.Image]


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
    mode. SIGINT and SIGTERM, to any process, let the step finish, save, print how to continue and
    exit with 130 and 0.

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
        KosmosGError: If the loss is no longer finite, or another process of the run ended.
    """
    run_dir = Path(run_dir)
    kept = dict(recipe) if recipe is not None else to_dict(config)
    ranks = distributed.join(config.device, shard_ranks=config.shard_ranks)
    with distributed.parting_named(ranks), ExitStack() as held:
        if ranks.is_first:
            held.enter_context(open_run_dir(run_dir, kept, resume=resume))
        held.enter_context(torch.random.fork_rng())
        if ranks.device.type == "cpu":
            hold_on(None)  # each step frees and takes as much as the gradients have
        run = _Run(model, stage, config, run_dir, kept, ranks)
        held.enter_context(closing(run.keeper))
        if resume:
            run.restore()
        run.train(stream, workers, validation, samples)
        return run.finish()


def restore_result(
    model: nn.Module,
    stage: Stage,
    config: TrainConfig,
    run_dir: Path,
    *,
    recipe: Mapping[str, Any] | None = None,
) -> int:
    """Give the model what the run has made by its newest whole checkpoint; return that step.

    It is what `fit` would leave in it had the run ended there. Nothing is trained, and nothing in
    the run's directory changes: the run may be under way. The model is on the CPU afterwards.

    Args:
        model: As it was given to `fit`, before it.
        stage: The run's.
        config: The run's.
        run_dir: The run's.
        recipe: As of `fit`.

    Raises:
        ConfigError: If the run was begun with another configuration, or torchrun started several
            processes.
        CheckpointError: If there is no whole checkpoint, or it is not of these frozen weights.
    """
    run_dir = Path(run_dir)
    kept = dict(recipe) if recipe is not None else to_dict(config)
    ranks = distributed.alone()
    if not (run_dir / CONFIG_NAME).is_file():
        raise CheckpointError(f"there is no run in {run_dir}; name the directory of one")
    require_same(run_dir, kept)
    plain = replace(config, device="cpu", recompute="nothing", compiled="nothing")
    with torch.random.fork_rng():
        run = _Run(model, stage, plain, run_dir, kept, ranks)
        with closing(run.keeper):
            run.restore()
            if run.saved_step is None:
                raise CheckpointError(
                    f"the run in {run_dir} has saved no checkpoint yet; wait for its first"
                    " (checkpoint_s says how often), or stop it with Ctrl-C, which saves one"
                )
            run.finish()
    return run.step


class _Run:
    """The state of one run: what a checkpoint holds, and the files it writes to.

    `model` is what trains; `given` is the caller's, which is the same unless it is sharded or
    its blocks changed.
    """

    def __init__(
        self,
        model: nn.Module,
        stage: Stage,
        config: TrainConfig,
        run_dir: Path,
        kept: Mapping[str, Any],
        ranks: Ranks,
    ) -> None:
        self.given, self.config = model, config
        self.run_dir, self.ranks, self.device = run_dir, ranks, ranks.device
        freeze_except(model, stage.trainable)
        check(model, config, ranks)
        self.frozen_sum = frozen_sum(model)
        self.home = next(model.parameters()).device
        self.model = prepared(model, config, ranks)
        self.stage = shared(stage, config, ranks)
        self.named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = make_optimizer(config.optim, self.named.values())
        self.average = Average(config.ema, self.named) if config.ema else None
        self.scale = LossScale() if config.precision == "float16" else None
        self.keeper = Keeper(run_dir, ranks, kept, config.keep_checkpoints, config.keep_every)
        self.step = 0
        self.saved_step: int | None = None
        self.bad_in_a_row = 0

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
            indices=rank_slice(
                config.global_batch_size, rank=self.ranks.rank, num_ranks=self.ranks.num_ranks
            ),
            global_batch_size=config.global_batch_size,
            micro_batch=config.micro_batch,
        )
        reading = read_ahead(plan, workers=workers, timeout_s=config.data_timeout_s)
        with closing(reading), ExitStack() as held:
            log = held.enter_context(closing(self._open_log())) if self.ranks.is_first else None
            asked_of = self._held_out(validation)
            saved_at = time.monotonic()
            recent: list[dict[str, Tensor]] = []
            received = held.enter_context(signals_received())
            for step, pieces in log.waiting(reading) if log else reading:
                if values := self._update(step, pieces):
                    recent.append(values)
                self.step = step + 1
                if log:
                    log.advance()
                if self._due(config.log_every):
                    self._tell(log, recent, plan.skips)
                    recent.clear()
                if asked_of and self._due(config.validate_every):
                    measured = self._validate(asked_of)
                    if log:
                        log.write(self.step, measured)
                if samples and self._due(config.samples_every):
                    self._draw(samples)
                asked = self._asked(received, time.monotonic() - saved_at)
                if asked.signal:
                    self._stop(asked.signal, log)
                if asked.saves:
                    self.save()
                    saved_at = time.monotonic()

    def _tell(
        self, log: RunLog | None, recent: Sequence[dict[str, Tensor]], skips: Skips | None
    ) -> None:
        if log and recent:
            log.write(self.step, means(recent))
        if skips is None:
            return
        of_all = Skips(limit=1.0)  # each rank judges its own share of the records
        for one in self.ranks.gathered(skips.copy()):
            of_all.add(one)
        if log:
            log.write_skips(self.step, of_all)

    def _asked(self, received: Sequence[int], since_s: float) -> "_Asked":
        """Return what is to be done after this step: the same on each rank, whoever was told."""
        is_time = self.ranks.is_first and since_s >= self.config.checkpoint_s
        terminated, interrupted, due, failed = self.ranks.total(
            signal.SIGTERM in received, signal.SIGINT in received, is_time, self.keeper.failed
        )
        if failed:
            self.keeper.wait()
        every = self.config.keep_every
        number = signal.SIGTERM if terminated else signal.SIGINT if interrupted else 0
        return _Asked(number, bool(due) or (every is not None and self.step % every == 0))

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

    def _update(self, step: int, pieces: list[MicroBatch]) -> dict[str, Tensor] | None:
        """Do one update from the micro-batches of step number `step`; return what to log.

        None means that the update was left out.
        """
        config, ranks = self.config, self.ranks
        self.model.train()
        # Dropout alone draws from the global generator: seeding it by step needs no saved state.
        rank = (ranks.rank,) if ranks.rank else ()
        torch.manual_seed(seed_of(config.seed, step, "dropout", *rank))
        (total_weight,) = ranks.total(sum(piece.weight for piece in pieces))
        if total_weight == 0:
            raise KosmosGError(f"step {step}: no term in the loss; records {_keys(pieces)}")
        sums: dict[str, Tensor] = {}
        for number, piece in enumerate(pieces, 1):
            distributed.synchronise(self.model, now=number == len(pieces))
            terms = self._loss(piece, step)
            loss = _learned(terms) / total_weight
            (loss * self.scale.value if self.scale else loss).backward()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float()
        distributed.let_go(self.model)
        norm = self._clipped()
        values = {name: value / total_weight for name, value in ranks.totals(sums).items()}
        values = {"loss": _learned(values), **values, "grad_norm": norm.cpu()}
        if not torch.isfinite(values["loss"] + values["grad_norm"]):
            self._leave_out(step, pieces, values)
            return None
        self.bad_in_a_row = 0
        rate = set_rate(self.optimizer, config.optim, updates_done=step, total_steps=config.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scale:
            self.scale.grow()
        if self.average:
            self.average.update(step + 1)
        told = {"lr": torch.tensor(rate, dtype=torch.float64), "weight": torch.tensor(total_weight)}
        return {**values, **told}

    def _clipped(self) -> Tensor:
        """Clip the gradients of all ranks together; return their norm before that."""
        if self.scale:
            for parameter in self.named.values():
                if parameter.grad is not None:
                    parameter.grad.div_(self.scale.value)
        norm = nn.utils.clip_grad_norm_(self.named.values(), self.config.optim.clip_norm)
        return distributed.whole(norm)

    def _leave_out(self, step: int, pieces: list[MicroBatch], values: Mapping[str, Tensor]) -> None:
        """Do no update from gradients that are not finite; all ranks see the same ones.

        Raises:
            KosmosGError: If the configuration says so, or it was so too often.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss, norm = float(values["loss"]), float(values["grad_norm"])
        if self.scale and torch.isfinite(values["loss"]):
            self.scale.shrink()
            return
        keys = [key for rank in self.ranks.gathered(_all_keys(pieces)) for key in rank]
        path = self.run_dir / f"bad-step-{step:08d}.json"
        if self.ranks.is_first:
            story = {"step": step, "loss": str(loss), "grad_norm": str(norm), "records": keys}
            with suppress(OSError):  # on a full disk the error below still names some
                path.write_text(json.dumps(story, indent=1, ensure_ascii=False) + "\n", "utf-8")
        self.bad_in_a_row += 1
        often = self.bad_in_a_row > MAX_BAD_IN_A_ROW
        if self.config.on_bad_loss == "skip" and not often:
            return
        raise KosmosGError(
            f"step {step}: loss {loss}, gradient norm {norm}: not finite"
            f"{f', {self.bad_in_a_row} times in a row' if often else ''}; records {_some(keys)}"
            f" (all in {path}); lower optim.lr, look at these records, or continue with"
            f" on_bad_loss=skip (checkpoints before this step are intact: {self.run_dir})"
        )

    def _loss(self, piece: MicroBatch, step: int | str) -> dict[str, Tensor]:
        generator = micro_batch_generator(self.config.seed, step, piece.first_index)
        kind = DTYPES[self.config.precision]
        half = kind if kind != torch.float32 else torch.bfloat16
        with torch.autocast(self.device.type, half, enabled=kind != torch.float32):
            batch = to_device(piece.batch, self.device)
            return by_source(self.stage.loss(self.model, batch, generator), piece.sources)

    # ----------------------------------------------------------------- validation and samples

    def _held_out(self, validation: Stream | None) -> list[MicroBatch]:
        """Return this rank's part of the validation records: a share if all have as many pieces."""
        if validation is None:
            return []
        size, micro_batch = self.config.validation_records, self.config.micro_batch
        share = range(size)
        if is_even(size, micro_batch, self.ranks.num_ranks):
            share = rank_slice(size, rank=self.ranks.rank, num_ranks=self.ranks.num_ranks)
        return held_out(self.stage, validation, share=share, count=size, micro_batch=micro_batch)

    def _validate(self, asked: list[MicroBatch]) -> dict[str, float]:
        sums: dict[str, Tensor] = {}
        with self._result():
            for piece in asked:
                for name, value in self._loss(piece, "validation").items():
                    sums[name] = sums.get(name, 0.0) + value.float()
        (weight,) = self.ranks.total(sum(piece.weight for piece in asked))
        mean = {name: value / weight for name, value in self.ranks.totals(sums).items()}
        told = named({"loss": float(_learned(mean)), **{n: float(v) for n, v in mean.items()}})
        return {f"validation_{name}": value for name, value in told.items()}

    def _draw(self, samples: Samples) -> None:
        directory = self.run_dir / "samples"
        with self._result():
            self._hand_back()
            if self.ranks.is_first:
                directory.mkdir(exist_ok=True)
                picture = samples(self.given.to(self.device).eval(), self.step)
                picture.save(directory / f"step-{self.step:08d}.png")
            if self.given is not self.model:
                self.given.to(self.home)

    def _hand_back(self) -> None:
        """Put the present weights into the caller's model, whole."""
        if self.given is not self.model:
            distributed.copy_whole(
                self.model, self.given, names=self.named.keys() | buffers(self.model).keys()
            )

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
            distributed.let_go(self.model)

    # -------------------------------------------------------------------- stopping, continuing

    def save(self) -> None:
        """Begin to write a checkpoint of this step."""
        if self.saved_step == self.step:
            return
        state = checkpoint.TrainingState(
            step=self.step,
            weights=self.named | buffers(self.model),
            average=self.average.tensors if self.average else {},
            optimizer=optimizer_tensors(self.optimizer, self.named),
            numbers={
                "average_updates": self.average.updates if self.average else 0,
                "frozen": self.frozen_sum,
                "loss_scale": [self.scale.value, self.scale.num_good] if self.scale else None,
            },
        )
        self.keeper.save(state)
        self.saved_step = self.step

    def _saved(self) -> Path:
        """Save this step and wait for it; return where it is."""
        self.save()
        self.keeper.wait()
        return checkpoint.step_directory(self.run_dir, self.step)

    def restore(self) -> None:
        found = restore(self.run_dir, self.ranks, self._room)
        if found is None:
            return
        self.step, numbers = found
        self.saved_step = self.step
        if numbers["frozen"] != self.frozen_sum:
            raise CheckpointError(
                f"the frozen weights are not those that {self.run_dir} was trained with;"
                " resume with the same starting weights"
            )
        if self.average:
            self.average.updates = numbers["average_updates"]
        if self.scale and numbers["loss_scale"]:
            self.scale.value, self.scale.num_good = numbers["loss_scale"]

    def _room(self, layout: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors that a checkpoint of this layout fills."""
        kind = "optimizer/"
        keys = [name.removeprefix(kind) for name in layout if name.startswith(kind)]
        weights = self.named | buffers(self.model)
        return checkpoint.TrainingState(
            step=0,
            weights={name: value.detach() for name, value in weights.items()},
            average=self.average.tensors if self.average else {},
            optimizer=room_for_optimizer(self.optimizer, self.named, keys),
        ).tensors()

    def _stop(self, number: int, log: RunLog | None) -> None:
        path = self._saved()
        if log:
            log.close()
            sys.stderr.write(
                f"stopped after step {self.step} and saved {path}; continue with the same command"
                " and --resume\n"
            )
        raise SystemExit(130 if number == signal.SIGINT else 0)

    def finish(self) -> Path:
        path = self._saved()
        if self.average:
            self.average.swap()
        self._hand_back()
        self.given.to(self.device).eval()
        return path


@dataclass(frozen=True)
class _Asked:
    """What was asked of a run while it did a step: to stop (a signal's number or 0), to save."""

    signal: int
    saves: bool


def _learned(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the terms that are learned from."""
    return torch.stack(
        [value.float() for name, value in terms.items() if not name.startswith("metric_")]
    ).sum()


def _all_keys(pieces: Sequence[MicroBatch]) -> list[str]:
    return [key for piece in pieces for key in piece.keys]


def _keys(pieces: Sequence[MicroBatch]) -> str:
    return _some(_all_keys(pieces))


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
