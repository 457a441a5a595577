"""Full-size runs as functions: the paper's three stages, the release's, and table 2's ablations.

Numbers are the paper's where it speaks and the release's where it is silent (docs/training.md has
each difference). Hours are arithmetic, not measurements: `kosmosg train RECIPE --dry-run --gpus 64
--gpu-kind A100-80GB`, whose products run at 40% of the stated rate; the paper's own took four days
on 256 V100. Expected numbers are the paper's; none was measured here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kosmosg import release
from kosmosg.config import to_dict
from kosmosg.data.packing import SEQ_LEN
from kosmosg.data.rows import WEIGHTS, batch_rows
from kosmosg.data.sources import DataConfig, SourceConfig
from kosmosg.errors import ConfigError
from kosmosg.train import distributed
from kosmosg.train import start as beginning
from kosmosg.train.optim import OptimConfig
from kosmosg.train.run import RunConfig, StageConfig, restore, run
from kosmosg.train.stage1_language import LanguageConfig
from kosmosg.train.stage2_align import AlignConfig
from kosmosg.train.stage3_instruct import InstructConfig
from kosmosg.train.start import ModelConfig
from kosmosg.train.trainconfig import TrainConfig

# The paper freezes CLIP but for its last layer; the release adds the norm after it.
LAST_VISION_LAYER = ("vision.clip.encoder.layers.last.*", "vision.clip.post_layernorm.*")
LANGUAGE = ("resampler.*", "embed_tokens.*", "layers.*", "layer_norm.*", *LAST_VISION_LAYER)
JOINTLY = ("aligner.encoder.*", *(f"mllm.{name}" for name in LANGUAGE))
BASE, CLIP, TOKENIZER = "stable-diffusion-v1-5", "clip-vit-large-patch14", "tokenizer"
DROPOUT = {"dropout": 0.1}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One stage: what learns how, from which weights and which data.

    `init` is a released model's directory; None makes a new one as `model` says.
    """

    stage: StageConfig
    train: TrainConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    init: str | None = None
    data: DataConfig | None = None


def _train(*, seed: int, steps: int, batch: int, micro_batch: int, lr: float) -> TrainConfig:
    """Return what all stages share."""
    return TrainConfig(
        seed=seed,
        steps=steps,
        global_batch_size=batch,
        micro_batch=micro_batch,
        optim=OptimConfig(
            lr=lr,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.01,
            clip_norm=2.0,
            schedule="linear",
            warmup_steps=375,
        ),
        ema=None,
        precision="bfloat16",
        gathered="step",
        checkpoint_s=1800.0,
        validate_every=1000,
    )


def _data(seed: int, weights: Mapping[str, int], **options: Any) -> DataConfig:  # noqa: ANN401
    sources = {name: SourceConfig(paths=f"data/{name}", weight=weights[name]) for name in weights}
    return DataConfig(sources=sources, seed=seed, workers=8, **options)


def stage1() -> Recipe:
    """Stage 1, multimodal language modelling: 300,000 steps of 1.2 million tokens.

    kosmosg train stage1 model.clip=DIR model.tokenizer=DIR; 64 A100-80GB: 127 hours. The paper
    gives no number for it; the stages after it have theirs.

    Source:
        Paper section 2.1 and appendix A; epsilon, clipping and the last norm of CLIP from NUMERICS
        section 8, since no stage 1 was released.
    """
    return Recipe(
        stage=LanguageConfig(trainable=LANGUAGE),
        train=_train(seed=1, steps=300_000, batch=batch_rows(), micro_batch=4, lr=2e-4),
        model=ModelConfig(mllm=DROPOUT, clip=CLIP, tokenizer=TOKENIZER),
        data=_data(1, WEIGHTS, row=SEQ_LEN, row_cache="data/lengths"),
    )


def stage2() -> Recipe:
    """Stage 2, aligning the image decoder: 300,000 steps of 3,584 captions.

    kosmosg train stage2 init=DIR model.base=DIR; 64 A100-80GB: 5.7 hours. Expect FID 9.55 on
    MS-COCO (table 2; Stable Diffusion 1.5 has 9.34).

    Source:
        Paper section 2.2 and appendix A. The language model is in evaluation mode, and pads are not
        reconstructed, which is ours; the weights of both losses are the release's. Eight groups of
        like length change no loss and keep padding below a tenth (docs/results.md).
    """
    stage = AlignConfig(padding="masked", mllm="eval", reconstruction_weight=1.0, length_groups=8)
    return Recipe(
        stage=stage,
        train=_train(seed=2, steps=300_000, batch=3584, micro_batch=56, lr=1e-3),
        model=ModelConfig(aligner=DROPOUT, base=BASE),
        init="runs/stage1/model",
        data=_data(2, {"captions": 1}),
    )


def stage3() -> Recipe:
    """Stage 3, instruction tuning: 200,000 steps of 1,024 pictures.

    kosmosg train stage3 init=DIR model.base=DIR; 64 A100-80GB: 27 hours. Expect on DreamBench DINO
    .694, CLIP-I .847 and CLIP-T .287, and FID 10.99 on MS-COCO (table 1).

    Source:
        Paper sections 2.3, 3.2 and appendix A; a tenth of the prompts dropped for guidance is the
        release's, like w(t) = 1. Six groups of like length keep padding below a tenth.
    """
    stage = InstructConfig(
        trainable=JOINTLY, condition_drop=0.1, loss_weighting="uniform", length_groups=6
    )
    return Recipe(
        stage=stage,
        train=_train(seed=3, steps=200_000, batch=1024, micro_batch=16, lr=1e-3),
        model=ModelConfig(aligner=DROPOUT, base=BASE),
        init="runs/stage2/model",
        data=_data(3, {"constructed": 2, "edits": 2, "captions": 1}, drop="entity"),
    )


# ------------------------------------------------------------------------------------- as released


def _as_released(recipe: Recipe) -> Recipe:
    """Return it with their Adam, and in float16 with a scale of the loss."""
    optim = replace(recipe.train.optim, eps_scale="raw")
    return replace(recipe, train=replace(recipe.train, optim=optim, precision="float16"))


def stage2_as_released() -> Recipe:
    """Stage 2 as the authors' scripts run it: dropout in the frozen MLLM, pads reconstructed.

    kosmosg train stage2-as-released init=DIR model.base=DIR; 64 A100-80GB: 5.7 hours. A micro-batch
    is a GPU's 56 captions, on whose longest the loss depends. Expect as `stage2`.

    Source:
        NUMERICS sections 6, 8 and 9. AlignerNet has no dropout there.
    """
    recipe = _as_released(stage2())
    stage = AlignConfig(padding="released", mllm="train", reconstruction_weight=1.0)
    return replace(recipe, stage=stage, model=ModelConfig(base=BASE))


def stage3_as_released() -> Recipe:
    """Stage 3 as the authors' scripts run it: one coin for the words of all entities of a sample.

    kosmosg train stage3-as-released init=DIR model.base=DIR; 64 A100-80GB: 27 hours. Begin with a
    stage 2 as released, or with the authors' own converted. Expect as `stage3`.

    Source:
        NUMERICS sections 6, 8 and 9. Deviation: each batch there is of one source, drawn unseeded.
    """
    recipe = replace(_as_released(stage3()), init="runs/stage2-as-released/model")
    return replace(recipe, data=replace(_need(recipe.data), drop="sample"))


# --------------------------------------------------------------------------- ablations of table 2


def ablation_e2e() -> Recipe:
    """End to end: no stage 2, the diffusion loss on captions teaches a new AlignerNet.

    kosmosg train ablation-e2e init=DIR model.base=DIR; 64 A100-80GB: 7.1 hours. It has a third of
    stage 3's steps: the GPU days of the paper's stage 2 (one day for it, three for stage 3). Expect
    FID 11.30.

    Source:
        Paper section 4.3, "E2E w/ AlignerNet". Its data and steps are not said: these are stage 2's
        captions, with their pictures, and the same GPU days.
    """
    model = ModelConfig(aligner=DROPOUT, base=BASE, new=("aligner",))
    train = replace(stage3().train, steps=66_667)
    return replace(stage3(), init=stage2().init, model=model, train=train, data=stage2().data)


def ablation_e2e_without_aligner() -> Recipe:
    """The same without AlignerNet: one linear map from each position to the U-Net.

    kosmosg train ablation-e2e-without-aligner init=DIR model.base=DIR; 64 A100-80GB: 7 hours.
    Expect it to fail, as in the paper: no picture that means anything.

    Source:
        Paper section 4.3, "E2E w/o AlignerNet"; the map is our reading (`LinearEncoder`).
    """
    return _with_aligner(ablation_e2e(), stacks="none")


def ablation_decoder_only() -> Recipe:
    """Stage 2 with queries that read the words directly: twelve layers, no stack over the words.

    kosmosg train ablation-decoder-only init=DIR model.base=DIR; 64 A100-80GB: 4.9 hours. Expect it
    to fail, as in the paper.

    Source:
        Paper section 4.3, "12-Layers Decoder".
    """
    return _with_aligner(stage2(), stacks="queries", **DROPOUT)


def ablation_12_layers() -> Recipe:
    """Stage 2 with twelve layers in M, six in each stack, and as many in N.

    kosmosg train ablation-12-layers init=DIR model.base=DIR; 64 A100-80GB: 4.1 hours. Expect FID
    9.89.

    Source:
        Paper section 4.3, "12-Layers AlignerNet": beside a decoder of twelve layers, and under the
        24 of the model that was kept, we read it as the layers of both stacks together.
    """
    return _with_aligner(stage2(), num_layers=6, **DROPOUT)


def ablation_24_layers() -> Recipe:
    """Stage 2 with 24 layers in M, twelve in each stack: the paper's choice, `stage2` itself.

    kosmosg train ablation-24-layers init=DIR model.base=DIR; 64 A100-80GB: 5.7 hours. Expect FID
    9.55.

    Source:
        Paper section 4.3, "24-Layers AlignerNet".
    """
    return _with_aligner(stage2(), num_layers=12, **DROPOUT)


def _with_aligner(recipe: Recipe, **arguments: Any) -> Recipe:  # noqa: ANN401 - AlignerNet's own
    return replace(recipe, model=replace(recipe.model, aligner=arguments))


RECIPES: Mapping[str, Callable[[], Recipe]] = {
    made.__name__.replace("_", "-"): made
    for made in (
        *(stage1, stage2, stage3, stage2_as_released, stage3_as_released),
        *(ablation_e2e, ablation_e2e_without_aligner, ablation_decoder_only),
        *(ablation_12_layers, ablation_24_layers),
    )
}


# ------------------------------------------------------------------------------------ running one


def train(recipe: Recipe, run_dir: Path, *, resume: bool = False) -> Path:
    """Run a recipe; return the directory of the model that it made, for `init` and `generate`.

    Raises:
        CheckpointError: If weights that it starts from are missing or damaged.
        ConfigError: If its data is missing, or as `fit`.
    """
    init = None if recipe.init is None else Path(recipe.init)
    parts = beginning.start(
        recipe.stage,
        init=init,
        data=recipe.data,
        model=recipe.model,
        seed=recipe.train.seed,
        run_dir=run_dir,
    )
    config = RunConfig(stage=recipe.stage, train=recipe.train)
    run(config, parts, run_dir, resume=resume, recipe=to_dict(recipe))
    out = run_dir / "model"
    if distributed.is_first():
        beginning.export(parts, out, init=init)
    distributed.wait_for_all()
    return out


def export(recipe: Recipe, run_dir: Path, out: Path) -> Path:
    """Write what a run has made by its newest whole checkpoint, as `train` does at the end.

    Nothing is trained, no data is read, and the run's directory stays as it is.

    Args:
        recipe: The run's.
        run_dir: The run's.
        out: The model's directory.

    Raises:
        CheckpointError: If there is no whole checkpoint, or weights that it started from are gone.
        ConfigError: If the run was begun with another recipe, or `out` is where it began.
    """
    init = None if recipe.init is None else Path(recipe.init)
    if init is not None and release.find(str(init)).resolve() == out.resolve():
        raise ConfigError(f"{out} is what the run goes on from; export to another directory")
    parts = beginning.load(recipe.stage, init=init, model=recipe.model, seed=recipe.train.seed)
    config = RunConfig(stage=recipe.stage, train=recipe.train)
    restore(config, parts, run_dir, recipe=to_dict(recipe))
    beginning.export(parts, out, init=init)
    return out


def _need(data: DataConfig | None) -> DataConfig:
    assert data is not None  # each stage above has some
    return data
