"""Networks that turn pictures into features: DINO, CLIP and Inception, from local files only.

What decides a number stands beside it: an encoder carries its name, the hash of its weights and how
pictures are resized for it.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from kosmosg import hashes
from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.evaluate.inception import SIDE, load_inception, resize_as_tensorflow
from kosmosg.images import clip_view

WEIGHTS_DIR = "KOSMOSG_WEIGHTS_DIR"
BATCH = 32
# Mean and spread of ImageNet's pictures, with which DINO was trained.
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)

Name = Literal["dino", "clip-b32", "clip-l14", "inception"]
Resize = Literal["tensorflow", "antialiased"]
# Where each lies in the folder of weights, and where it comes from.
_PLACES: Mapping[Name, tuple[str, str]] = {
    "dino": ("dino-vits16", "https://huggingface.co/facebook/dino-vits16"),
    "clip-b32": ("clip-vit-base-patch32", "https://huggingface.co/openai/clip-vit-base-patch32"),
    "clip-l14": ("clip-vit-large-patch14", "https://huggingface.co/openai/clip-vit-large-patch14"),
    "inception": (
        "weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
    ),
}
_ALSO: Mapping[Name, str] = {"inception": "inception.safetensors"}  # the same, converted


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoder:
    """A network of pictures' features, and what decides its numbers.

    Args:
        name: Of the network, such as `facebook/dino-vits16`'s folder.
        sha256: Of its weights.
        view: How pictures are resized for it, in words.
        pictures: Their features.
        texts: Of texts; None where it reads none.
    """

    name: str
    sha256: str
    view: str
    pictures: Callable[[Sequence[Image.Image]], Float[Tensor, "images features"]]
    texts: Callable[[Sequence[str]], Float[Tensor, "texts features"]] | None = None


def find_weights(name: Name, folder: Path | None) -> Path:
    """Return where an encoder's weights lie.

    Args:
        name: Of the encoder.
        folder: Of all encoders' weights; None is what the environment names.

    Raises:
        ConfigError: If no folder is named.
        CheckpointError: Naming what is missing, where it comes from and where to put it.
    """
    if folder is None:
        if not os.environ.get(WEIGHTS_DIR):
            raise ConfigError(
                "no folder of evaluators' weights is named; give --weights DIR, or set"
                f" {WEIGHTS_DIR}"
            )
        folder = Path(os.environ[WEIGHTS_DIR])
    place, source = _PLACES[name]
    path = folder / place
    if name in _ALSO and (other := folder / _ALSO[name]).exists():
        return other
    if not path.exists():
        raise CheckpointError(f"{path} is missing; get {source} and put it there")
    return path


def dino(directory: Path, *, device: torch.device) -> Encoder:
    """Return DINO, whose features are those of the class token after the last norm.

    Args:
        directory: Of a ViT as transformers writes it.
        device: Where it computes.

    Source:
        NUMERICS section 11: resized to 256 bicubic, centre 224, ImageNet's mean and spread.
    """
    from transformers import ViTModel

    model = _load(ViTModel, directory, device, add_pooling_layer=False)
    size = model.config.image_size
    shorter = size * 256 // 224

    def features(images: Sequence[Image.Image]) -> Tensor:
        views = torch.stack([_dino_view(image, shorter, size) for image in images])
        return model(pixel_values=views.to(device)).last_hidden_state[:, 0].float().cpu()

    return Encoder(
        name=directory.name,
        sha256=_hash(directory),
        view=f"shorter side {shorter} bicubic with antialias, centre {size}",
        pictures=_in_batches(features),
    )


def clip(directory: Path, *, device: torch.device) -> Encoder:
    """Return CLIP, whose features are those after its projections.

    Texts that are too long lose words, not the token that ends them, where CLIP reads the text.

    Args:
        directory: Of CLIP with its tokenizer, as transformers writes it.
        device: Where it computes.

    Source:
        NUMERICS section 11.
    """
    from transformers import CLIPModel, CLIPTokenizer

    model = _load(CLIPModel, directory, device)
    tokenizer = _read(
        directory, lambda: CLIPTokenizer.from_pretrained(directory, local_files_only=True)
    )
    size = model.config.vision_config.image_size
    length = model.config.text_config.max_position_embeddings

    def features(images: Sequence[Image.Image]) -> Tensor:
        views = torch.stack([clip_view(image, size) for image in images]).to(device)
        pooled = model.vision_model(pixel_values=views).pooler_output
        return model.visual_projection(pooled).float().cpu()

    def read(texts: Sequence[str]) -> Tensor:
        tokens = tokenizer(
            list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(device)
        pooled = model.text_model(**tokens).pooler_output
        return model.text_projection(pooled).float().cpu()

    return Encoder(
        name=directory.name,
        sha256=_hash(directory),
        view=f"shorter side {size} bicubic with antialias, centre {size}",
        pictures=_in_batches(features),
        texts=_in_batches(read),
    )


def inception(path: Path, *, resize: Resize, device: torch.device) -> Encoder:
    """Return Inception, with FID's features.

    Args:
        path: Of its weights.
        resize: `tensorflow`, aliased as in the release's time; `antialiased`, Pillow's bicubic
            filter on floats, as clean-fid recommends.
        device: Where it computes.

    Raises:
        CheckpointError: If the weights cannot be read.
    """
    network = load_inception(path).to(device)

    def features(images: Sequence[Image.Image]) -> Tensor:
        if resize == "tensorflow":
            pixels = resize_as_tensorflow(
                torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) for image in images
            )
        else:
            pixels = torch.stack([_antialiased(image) for image in images])
        return network(pixels.to(device)).cpu()

    return Encoder(
        name="inception-2015-12-05",
        sha256=hashes.of_file(path),
        view={
            "tensorflow": f"{SIDE} x {SIDE} as TensorFlow 1: bilinear without antialias",
            "antialiased": f"{SIDE} x {SIDE} bicubic with antialias, on floats",
        }[resize],
        pictures=_in_batches(features),
    )


def _antialiased(image: Image.Image) -> Float[Tensor, "3 299 299"]:
    """Return a picture's bytes resized channel by channel as floats, which are not rounded."""
    channels = [
        Image.fromarray(np.asarray(band, np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        for band in image.split()
    ]
    resized = np.stack([np.asarray(channel) for channel in channels])
    return torch.from_numpy(resized.clip(0, 255))


def _dino_view(image: Image.Image, shorter: int, size: int) -> Float[Tensor, "3 size size"]:
    width, height = image.size
    side = min(width, height)
    target = (shorter * width // side, shorter * height // side)
    resized = image.resize(target, Image.Resampling.BICUBIC) if target != image.size else image
    left, top = round((target[0] - size) / 2), round((target[1] - size) / 2)
    pixels = np.asarray(resized.crop((left, top, left + size, top + size)), np.float32) / 255
    return torch.from_numpy((pixels - _MEAN) / _STD).permute(2, 0, 1)


def _in_batches(features: Callable[[Sequence[Any]], Tensor]) -> Callable[[Sequence[Any]], Tensor]:
    """Return the same function for any number of inputs, without gradients."""

    @torch.inference_mode()
    def all_features(inputs: Sequence[Any]) -> Tensor:
        if not inputs:
            raise ConfigError("there are no pictures to compare")
        parts = [features(inputs[i : i + BATCH]) for i in range(0, len(inputs), BATCH)]
        return torch.cat(parts)

    return all_features


def _load(cls: Any, directory: Path, device: torch.device, **options: object) -> Any:  # noqa: ANN401 -- any model of transformers
    load = cls.from_pretrained
    model = _read(
        directory,
        lambda: load(
            directory, local_files_only=True, use_safetensors=True, dtype=torch.float32, **options
        ),
    )
    return model.eval().requires_grad_(False).to(device)


def _read(directory: Path, load: Callable[[], Any]) -> Any:  # noqa: ANN401 -- what it loads
    try:
        return load()
    except (OSError, ValueError, RuntimeError) as error:
        line = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"cannot load {directory}: {line}; it needs config.json, model.safetensors and, for"
            " texts, the tokenizer's files"
        ) from None


def _hash(directory: Path) -> str:
    return hashes.of_directory(directory)
