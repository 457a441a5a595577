"""What a run starts from: a released model, or the sizes of a new one; and what it leaves."""

import shutil
import sys
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from kosmosg import config, release
from kosmosg.convert import writing
from kosmosg.data.converted import with_shards
from kosmosg.data.sources import DataConfig, RowSizes, open_stream, open_validation
from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.image_decoder import ImageDecoder, scheduler
from kosmosg.model.kosmosg import KosmosG
from kosmosg.model.mllm import MLLM
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.tokenizer import DICTIONARY_FILE, Tokenizer
from kosmosg.train import distributed, towers
from kosmosg.train.loading import (
    has_part,
    load_decoder,
    load_part,
    load_vision,
    with_reconstruction,
)
from kosmosg.train.run import Parts, StageConfig, target_size
from kosmosg.train.rundir import SHARDS_NAME
from kosmosg.train.samples import of_prompts
from kosmosg.train.stage1_language import LanguageConfig
from kosmosg.train.stage2_align import AlignConfig
from kosmosg.train.stage3_instruct import InstructConfig

_FROZEN_PARTS = frozenset({"mllm", "aligner", "unet", "vae", "scheduler", towers.FOLDER})
NUM_SAMPLES = 8
# Of a released part these may be others than it was made with; the rest are its weights' shapes.
DROPOUTS = frozenset({"dropout", "attention_dropout", "resampler_dropout"})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model to be made where no released one is given, or what a released one lacks.

    `mllm` and `aligner` are the constructor arguments of `MLLM` and `AlignerNet` that differ from
    the released sizes. `clip` is a directory of CLIP's vision tower, `base` one of Stable
    Diffusion 1.5 (for its U-Net and VAE a file will do), `tokenizer` one of the tokenizer. `new`
    are parts to be made although a released model is given. `frozen` is the type of the U-Net, the
    VAE, the text tower and stage 2's language model: `auto` is bfloat16 where there is a GPU.
    """

    mllm: Mapping[str, Any] = field(default_factory=dict)
    aligner: Mapping[str, Any] = field(default_factory=dict)
    clip: str | None = None
    base: str | None = None
    tokenizer: str | None = None
    new: tuple[Literal["mllm", "aligner"], ...] = ()
    frozen: Literal["auto", "float32", "bfloat16"] = "auto"


def start(
    stage: StageConfig,
    *,
    init: Path | None,
    data: DataConfig | None,
    model: ModelConfig,
    seed: int,
    run_dir: Path | None = None,
) -> Parts:
    """Return what a stage works with: a model, its data, and what is frozen beside it.

    The model is float32, but for the language model of stage 2, which is frozen as a whole.

    A part comes from the released model if that has it. Stage 1 makes a new MLLM without one, stage
    2 an AlignerNet; its N is new unless the release has it (`kosmosg convert
    --keep-training-parts`). U-Net, VAE and text tower come from `model.base` where the release has
    none.

    Args:
        stage: Which stage.
        init: A directory that `kosmosg convert`, `save_pretrained` or `export` wrote, or `nano`.
        data: What to train from.
        model: What is not in `init`.
        seed: Of new weights.
        run_dir: Where shards of a user's folder are kept; None: only tars can be read.

    Raises:
        CheckpointError: If a part is missing, damaged or of other sizes, with what to give.
        ConfigError: If there is no data, or a configuration cannot be used.

    Source:
        NUMERICS section 8 for how new weights are drawn.
    """
    if data is None:
        raise ConfigError(
            f"stage {stage.kind!r} has nothing to train from; name a folder or tars: data=PATH"
        )
    parts = load(stage, init=init, model=model, seed=seed)
    line = nothing_held_out(stage, data)
    if line is not None and distributed.is_first():
        sys.stderr.write(f"{line}\n")
    if run_dir is not None:
        data = with_shards(data, run_dir / SHARDS_NAME)
    reader, decoder = parts.model, parts.image_decoder
    mllm = reader.mllm if isinstance(reader, KosmosG) else reader
    sizes = RowSizes(tokenizer=parts.tokenizer, num_latents=mllm.config["num_latents"])
    validation = open_validation(data, stage=stage.kind, sizes=sizes)
    samples = None
    if validation is not None and decoder is not None and isinstance(reader, KosmosG):
        pipe = _pipeline(_found(init), reader, decoder, parts.tokenizer)
        samples = of_prompts(pipe, validation.batch(0, NUM_SAMPLES))
    return replace(
        parts,
        stream=open_stream(data, stage=stage.kind, sizes=sizes),
        workers=data.workers,
        validation=validation,
        samples=samples,
    )


def load(stage: StageConfig, *, init: Path | None, model: ModelConfig, seed: int) -> Parts:
    """Return the model and what is frozen beside it, as `start` does, without data.

    Raises:
        CheckpointError: As `start`.
        ConfigError: If a configuration cannot be used.
    """
    directory = _found(init)
    tokenizer = load_tokenizer(directory, model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        aligns = isinstance(stage, AlignConfig)  # so that nothing of the language model learns
        mllm = load_mllm(
            directory,
            model,
            tokenizer,
            may_make=isinstance(stage, LanguageConfig),
            dtype=frozen_type(model) if aligns else torch.float32,
        )
        reader: MLLM | KosmosG = mllm
        if not isinstance(stage, LanguageConfig):
            aligner = _aligner(directory, model, mllm, may_make=aligns)
            reader = KosmosG(mllm, with_reconstruction(aligner, wanted=aligns))
    decoder = None
    if isinstance(stage, InstructConfig) and isinstance(reader, KosmosG):
        decoder = _decoder(directory, model, reader)
    return Parts(
        model=reader,
        tokenizer=tokenizer,
        text_tower=None
        if isinstance(stage, LanguageConfig | InstructConfig)
        else _text_tower(directory, model, tokenizer),
        image_decoder=decoder,
    )


def nothing_held_out(stage: StageConfig, data: DataConfig) -> str | None:
    """Return what a run without held-out records lacks, and how to name some; None: it has some."""
    if data.validation:
        return None
    sheets = " and no sheets of samples" if isinstance(stage, InstructConfig) else ""
    return (
        f"there will be no validation loss{sheets}, as no held-out records are named; name tars of"
        " them: data.validation.NAME.paths=TARS"
    )


def _found(init: Path | None) -> Path | None:
    return None if init is None else release.find(str(init))


# ------------------------------------------------------------------------------ one part each


def load_tokenizer(directory: Path | None, model: ModelConfig) -> Tokenizer:
    """Return the release's tokenizer, or the one that the configuration names.

    Raises:
        CheckpointError: If there is neither.
    """
    own = None if directory is None else directory / "tokenizer"
    if own is not None and (own / DICTIONARY_FILE).is_file():
        return Tokenizer.from_pretrained(own)
    if model.tokenizer is None:
        raise CheckpointError(
            f"there is no tokenizer in {directory}; name the directory of one: model.tokenizer=DIR"
            if directory
            else "a new model needs a tokenizer; name the directory of one: model.tokenizer=DIR"
        )
    return Tokenizer.from_pretrained(model.tokenizer)


def load_mllm(
    directory: Path | None,
    model: ModelConfig,
    tokenizer: Tokenizer,
    *,
    may_make: bool,
    dtype: torch.dtype,
) -> MLLM:
    """Return the release's MLLM in this type, or a new one in float32 with CLIP's vision tower.

    Raises:
        CheckpointError: If it is neither there nor may be made, or CLIP's is of other sizes.
        ConfigError: If the configuration gives sizes to one that has them.
    """
    if directory is not None and has_part(directory, "mllm") and "mllm" not in model.new:
        if sizes := model.mllm.keys() - DROPOUTS:
            raise ConfigError(
                f"model.mllm.{min(sizes)}: {directory} has an MLLM of its own sizes; leave it out,"
                " or make a new one: model.new=[mllm]"
            )
        return load_part(MLLM, directory, "mllm", dtype, **model.mllm)
    if not (may_make or "mllm" in model.new):
        raise CheckpointError(_lacks(directory, "mllm", "stage 1"))
    if model.clip is None:
        raise ConfigError(
            "a new MLLM sees through CLIP's vision tower; name a directory of it (ViT-L/14 for the"
            " released sizes): model.clip=DIR"
        )
    made = _made(MLLM, "mllm", {"vocab_size": tokenizer.vocab_size} | dict(model.mllm))
    if made.config["vocab_size"] != tokenizer.vocab_size:
        raise ConfigError(
            f"model.mllm.vocab_size is {made.config['vocab_size']} and the tokenizer has"
            f" {tokenizer.vocab_size} ids; leave it out"
        )
    load_vision(made.vision, Path(model.clip))
    return made


def _aligner(
    directory: Path | None, model: ModelConfig, mllm: MLLM, *, may_make: bool
) -> AlignerNet:
    if directory is not None and has_part(directory, "aligner") and "aligner" not in model.new:
        if sizes := model.aligner.keys() - DROPOUTS:
            raise ConfigError(
                f"model.aligner.{min(sizes)}: {directory} has an AlignerNet of its own"
                " sizes; leave it out, or make a new one: model.new=[aligner]"
            )
        return load_part(AlignerNet, directory, "aligner", torch.float32, **model.aligner)
    if not (may_make or "aligner" in model.new):
        raise CheckpointError(_lacks(directory, "aligner", "stage 2"))
    made = {"hidden_size": mllm.config["hidden_size"]} | dict(model.aligner)
    return _made(AlignerNet, "aligner", made)


def _decoder(directory: Path | None, model: ModelConfig, reader: KosmosG) -> ImageDecoder:
    embed_dim = reader.aligner.config["embed_dim"]
    return load_decoder(directory, model.base, embed_dim=embed_dim, dtype=frozen_type(model))


def _pipeline(
    directory: Path | None, reader: KosmosG, decoder: ImageDecoder, tokenizer: Tokenizer
) -> KosmosGPipeline:
    """Return what draws with the very parts that learn, by the release's own defaults."""
    side = target_size(decoder)
    defaults = release.GenerationConfig(height=side, width=side)
    if directory is not None and (directory / release.GENERATION_FILE).is_file():
        defaults = release.read_generation_config(directory)
    return KosmosGPipeline(
        mllm=reader.mllm,
        aligner=reader.aligner,
        unet=decoder.unet,
        vae=decoder.vae,
        scheduler=scheduler("dpms"),
        tokenizer=tokenizer,
        generation_config=defaults,
    )


def _text_tower(
    directory: Path | None, model: ModelConfig, tokenizer: Tokenizer
) -> towers.TextTower:
    base = [] if model.base is None else [Path(model.base)]
    return towers.load(
        [one / towers.FOLDER for one in (*([directory] if directory else []), *base)],
        [*(one / "tokenizer" for one in base), *([Path(model.clip)] if model.clip else [])],
        tokenizer,
        frozen_type(model),
    )


def _made(cls: Any, field: str, sizes: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- MLLM or AlignerNet
    try:
        return cls(**sizes)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ConfigError(f"model.{field}: {error}; correct it or leave it out") from None


def _lacks(directory: Path | None, part: str, stage: str) -> str:
    if directory is None:
        return (
            f"this stage goes on from {stage}, whose model is not given; name its directory:"
            f" init=DIR (or make a new part: model.new=[{part}])"
        )
    return (
        f"{directory} has no {part}/; give a directory of a model after {stage} as init, or make a"
        f" new part: model.new=[{part}]"
    )


def frozen_type(model: ModelConfig) -> torch.dtype:
    """Return the type of what is frozen beside the model."""
    name = model.frozen
    if name == "auto":
        name = "bfloat16" if torch.cuda.is_available() else "float32"
    return getattr(torch, name)


# ------------------------------------------------------------------------------- what is left


def export(parts: Parts, out: Path, *, init: Path | None) -> None:
    """Write what a stage has made as a directory that `init` takes, and `generate --model` too.

    What did not learn is copied from `init`, as it is there; what else lies there (a card, sums)
    stays behind. Trained parts are float32, as they were trained. After stages 1 and 2 of a new
    model there is no image decoder to generate with yet.

    Args:
        parts: What `start` returned, after the run; or `load`, after `restore`.
        out: The directory; one that exists gets these parts in place of its own.
        init: What the run started from.

    Raises:
        CheckpointError: If it cannot be written.
    """
    model, decoder = parts.model, parts.image_decoder
    trained: dict[str, Any] = {"mllm": model}
    if isinstance(model, KosmosG):
        trained = {"mllm": model.mllm, "aligner": model.aligner}
    source = _found(init)
    # Whoever holds a part in less than float32 learns nothing in it: `init` has all its digits.
    trained = {
        name: part
        for name, part in trained.items()
        if source is None or next(part.parameters()).dtype == torch.float32
    }
    try:
        with release.replacing(out) as made:
            parts.tokenizer.save_pretrained(made / "tokenizer")
            for name, part in trained.items():
                part.save_pretrained(made / name)
            if source is not None:
                _copy_rest(source, made, skip=trained.keys())
            if decoder is not None and not (made / "unet").is_dir():
                _save_decoder(decoder, made)
            writing.write_sums(made)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write {out}: {error}; make room or choose another directory"
        ) from None


def _copy_rest(source: Path, made: Path, *, skip: Set[str]) -> None:
    """Copy what generation or a later stage needs, and did not learn."""
    for name in _FROZEN_PARTS - skip:
        if (source / name).is_dir():
            shutil.copytree(source / name, made / name)
    for name in (release.GENERATION_FILE, release.INDEX_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, made / name)


def _save_decoder(decoder: ImageDecoder, made: Path) -> None:
    """Write what makes the directory a pipeline: U-Net, VAE, sampler and its defaults."""
    decoder.unet.save_pretrained(made / "unet")
    decoder.vae.save_pretrained(made / "vae")
    shutil.rmtree(made / "scheduler", ignore_errors=True)
    scheduler("dpms").save_pretrained(made / "scheduler")
    side = target_size(decoder)
    defaults = release.GenerationConfig(height=side, width=side)
    config.save(defaults, made / release.GENERATION_FILE)
    writing.write_index(made)
