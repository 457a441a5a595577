"""Pictures in and out: opening untrusted files, and the two views that the model looks at."""

import struct
import warnings
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from kosmosg.errors import PromptError

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64_000_000
MAX_ASPECT = 32
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
WHITE = (255, 255, 255, 255)

# What Pillow's decoders raise on damaged bytes, found by fuzzing them.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def open_image(source: str | Path | bytes | BinaryIO) -> Image.Image:
    """Return the picture of an untrusted file as upright RGB; of an animation, its first frame.

    Args:
        source: A path, the bytes of a file, or a file opened for reading bytes.

    Raises:
        PromptError: If it does not exist, is no picture, is damaged, or is too large or too thin.
    """
    name = str(source) if isinstance(source, str | Path) else "the picture"
    data = _read(source, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(data), formats=FORMATS)
        _check_size(image, name)
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PromptError(_too_large(name)) from error
    except Image.UnidentifiedImageError as error:
        raise PromptError(
            f"{name} is not a picture that can be read; save it as PNG or JPEG"
        ) from error
    except _DAMAGE as error:
        raise PromptError(_damaged(name, error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any mode as 8-bit RGB, transparent parts on white.

    White, because the pictures the model learnt from are cut out on white.

    Raises:
        PromptError: If its file turns out to be damaged, or its pixels are 32-bit numbers, of
            which nobody knows the range.
    """
    try:
        image.load()  # a file is decoded only now
    except _DAMAGE as error:
        raise PromptError(_damaged("a picture", error)) from error
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image, np.float64) / 257).round().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise PromptError(
            f"a picture has 32-bit pixels (mode {image.mode}); save it as 8-bit PNG or JPEG"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")
    return image.convert("RGB")


def clip_view(image: Image.Image, size: int = 224) -> Float[Tensor, "3 {size} {size}"]:
    """Return what CLIP sees of a picture: its centre square, bicubic, normalised.

    Raises:
        PromptError: If the picture is more than 32 times as long as wide.

    Source:
        NUMERICS section 3.1 (`gpt`): float64 until the end.
    """
    pixels = _centre_square(image, size, Image.Resampling.BICUBIC)
    return torch.from_numpy((pixels / 255 - CLIP_MEAN) / CLIP_STD).permute(2, 0, 1).float()


def decoder_view(image: Image.Image, size: int = 512) -> Float[Tensor, "3 {size} {size}"]:
    """Return what the image decoder learns to paint: the centre square, bilinear, in [-1, 1].

    Raises:
        PromptError: If the picture is more than 32 times as long as wide.

    Source:
        NUMERICS section 3.1 (`diff`).
    """
    pixels = _centre_square(image, size, Image.Resampling.BILINEAR)
    return torch.from_numpy((pixels / 255 - 0.5) / 0.5).permute(2, 0, 1).float()


def to_pil(picture: Float[Tensor, "3 height width"]) -> Image.Image:
    """Return the picture of a tensor in [-1, 1], the inverse of `decoder_view`; clips the rest.

    Source:
        NUMERICS section 10: uint8 = round(255 y).
    """
    unit = (picture.detach().float().cpu() / 2 + 0.5).clamp(0, 1)
    return Image.fromarray((unit * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def _centre_square(image: Image.Image, size: int, resample: Image.Resampling) -> np.ndarray:
    """Return height x width x 3 in 0..255 after resizing the shorter side to `size`."""
    image = to_rgb(image)
    if image.size != (size, size):
        _check_aspect(image, "a picture")
        width, height = image.size
        short = min(width, height)
        target = (int(size * width / short), int(size * height / short))
        if target != image.size:
            image = image.resize(target, resample)
        left, top = round((target[0] - size) / 2), round((target[1] - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, np.float64)


def _read(source: str | Path | bytes | BinaryIO, name: str) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        try:
            if isinstance(source, str | Path):
                with Path(source).open("rb") as file:
                    data = file.read(MAX_BYTES + 1)
            else:
                data = source.read(MAX_BYTES + 1)
        except OSError as error:
            reason = error.strerror or error
            raise PromptError(f"cannot open {name}: {reason}; check the path") from error
    if len(data) > MAX_BYTES:
        raise PromptError(f"{name} has more than {MAX_BYTES // 2**20} MiB; make it smaller")
    if not data:
        raise PromptError(f"{name} is empty (0 bytes); save or download it again")
    return data


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise PromptError(f"{_too_large(name)} (it has {width} x {height})")
    _check_aspect(image, name)


def _check_aspect(image: Image.Image, name: str) -> None:
    width, height = image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise PromptError(
            f"{name} is {width} x {height}, more than {MAX_ASPECT} times as long as wide; crop it"
        )


def _damaged(name: str, error: BaseException) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{name} is a damaged picture ({reason}); save or download it again"


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS // 10**6} million pixels; make it smaller"
