"""Rules that leave records out: size, form, caption, safety. All are off unless they are set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from PIL import Image

from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    import torch

# How unsafe pictures are, each 0 to 1.
Judge: TypeAlias = Callable[[Sequence[Image.Image]], list[float]]


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A classifier of pictures in transformers' form.

    Args:
        directory: Of its files.
        hub: Where they can be had; only messages use it.
        unsafe: Names of its classes that count as unsafe; their probabilities are added.
    """

    directory: str
    hub: str = "Falconsai/nsfw_image_detection"
    unsafe: tuple[str, ...] = ("nsfw",)


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """What a picture and its caption must be like; the default takes all.

    Args:
        min_side: Of the picture as it came, in pixels; the release takes 384 of LAION.
        max_aspect: The longer side over the shorter.
        min_caption: Characters.
        max_caption: Characters.
        max_unsafe: The largest score that passes: LAION's `punsafe`, else the classifier's.
            Pictures without either do not pass.
        unsafe_labels: Values of LAION's column `NSFW` that do not pass, such as NSFW and UNSURE.
        classifier: Scores pictures without `punsafe`.

    Raises:
        ConfigError: If a number makes no sense, or there is a classifier without a limit.
    """

    min_side: int = 0
    max_aspect: float | None = None
    min_caption: int = 0
    max_caption: int | None = None
    max_unsafe: float | None = None
    unsafe_labels: tuple[str, ...] = ()
    classifier: ClassifierConfig | None = None

    def __post_init__(self) -> None:
        if self.max_aspect is not None and self.max_aspect < 1:
            raise ConfigError(f"filters.max_aspect is {self.max_aspect}; give at least 1")
        if self.max_caption is not None and self.max_caption < self.min_caption:
            raise ConfigError(
                f"filters.max_caption is {self.max_caption}, min_caption {self.min_caption}; no"
                " caption is both"
            )
        if self.max_unsafe is not None and not 0 <= self.max_unsafe <= 1:
            raise ConfigError(f"filters.max_unsafe is {self.max_unsafe}; give 0 to 1")
        if self.classifier is not None and self.max_unsafe is None:
            raise ConfigError("filters.classifier needs filters.max_unsafe; give 0 to 1")


def refuse_picture(
    image: Image.Image, provenance: Mapping[str, str], config: FilterConfig, judge: Judge | None
) -> str | None:
    """Return why a picture is left out, in few words; None if it passes.

    Args:
        image: As it came, before any crop.
        provenance: What its source says of it, by names in small letters.
        config: The rules.
        judge: Of `classifier`, where the configuration names one.

    Source:
        NUMERICS section 9 for the smallest side.
    """
    short, long = sorted(image.size)
    if short < config.min_side:
        return "too small"
    if config.max_aspect is not None and long > config.max_aspect * short:
        return "too long"
    labels = {label.lower() for label in config.unsafe_labels}
    if provenance.get("nsfw", "").strip().lower() in labels - {""}:
        return "labelled unsafe"
    if config.max_unsafe is None:
        return None
    score = _number(provenance.get("punsafe"))
    if score is None and judge is not None:
        score = judge([image])[0]
    if score is None:
        return "no safety score"
    return None if score <= config.max_unsafe else "unsafe"


def refuse_caption(caption: str, config: FilterConfig) -> str | None:
    """Return why a caption is left out, in few words; None if it passes."""
    if len(caption) < config.min_caption:
        return "caption too short"
    if config.max_caption is not None and len(caption) > config.max_caption:
        return "caption too long"
    return None


def load_judge(directory: Path, config: ClassifierConfig, *, device: "torch.device") -> Judge:
    """Return a transformers classifier as a judge.

    Args:
        directory: Where its files are.
        config: Which classes count as unsafe.
        device: To run on, in float32.

    Raises:
        ConfigError: If it has no such class, or is damaged or another kind of model.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    try:
        model = AutoModelForImageClassification.from_pretrained(
            directory, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        # Not the default, which wants torchvision.
        look = AutoImageProcessor.from_pretrained(directory, local_files_only=True, backend="pil")
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ConfigError(
            f"filters.classifier: {directory}: {' '.join(str(error).split())[:200]}; fetch"
            f" {config.hub} again"
        ) from error
    named = {name.lower(): index for index, name in model.config.id2label.items()}
    missing = [name for name in config.unsafe if name.lower() not in named]
    if missing or not config.unsafe:
        raise ConfigError(
            f"the classifier in {directory} knows {', '.join(named)}, not {', '.join(missing)};"
            " name its unsafe classes with filters.classifier.unsafe"
        )
    unsafe = [int(named[name.lower()]) for name in config.unsafe]
    model.to(device).eval()  # pyright: ignore[reportArgumentType] -- a decorator hides the type

    def judge(images: Sequence[Image.Image]) -> list[float]:
        inputs = look(images=list(images), return_tensors="pt").to(device)
        with torch.no_grad():
            chances = model(**inputs).logits.float().softmax(-1)
        return chances[:, unsafe].sum(-1).clamp(0, 1).tolist()

    return judge


def _number(text: str | None) -> float | None:
    try:
        score = float(text or "")
    except ValueError:
        return None
    return score if 0 <= score <= 1 else None
