"""Stage 2: M, N, both losses, every gradient, and eight updates of the authors' optimiser."""

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from kosmosg.convert import our_name, their_name
from kosmosg.model.kosmosg import KosmosG
from kosmosg.sequence import Batch
from kosmosg.tokenizer import Tokenizer
from kosmosg.train.log import read_log
from kosmosg.train.loop import fit
from kosmosg.train.optim import OptimConfig
from kosmosg.train.stage2_align import AlignStage, CaptionGroup, TextTower, squared_error
from kosmosg.train.trainconfig import TrainConfig
from kosmosg.verify.compare import TAP, TOLERANCE, Case, Check, Value, difference, near, read_case
from kosmosg.verify.golden import Golden, read_json
from kosmosg.verify.states import read, taps

NORMS_FILE = "align_grad_norms.json"
TRAINABLE = ("aligner.*",)


def alignment(golden: Golden, case: Case) -> Iterator[Value]:
    """Yield the states, M, N, both losses as released and the gradients of their sum.

    Source:
        NUMERICS section 6: pads count, and the reconstruction is scaled by queries / length.
    """
    ids, aligner = case["in.src_tokens"], golden.model.aligner
    with torch.no_grad():
        states = read(golden, case)
    yield Value(key="out.final_hidden", ours=states)
    if "in.clip_target" in case:
        target = case["in.clip_target"]
    else:
        target = _text_tower(golden, case).states(case["in.clip_tokens"])
        yield Value(key="out.clip_embed", ours=target)

    aligner.zero_grad()
    with taps(golden.model) as seen:
        prompt_embeds = aligner(states, ids != golden.config["pad"])
        again = aligner.reconstruct(prompt_embeds, ids.shape[1])
    mse_loss = squared_error(prompt_embeds, target) / len(ids)
    scale = prompt_embeds.shape[1] / ids.shape[1]
    rec_loss = squared_error(again, states) / len(ids) * scale
    (mse_loss + rec_loss).backward()
    yield Value(key="out.condition_M", ours=prompt_embeds)
    yield Value(key="out.N", ours=again)
    for name in ("aligner.decoder.out", "aligner.decoder_proj.ln"):
        yield Value(key=f"{TAP}{name}", ours=seen[name])
    yield Value(key="out.mse_loss", ours=mse_loss[None])
    yield Value(key="out.rec_loss", ours=rec_loss[None])
    yield from _gradients(golden, case)
    if "in.clip_tokens" in case:
        yield from _stage_losses(golden, case)


def norms_of(golden: Golden, name: str) -> dict[str, Tensor]:
    """Return what the folder's file of gradient norms holds of a case, as tensors to compare."""
    path = golden.directory / NORMS_FILE
    norms = read_json(path).get(name, {}) if path.is_file() else {}
    return {f"norm.{key}": torch.tensor(norm) for key, norm in norms.items()}


def trajectory(golden: Golden, name: str) -> Iterator[Check]:
    """Yield how far our loop strays from the authors' Adam, schedule and clipping.

    Source:
        NUMERICS section 8.
    """
    expected = read_json(golden.directory / name)
    case = read_case(golden.directory, f"cases/{expected['case']}.safetensors")
    run = _OneBatch(_align_stage(golden, case), _batch(golden, case))
    model = golden.new_model()
    config = _train_config(expected, len(case["in.src_tokens"]))
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        with contextlib.redirect_stderr(io.StringIO()):  # its progress line is not ours
            fit(model, run, run, config, run_dir)
        log = read_log(run_dir)

    fields = {"lr": "lr", "mse": "mse", "reconstruction": "rec", "grad_norm": "grad_norm"}
    for ours, theirs in fields.items():
        steps = zip(log, expected["log"], strict=True)
        error = max(abs(one[ours] - other[theirs]) for one, other in steps)
        tolerance = 1e-9 if ours == "lr" else TOLERANCE
        yield near(name, f"{ours}, {len(log)} updates", error, 0.0, tolerance)
    parameters = dict(model.named_parameters())
    for key, value in load_file(golden.directory / params_of(name)).items():
        # A key's bias shifts all scores of a query alike: its gradient is rounding noise, which
        # Adam then magnifies.
        tolerance = 1e-4 if key.endswith("k_proj.bias") else TOLERANCE
        error = difference(parameters[our_name(key)], value)
        yield near(name, f"{key} afterwards", error, 0.0, tolerance)


def params_of(name: str) -> str:
    """Return the file with the weights after the updates of a trajectory's file."""
    return name.removesuffix(".json") + "_params.safetensors"


def _gradients(golden: Golden, case: Case) -> Iterator[Value]:
    """Yield the norm of each gradient of the aligner, and those gradients that the case holds."""
    has_norms = any(key.startswith("norm.") for key in case.tensors)
    for name, parameter in golden.model.aligner.named_parameters():
        key = their_name(f"aligner.{name}")
        assert parameter.grad is not None
        if f"grad.{key}" in case:
            yield Value(key=f"grad.{key}", ours=parameter.grad)
        if has_norms:
            yield Value(key=f"norm.{key}", ours=parameter.grad.norm())


def _stage_losses(golden: Golden, case: Case) -> Iterator[Value]:
    """Yield both losses as the training stage itself computes them."""
    batch = _batch(golden, case)
    with torch.no_grad():
        terms = _align_stage(golden, case).loss(golden.model, batch, torch.Generator())
    count = len(case["in.src_tokens"])
    for key, term in (("out.mse_loss", "mse"), ("out.rec_loss", "reconstruction")):
        yield Value(key=key, ours=terms[term][None] / count, how="stage 2")


def _align_stage(golden: Golden, case: Case) -> AlignStage:
    return AlignStage(
        tokenizer=Tokenizer.from_words(["a"]),  # the ids are given, so no words are read
        num_latents=golden.config["latent_query_num"],
        image_size=golden.config["vision"]["image_size"],
        text_tower=_text_tower(golden, case),
        trainable=TRAINABLE,
        padding="released",
        mllm="eval",
        reconstruction_weight=1.0,
    )


def _text_tower(golden: Golden, case: Case) -> TextTower:
    return TextTower(encoder=golden.text_encoder, ids=lambda _: case["in.clip_tokens"])


def _batch(golden: Golden, case: Case) -> tuple[CaptionGroup, ...]:
    ids = case["in.src_tokens"]
    sequences = Batch(
        input_ids=ids,
        attention_mask=ids != golden.config["pad"],
        image_mask=case["in.img_gpt_input_mask"].bool(),
        pixel_values=case.get("in.images"),
    )
    text_ids = case["in.clip_tokens"]
    places = torch.arange(len(text_ids))
    return (CaptionGroup(sequences=sequences, text_ids=text_ids, places=places),)


def _train_config(expected: dict[str, Any], count: int) -> TrainConfig:
    hp = expected["hp"]
    return TrainConfig(
        seed=0,
        steps=len(expected["log"]),
        global_batch_size=count,
        micro_batch=count,
        optim=OptimConfig(
            lr=hp["peak"],
            betas=tuple(expected["betas"]),
            eps=expected["eps"],
            weight_decay=expected["weight_decay"],
            clip_norm=hp["clip"],
            schedule="linear",
            warmup_steps=hp["warmup"],
            total_steps=hp["total"],
            eps_scale="raw",
        ),
        ema=None,
        precision="float32",
        device="cpu",
        log_every=1,
    )


class _OneBatch:
    """A stream of nothing, and a stage over the one batch of the golden case."""

    trainable = TRAINABLE

    def __init__(self, stage: AlignStage, batch: tuple[CaptionGroup, ...]) -> None:
        self._stage, self._batch = stage, batch

    def batch(self, step: int, size: int) -> Sequence[str]:
        return [f"update {step + 1}"] * size

    def collate(self, records: Sequence[str]) -> tuple[CaptionGroup, ...]:  # noqa: ARG002
        return self._batch

    def weight(self, batch: tuple[CaptionGroup, ...]) -> int:
        return self._stage.weight(batch)

    def loss(
        self,
        model: KosmosG,
        batch: tuple[CaptionGroup, ...],
        generator: torch.Generator,
    ) -> dict[str, Float[Tensor, ""]]:
        return self._stage.loss(model, batch, generator)
