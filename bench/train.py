"""How long does a step of training take at full size, and how far is that from the machine's limit?

    python bench/train.py [--part stage1 stage2 stage3 loop padding] [--dtype float32 bfloat16]
                          [--depth 24] [--threads 2] [--repeats 5] [--compiled]

Forward and backward, random weights of the released sizes; each part and dtype in a process of its
own. The floor is that of bench/floor.py, over the products of both passes; for stage 3, the U-Net
forward and back to its condition alone stands for its products. bfloat16 is what a run with
precision=bfloat16 does: what is frozen is held in it, what learns in float32.

`--compiled` puts the layers through torch.compile, as a run with compiled=blocks does; the floor
is that of the same products.

`--depth` is the number of layers of the language model; AlignerNet has half as many in each stack.
Full depth in float32 takes 11 GiB for stage 2, 15 for stage 1, 22 for stage 3.

`loop` runs nano's stage 3 from shards in one thread, with a process that reads: the time from one
step to the next in `fit`, with reading, logging and checkpoints (one in 15 s, twelve times as many
as in a run), over that of a bare step of the same records. `padding` is the share of positions that
are padding, for captions of LENGTHS.

Prints a table and writes outputs/bench-train.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from floor import Product, Rates, Recorder, fill, least_seconds, peak_bytes
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from kosmosg.data.samples import to_bytes
from kosmosg.data.sources import DataConfig, SourceConfig, open_stream
from kosmosg.data.tars import write_shard
from kosmosg.memory import hold_on
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.image_decoder import ImageDecoder
from kosmosg.model.kosmosg import KosmosG
from kosmosg.model.mllm import MLLM
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.release import find
from kosmosg.sequence import IGNORED, Batch, Encoded
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld import nano
from kosmosg.toyworld.streams import stage3_stream
from kosmosg.train import distributed
from kosmosg.train.lengths import Groups, group, padding
from kosmosg.train.loop import fit
from kosmosg.train.optim import Average, make_optimizer, set_rate
from kosmosg.train.run import Parts, make_stage
from kosmosg.train.stage import Stage, freeze_except, micro_batch_generator
from kosmosg.train.stage1_language import LanguageStage
from kosmosg.train.stage2_align import AlignStage, CaptionGroup, TextTower
from kosmosg.train.stage3_instruct import InstructBatch, InstructConfig, InstructStage
from kosmosg.train.trainconfig import TrainConfig

PARTS = ("stage1", "stage2", "stage3", "loop", "padding")
FULL_DEPTH = 24
# Seconds of the original's stage 2 (forward and backward, 8 captions of 20 tokens, float32) on a
# quiet machine with 2 threads, and the rate of large products there; from the specification.
ORIGINAL_STAGE2_S, ORIGINAL_GIB = 6.84, 11.6
ORIGINAL_RATE = {"float32": 327e9, "bfloat16": 1.9e12}
AIMS = {"stage1": 1.3, "stage2": 1.3, "stage3": 1.15, "loop": 1.02}
CAPTIONS, WORDS, ROW = 8, 20, 2048
LENGTH_GROUPS = 6  # as the recipe of stage 3 has them
IMAGE, END_IMAGE, SLOTS = 64003, 64004, 64
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
# Of captions from the web, in positions: the median, the deviation of the logarithm, and where the
# release leaves captions out.
LENGTHS = {"median": 15, "sigma": 0.6, "longest": 85}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured."""

    dtype: torch.dtype
    depth: int
    repeats: int
    compiled: bool = False

    def learning(self, module: nn.Module) -> Any:  # noqa: ANN401 - the module that it was given
        """Return a module made of the meta device, in float32."""
        return fill(module)

    def frozen(self, module: nn.Module) -> Any:  # noqa: ANN401
        """Return a module made of the meta device, frozen, in the run's type."""
        return fill(module.to(self.dtype)).eval().requires_grad_(False)

    def autocast(self) -> torch.autocast:
        """Return what the loop computes in."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def mllm(depth: int) -> MLLM:
    """Return the language model of the released widths."""
    with torch.device("meta"):
        return MLLM(num_hidden_layers=depth, vision_layers=depth)


def aligner(depth: int, *, with_reconstruction: bool) -> AlignerNet:
    """Return AlignerNet of the released widths."""
    with torch.device("meta"):
        return AlignerNet(num_layers=max(1, depth // 2), with_reconstruction=with_reconstruction)


def sequence(num_pictures: int, num_words: int) -> Encoded:
    """Return `<s>`, pictures and words."""
    ids = [0, *([IMAGE] * (1 + SLOTS) + [END_IMAGE]) * num_pictures]
    slots = [False, *([False] + [True] * SLOTS + [False]) * num_pictures]
    words = torch.arange(100, 100 + num_words)
    return Encoded(
        input_ids=torch.cat([torch.tensor(ids), words]),
        image_mask=torch.tensor(slots + [False] * num_words),
        pixel_values=torch.randn(num_pictures, 3, 224, 224) if num_pictures else None,
    )


def step_of(stage: Stage, model: nn.Module, batch: object, setting: Setting) -> Callable[[], None]:
    """Return a call that does what the loop does with a micro-batch, but for the update."""
    freeze_except(model, stage.trainable)

    def step() -> None:
        model.train()
        with setting.autocast():
            losses = stage.loss(model, batch, micro_batch_generator(0, 0, 0))
        (_learned(losses) / stage.weight(batch)).backward()
        model.zero_grad(set_to_none=True)

    return step


def _learned(losses: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of what is learned from."""
    return torch.stack([v for name, v in losses.items() if not name.startswith("metric_")]).sum()


def compile_blocks(model: nn.Module, setting: Setting) -> None:
    """Put the layers through torch.compile, if the setting says so."""
    if setting.compiled:
        for block in distributed.blocks(model):
            block.compile()


def products_of(work: Callable[[], object]) -> list[Product]:
    """Return the products of one call."""
    with Recorder() as recorder:
        work()
    return recorder.products


def stage1(setting: Setting) -> dict[str, Any]:
    """Return the row of stage 1: one packed row of words and two pictures."""
    model = setting.learning(mllm(setting.depth))
    last = setting.depth - 1
    stage = LanguageStage(
        tokenizer=Tokenizer.from_words(["a"]),
        num_latents=SLOTS,
        image_size=224,
        trainable=(
            *("resampler.*", "embed_tokens.*", "layers.*", "layer_norm.*"),
            *(f"vision.clip.encoder.layers.{last}.*", "vision.clip.post_layernorm.*"),
        ),
        word_weights={},
        attention="row",
    )
    stage._weights = torch.ones(model.config["vocab_size"])  # the toy tokenizer has few words
    row = sequence(2, ROW - 1 - 2 * (SLOTS + 2))
    ids = row.input_ids[None]
    labels = torch.cat([ids[:, 1:], ids[:, -1:]], 1)
    batch = Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        image_mask=row.image_mask[None],
        pixel_values=row.pixel_values,
        labels=labels.masked_fill(labels > 64000, IGNORED),
    )
    step = step_of(stage, model, batch, setting)
    products = products_of(step)
    compile_blocks(model, setting)
    found = _measured(step, products, setting)
    return found | {"tokens_per_s": round(ROW / found["seconds"], 1)}


def stage2(setting: Setting) -> dict[str, Any]:
    """Return the row of stage 2: captions of 20 positions, one group."""
    model = KosmosG(
        setting.frozen(mllm(setting.depth)),
        setting.learning(aligner(setting.depth, with_reconstruction=True)),
    )
    with torch.device("meta"):
        config = CLIPTextConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=max(1, setting.depth // 2),
            num_attention_heads=12,
        )
        text = CLIPTextModel(config)
    tower = TextTower(encoder=setting.frozen(text), ids=lambda _: text_ids)
    text_ids = torch.randint(49408, (CAPTIONS, 77))
    stage = AlignStage(
        tokenizer=Tokenizer.from_words(["a"]),
        num_latents=SLOTS,
        image_size=224,
        text_tower=tower,
        trainable=("aligner.*",),
        padding="masked",
        mllm="eval",
        reconstruction_weight=1.0,
    )
    sequences = group([sequence(0, WORDS - 1)] * CAPTIONS, num_groups=1, pad_id=1)
    places = torch.arange(CAPTIONS)
    batch = (CaptionGroup(sequences=sequences.batches[0], text_ids=text_ids, places=places),)
    step = step_of(stage, model, batch, setting)
    products = products_of(step)
    compile_blocks(model, setting)
    step()
    peak = peak_bytes(step)
    found = _measured(step, products, setting) | {"peak_gib": round(peak / 2**30, 2)}
    if setting.depth == FULL_DEPTH:
        name = str(setting.dtype).removeprefix("torch.")
        here = ORIGINAL_STAGE2_S * ORIGINAL_RATE["float32"] / (found["gemm_gflop_s"] * 1e9)
        if name == "bfloat16":  # the original has no such figure: what the aim is a fifth of
            here = ORIGINAL_STAGE2_S * ORIGINAL_RATE[name] / (found["gemm_gflop_s"] * 1e9)
        found |= {"original_here_s": round(here, 2)}
        found |= {"of_original": round(found["seconds"] / here, 3)}
    return found


def stage3(setting: Setting) -> dict[str, Any]:
    """Return the row of stage 3: one picture of 512 px, two pictures and words in its prompt."""
    model = KosmosG(
        setting.learning(mllm(setting.depth)),
        setting.learning(aligner(setting.depth, with_reconstruction=False)),
    )
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
        vae: Any = AutoencoderKL.from_config(VAE)
    decoder = ImageDecoder(setting.frozen(vae), setting.frozen(unet))
    last = setting.depth - 1
    stage = InstructStage(
        tokenizer=Tokenizer.from_words(["a"]),
        num_latents=SLOTS,
        image_size=224,
        target_size=512,
        image_decoder=decoder,
        trainable=(
            "aligner.encoder.*",
            *(f"mllm.{name}" for name in ("resampler.*", "embed_tokens.*", "layers.*")),
            *("mllm.layer_norm.*", "mllm.vision.clip.post_layernorm.*"),
            f"mllm.vision.clip.encoder.layers.{last}.*",
        ),
        condition_drop=0.0,
        loss_weighting="uniform",
        min_snr_gamma=None,
        length_groups=LENGTH_GROUPS,
    )
    prompts = [sequence(2, 45), sequence(0, 0)]
    prompt = group(prompts, num_groups=LENGTH_GROUPS, pad_id=1)  # the null prompt by itself
    posterior = torch.randn(1, 2, 4, 64, 64).abs()
    batch = InstructBatch(sequences=prompt, null_among=True, posterior=posterior)
    step = step_of(stage, model, batch, setting)
    noisy, embeds = torch.randn(1, 4, 64, 64), torch.randn(1, 77, 768, requires_grad=True)
    timesteps, image = torch.tensor([500]), torch.rand(1, 3, 512, 512) * 2 - 1

    def draw() -> None:
        with setting.autocast():
            pred = decoder.noise_pred(noisy, timesteps, embeds)
        pred.float().square().mean().backward()
        embeds.grad = None

    def read() -> None:
        model.train()
        with setting.autocast():
            conditions = torch.cat([model.encode(batch) for batch in prompt.batches])
        conditions.float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    def encode() -> None:
        with setting.autocast():
            decoder.posterior(image)

    others = {"U-Net alone": draw, "VAE, which a cache saves": encode, "MLLM and M": read}
    products = products_of(read)
    compile_blocks(model, setting)
    found = _measured(step, products, setting, others)
    floor = found["floor_s"]
    others_s = found["others_s"]
    aim = AIMS["stage3"] * others_s["U-Net alone"] + floor
    return found | {
        "floor_s": round(others_s["U-Net alone"] + floor, 3),
        "of_floor": round(found["seconds"] / (others_s["U-Net alone"] + floor), 3),
        "mllm_floor_s": floor,
        "mllm_of_floor": round(others_s["MLLM and M"] / floor, 3),
        "aim_s": round(aim, 3),
        "of_aim": round(found["seconds"] / aim, 3),
    }


def _measured(
    step: Callable[[], None],
    products: Sequence[Product],
    setting: Setting,
    others: dict[str, Callable[[], None]] | None = None,
) -> dict[str, Any]:
    """Return the least times of a step and of other calls, and the floor of the products."""
    others = others or {}
    rates = Rates(products, setting.dtype)
    least = least_seconds({"step": step} | others | rates.calls(), setting.repeats)
    floor = rates.floor(products, least)
    return {
        "seconds": round(least["step"], 4),
        "floor_s": round(floor, 4),
        "of_floor": round(least["step"] / floor, 3),
        "gflop": round(sum(product.flops for product in products) / 1e9),
        "gemm_gflop_s": round(rates.rate(least) / 1e9),
        "read_gb_s": round(rates.bandwidth(least) / 1e9, 1),
        "others_s": {name: round(least[name], 4) for name in others},
    }


# ------------------------------------------------------------------------------------ the loop


class Timed:
    """A stage that notes when each loss is begun."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.trainable = stage.trainable
        self.collate, self.weight = stage.collate, stage.weight
        self.began: list[float] = []

    def loss(
        self,
        model: Any,  # noqa: ANN401 - what the stage takes
        batch: Any,  # noqa: ANN401
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return the stage's loss."""
        self.began.append(perf_counter())
        return self._stage.loss(model, batch, generator)

    def mean_s(self) -> float:
        """Return the time from one step to the next; the first two warm up."""
        return (self.began[-1] - self.began[2]) / (len(self.began) - 3)


def loop(setting: Setting, steps: int = 40) -> dict[str, Any]:
    """Return the row of the loop: nano's stage 3 from shards."""
    torch.set_num_threads(1)
    pipeline = KosmosGPipeline.from_pretrained(find("nano"))
    recipe = nano.stage3()
    assert isinstance(recipe.stage, InstructConfig)
    # A checkpoint in 15 s, and not the 180 of a run, so that some fall into the steps timed.
    kept = {"log_every": 1, "checkpoint_s": 15.0}
    config = replace(recipe.train, steps=steps, precision=_name(setting.dtype), **kept)
    least = {"fit": float("inf"), "bare": float("inf")}
    with tempfile.TemporaryDirectory() as folder:
        data = _shards(Path(folder) / "shards", config.global_batch_size * 4)
        for turn in range(setting.repeats):
            model = KosmosG(pipeline.mllm.float(), pipeline.aligner.float())
            decoder = ImageDecoder(pipeline.vae.float(), pipeline.unet.float())
            opened = open_stream(data, stage="instruct")
            parts = Parts(
                model=model,
                tokenizer=pipeline.tokenizer,
                stream=opened,
                workers=data.workers,
                image_decoder=decoder,
            )
            stage = Timed(make_stage(recipe.stage, parts))
            fit(model, stage, opened, config, Path(folder) / str(turn), workers=data.workers)
            least["fit"] = min(least["fit"], stage.mean_s())
            stage = Timed(make_stage(recipe.stage, parts))
            _bare(model, stage, opened, config)
            least["bare"] = min(least["bare"], stage.mean_s())
    return {
        "seconds": round(least["fit"], 4),
        "floor_s": round(least["bare"], 4),
        "of_floor": round(least["fit"] / least["bare"], 4),
        "samples_per_s": round(config.global_batch_size / least["fit"], 1),
    }


def _shards(folder: Path, count: int) -> DataConfig:
    """Return the configuration of shards of the toy world's records."""
    folder.mkdir()
    records = stage3_stream(3).batch(0, count)
    samples = ((f"{number:06d}", to_bytes(record)) for number, record in enumerate(records))
    write_shard(folder / "000000.tar", samples)
    return DataConfig(sources={"toy": SourceConfig(paths=str(folder))}, workers=1)


def _bare(model: nn.Module, stage: Timed, stream: Any, config: TrainConfig) -> None:  # noqa: ANN401
    """Do the steps of `fit`, of batches that are ready."""
    freeze_except(model, stage.trainable)
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer = make_optimizer(config.optim, named.values())
    average = Average(config.ema, named) if config.ema else None
    size = config.global_batch_size
    batches = [stage.collate(stream.batch(step, size)) for step in range(4)]
    for step in range(config.steps):
        batch = batches[step % 4]
        model.train()
        half = config.precision == "bfloat16"
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses = stage.loss(model, batch, micro_batch_generator(config.seed, step, 0))
        (_learned(losses) / stage.weight(batch)).backward()
        nn.utils.clip_grad_norm_(named.values(), config.optim.clip_norm)
        set_rate(optimizer, config.optim, updates_done=step, total_steps=config.steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if average:
            average.update(step + 1)


def paddings(rounds: int = 50) -> list[dict[str, Any]]:
    """Return the share of padding for so many groups of 56 captions."""
    rng = np.random.default_rng(0)
    drawn = rng.lognormal(np.log(LENGTHS["median"]), LENGTHS["sigma"], (rounds, 56))
    lengths = np.clip(drawn, 4, LENGTHS["longest"]).astype(int)
    rows = []
    for num_groups in (1, 2, 4, 6, 8, 12):
        shares = [padding(_grouped(some.tolist(), num_groups).batches) for some in lengths]
        rows.append(
            {
                "part": f"padding, {num_groups} groups",
                "mean": round(float(np.mean(shares)), 4),
                "most": round(max(shares), 4),
            }
        )
    return rows


def _grouped(lengths: Sequence[int], num_groups: int) -> Groups:
    encoded = [sequence(0, length - 1) for length in lengths]
    return group(encoded, num_groups=num_groups, pad_id=1)


def _name(dtype: torch.dtype) -> Any:  # noqa: ANN401 - one of a Literal's
    return str(dtype).removeprefix("torch.")


def main() -> None:
    """Measure each part and dtype in a process of its own and print one table."""
    parser = argparse.ArgumentParser(description="A step of training against the machine's limit.")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--depth", type=int, default=FULL_DEPTH)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        hold_on(None)  # as `fit` does
        dtype = getattr(torch, options.dtype[0])
        setting = Setting(
            dtype=dtype, depth=options.depth, repeats=options.repeats, compiled=options.compiled
        )
        measure = {"stage1": stage1, "stage2": stage2, "stage3": stage3, "loop": loop}
        measure |= {"padding": lambda _: paddings()}
        print(json.dumps(measure[options.part[0]](setting)))
        return
    rows: list[dict[str, Any]] = []
    for part in options.part:
        for dtype in ["float32"] if part == "padding" else options.dtype:
            words = ["--child", "--part", part, "--dtype", dtype, "--depth", str(options.depth)]
            words += ["--threads", str(options.threads), "--repeats", str(options.repeats)]
            words += ["--compiled"] if options.compiled else []
            command = [sys.executable, __file__, *words]
            made = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            for row in made if part == "padding" else [made]:
                rows.append({"part": part, "dtype": dtype, "depth": options.depth} | row)
                _show(rows[-1])
            out = Path("outputs") / "bench-train.json"
            out.parent.mkdir(exist_ok=True)
            out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def _show(row: Mapping[str, Any]) -> None:
    if "mean" in row:
        print(f"{row['part']:28}mean {row['mean']:.3f}, at most {row['most']:.3f}", flush=True)
        return
    said = ("part", "dtype", "seconds", "floor_s", "of_floor")
    print(
        f"{row['part']:8}{row['dtype']:10}{row['seconds']:9.3f} s, floor {row['floor_s']:.3f}: "
        f"{row['of_floor']:.3f} (aim {AIMS[row['part']]})\n"
        f"{'':8}{ {name: value for name, value in row.items() if name not in said} }",
        flush=True,
    )


if __name__ == "__main__":
    main()
