"""Tuning to one subject: a few pictures of it, and low-rank adapters of the MLLM and M.

Stage 3's loss on prompts that show one picture of the subject and ask for another. What the prompt
says of the other picture is its own caption where there is one, else a template; what it does not
say, the pictures of the subject have in common. Prompts about other things keep their conditions.

Source:
    Not in the paper, whose model needs no tuning; DreamBooth's setting (three to five pictures of
    one subject) with the subject shown, not named by a rare word.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from kosmosg import adapter, hashes, release
from kosmosg.adapter import AdapterConfig
from kosmosg.config import to_dict
from kosmosg.data.compose import DROP_PROBABILITY, Composed
from kosmosg.data.converted import with_shards
from kosmosg.data.mixture import Stream, seed_of
from kosmosg.data.sources import DataConfig, open_stream
from kosmosg.errors import CheckpointError, ConfigError, PromptError
from kosmosg.images import open_image
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.kosmosg import KosmosG
from kosmosg.model.mllm import MLLM
from kosmosg.sequence import Prompt
from kosmosg.tokenizer import Tokenizer
from kosmosg.train.loading import load_decoder, load_part, with_reconstruction
from kosmosg.train.loop import fit, restore_result
from kosmosg.train.optim import OptimConfig
from kosmosg.train.readiness import missing_data
from kosmosg.train.run import Parts, RunConfig, check_shared, make_stage
from kosmosg.train.rundir import SHARDS_NAME
from kosmosg.train.shapes import Tuning, mean_record
from kosmosg.train.stage3_instruct import InstructConfig, InstructStage
from kosmosg.train.stage_subject import BesideStream, SubjectStage
from kosmosg.train.trainconfig import TrainConfig

PLACE = "{}"
ADAPTER_FILE = f"adapter{adapter.SUFFIX}"
MAX_PICTURES = 64
TEMPLATES = ("{}", "a photo of {}", "a picture of {}")


@dataclass(frozen=True, kw_only=True)
class SubjectConfig:
    """One subject's tuning.

    `init` is a model's directory, or `nano`; `pictures` are files, of which each may have its words
    in a .txt of the same name. `name` stands before the picture in half of the prompts, as the
    words of an entity do in stage 3; empty is no words at all. `templates` have `{}` where the
    subject stands; they are for pictures without a caption. `prior` are records of other things,
    such as stage 3's own, of which only the prompts are used: `prior_weight` come on each prompt
    of the subject, and `keep_weight` says how firmly their conditions are held to those without
    the adapter, and the null prompt's, with or without a prior.
    """

    init: str = "nano"
    pictures: tuple[str, ...] = ()
    name: str = ""
    templates: tuple[str, ...] = TEMPLATES
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    stage: InstructConfig
    train: TrainConfig
    prior: DataConfig | None = None
    prior_weight: int = 1
    keep_weight: float = 4.0


def subject() -> SubjectConfig:
    """Return the tuning of one subject: on nano one to two minutes of one core.

    Command: `kosmosg train subject --pictures 1.jpg 2.jpg --name "my dog" init=DIR -o RUN`. At full
    size one GPU of 24 GB does, by `--dry-run --gpus 1 --gpu-kind RTX4090`; not yet run there.
    """
    return SubjectConfig(
        stage=InstructConfig(
            trainable=adapter.TRAINABLE,
            condition_drop=0.0,  # the null prompt is kept
            loss_weighting="min_snr",
            min_snr_gamma=5.0,
        ),
        train=TrainConfig(
            seed=0,
            steps=120,
            global_batch_size=8,
            micro_batch=8,
            optim=OptimConfig(
                lr=1e-3, weight_decay=0.0, clip_norm=1.0, schedule="cosine", warmup_steps=10
            ),
            ema=None,
            precision="bfloat16",
        ),
    )


def tuning(config: SubjectConfig) -> Tuning:
    """Return what it adds to stage 3, for the arithmetic."""
    beside = 0 if config.prior is None else config.prior_weight
    kept = mean_record(config.stage, config.prior)
    return Tuning(adapter=config.adapter, beside=beside, kept=kept)


def missing(config: SubjectConfig) -> list[str]:
    """Return what `tune` would not find, one line each with what to do; nothing: all is there."""
    lines = [
        f"there is no picture {name}; correct its path"
        for name in config.pictures
        if not Path(name).expanduser().is_file()
    ]
    if not config.pictures:
        lines.append("no picture of the subject is named; name some: --pictures 1.jpg 2.jpg")
    is_shipped = config.init in release.SHIPPED
    directory = release.find(config.init) if is_shipped else Path(config.init)
    for part in ("mllm", "aligner", "unet", "vae"):
        try:
            release.check_part(directory, part)
        except CheckpointError as error:
            lines.append(f"{error}; name the directory of a whole model: init=DIR")
    if not (directory / "tokenizer").is_dir():
        lines.append(f"{directory} has no tokenizer; name the directory of a model: init=DIR")
    return lines + ([] if config.prior is None else missing_data(config.prior, field="prior"))


def tune(config: SubjectConfig, run_dir: Path, *, resume: bool = False) -> Path:
    """Tune to the subject; return the adapter's file, `run_dir/adapter/adapter.safetensors`.

    The model itself stays as it is and is held in bfloat16 on a GPU; the adapter is float32.

    Args:
        config: What to tune, on which pictures.
        run_dir: As of `fit`.
        resume: Continue a run that was stopped.

    Raises:
        ConfigError: If the pictures or the configuration cannot be used; else as `fit`.
        CheckpointError: If the model is not whole, or the adapter cannot be written.
        PromptError: If a picture cannot be read.
    """
    shown = read_pictures([Path(name).expanduser() for name in config.pictures], name=config.name)
    subject = SubjectStream(
        shown, name=config.name, templates=config.templates, seed=config.train.seed
    )
    parts = _parts(config)
    stream = _with_prior(config, subject, run_dir)
    stage = _stage(config, parts)
    fit(parts.model, stage, stream, config.train, run_dir, resume=resume, recipe=to_dict(config))
    path = run_dir / "adapter" / ADAPTER_FILE
    _write(config, parts, path, steps=config.train.steps)
    return path


def export(config: SubjectConfig, run_dir: Path, out: Path) -> Path:
    """Write the adapter of a run's newest whole checkpoint into a directory; return its file.

    Nothing is trained, and the run's directory stays as it is.

    Args:
        config: The run's.
        run_dir: The run's.
        out: A directory for the adapter.

    Raises:
        CheckpointError: If there is no whole checkpoint, or the adapter cannot be written.
        ConfigError: If the run was begun with another configuration.
    """
    parts = _parts(config)
    stage = _stage(config, parts)
    step = restore_result(parts.model, stage, config.train, run_dir, recipe=to_dict(config))
    _write(config, parts, out / ADAPTER_FILE, steps=step)
    return out / ADAPTER_FILE


def _parts(config: SubjectConfig) -> Parts:
    """Return the model with a new adapter in it, and its image decoder."""
    directory = release.find(config.init)
    on_gpu = config.train.device != "cpu" and torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    tokenizer = Tokenizer.from_pretrained(directory / "tokenizer")
    aligner = load_part(AlignerNet, directory, "aligner", dtype)
    model = KosmosG(
        load_part(MLLM, directory, "mllm", dtype), with_reconstruction(aligner, wanted=False)
    )
    decoder = load_decoder(directory, None, embed_dim=aligner.config["embed_dim"], dtype=dtype)
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        adapter.add(model, config.adapter)
    return Parts(model=model, tokenizer=tokenizer, image_decoder=decoder)


def _write(config: SubjectConfig, parts: Parts, path: Path, *, steps: int) -> None:
    assert isinstance(parts.model, KosmosG)  # of `_parts`
    directory = release.find(config.init)
    provenance = {
        "name": config.name,
        "pictures": {Path(name).name: hashes.of_file(Path(name)) for name in config.pictures},
        "model": directory.resolve().name,
        "steps": steps,
        "seed": config.train.seed,
        "kosmosg": version("kosmosg"),
    }
    adapter.write(
        path, parts.model, config.adapter, base=adapter.base_of(directory), provenance=provenance
    )


def _stage(config: SubjectConfig, parts: Parts) -> SubjectStage:
    assert isinstance(parts.model, KosmosG)  # of `_parts`
    mllm = parts.model.mllm
    check_shared(RunConfig(stage=config.stage, train=config.train))
    instruct = make_stage(config.stage, parts, precision=config.train.precision)
    assert isinstance(instruct, InstructStage)  # what this configuration stands for
    return SubjectStage(
        instruct,
        tokenizer=parts.tokenizer,
        num_latents=mllm.config["num_latents"],
        image_size=mllm.config["image_size"],
        keep_weight=config.keep_weight,
    )


def _with_prior(config: SubjectConfig, subject: Stream, run_dir: Path) -> BesideStream:
    prior = None
    if config.prior is not None:
        prior = open_stream(with_shards(config.prior, run_dir / SHARDS_NAME), stage="instruct")
    return BesideStream(subject, prior, count=config.prior_weight)


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """A picture of the subject, and the words around it: before it and after it."""

    image: Image.Image
    words: tuple[str, str] | None = None


def read_pictures(paths: Sequence[Path], *, name: str) -> list[Shown]:
    """Return the pictures, each with the words of the .txt beside it where there is one.

    Where the text holds the subject's name the picture stands in its place, else before the text.

    Raises:
        ConfigError: If there are none, or too many.
        PromptError: If one cannot be read.
    """
    if not 1 <= len(paths) <= MAX_PICTURES:
        raise ConfigError(
            f"there are {len(paths)} pictures of the subject; give 1 to {MAX_PICTURES} with"
            " --pictures"
        )
    read = []
    for path in paths:
        text = path.with_suffix(".txt")
        try:
            said = text.read_text(encoding="utf-8-sig").strip() if text.is_file() else None
        except (OSError, UnicodeDecodeError) as error:
            raise PromptError(f"{text}: {error}; save it as UTF-8") from None
        words = None if said is None else around(said, name)
        read.append(Shown(image=open_image(path), words=words))
    return read


def around(text: str, name: str) -> tuple[str, str]:
    """Return the words before the subject and those after it.

    Example:
        >>> around("a photo of my dog in the snow", "my dog")
        ('a photo of ', ' in the snow')
        >>> around("in the snow", "my dog")
        ('', ' in the snow')
    """
    for place in (PLACE, name):
        if place and place in text:
            before, _, after = text.partition(place)
            return before, after
    return "", f" {text}"


class SubjectStream:
    """Endless prompts about one subject; each depends on (seed, index) only.

    Every picture is aimed at equally often. The one shown is another, where there is another;
    where not, a part of the same, or its mirror image, so that copying is no answer.

    Args:
        pictures: Of the subject.
        name: What it is called; empty: nothing.
        templates: With `{}` where it stands, for pictures without words of their own.
        seed: Of everything drawn.

    Raises:
        ConfigError: If a template has no `{}` or there are no templates.
    """

    def __init__(
        self, pictures: Sequence[Shown], *, name: str, templates: Sequence[str], seed: int
    ) -> None:
        wrong = [template for template in templates if template.count(PLACE) != 1]
        if wrong or not templates:
            raise ConfigError(
                f"template {wrong[0] if wrong else ''!r} must have {PLACE} once, where the subject"
                " stands"
            )
        self._pictures = list(pictures)
        self._name = name
        self._templates = [around(template, PLACE) for template in templates]
        self._seed = seed

    def batch(self, step: int, size: int) -> list[Composed]:
        """Return prompts number `step * size` to `(step + 1) * size - 1`."""
        return [self._composed(index) for index in range(step * size, (step + 1) * size)]

    def _composed(self, index: int) -> Composed:
        count = len(self._pictures)
        turn, place = divmod(index, count)
        order = np.random.default_rng(seed_of(self._seed, "order", turn)).permutation(count)
        target = int(order[place])
        rng = np.random.default_rng(seed_of(self._seed, index))
        drawn = self._templates[int(rng.integers(len(self._templates)))]
        before, after = self._pictures[target].words or drawn
        named = self._name if rng.random() >= DROP_PROBABILITY else ""
        other = int(rng.integers(count - 1)) if count > 1 else 0
        image = self._pictures[other + (count > 1 and other >= target)].image
        shown = image if count > 1 else _another_look(image, rng)
        said = f"{before}{named}".strip()
        prompt: Prompt = [*([said] if said else []), shown]
        if after.strip():
            prompt = [*prompt, after]
        return Composed(
            key=f"subject-{index}",
            prompt=prompt,
            target=self._pictures[target].image,
            caption=f"{before}{self._name}{after}".strip() or None,
        )


def _another_look(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a part of the picture, 70 to 100 in a hundred each way, half of them mirrored."""
    share = rng.uniform(0.7, 1.0)
    width, height = (max(1, round(side * share)) for side in image.size)
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    part = image.crop((left, top, left + width, top + height))
    return ImageOps.mirror(part) if rng.random() < 0.5 else part
