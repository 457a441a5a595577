"""Pictures in and out: opening untrusted files, and the two views that the model looks at."""

import re
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from kosmosg.errors import ConfigError, PromptError

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64_000_000
MAX_ASPECT = 32
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
ORIENTATION = 0x0112  # the tag of EXIF
WHITE = (255, 255, 255, 255)
# What each of the 256 levels becomes, by channel: computed in float64, rounded once.
_CLIP_VALUES = ((np.arange(256)[:, None] / 255 - CLIP_MEAN) / CLIP_STD).astype(np.float32).T.copy()

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

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


@dataclass(frozen=True, kw_only=True)
class Look:
    """What `open_image` leaves out of a picture: frames after the first, transparency."""

    num_frames: int
    transparent: float


def open_image(source: str | Path | bytes | BinaryIO) -> Image.Image:
    """Return the picture of an untrusted file as upright RGB; of an animation, its first frame.

    Args:
        source: A path, the bytes of a file, or a file opened for reading bytes.

    Raises:
        PromptError: If it does not exist, is no picture, is damaged, or is too large or too thin.
    """
    with _open(source) as (image, name):
        return to_rgb(image, name)


def open_later(data: bytes) -> Image.Image:
    """Return the picture of an untrusted file, its pixels not read before `to_rgb` is called.

    Raises:
        PromptError: If it is no picture, or is too large or too thin: what the head of a file says.
    """
    with _open(data, load=False) as (image, _):
        return image


def open_mask(source: str | Path | bytes | BinaryIO) -> Image.Image:
    """Return a mask of an untrusted file as RGB, white where a picture is to be painted anew.

    That is where it is transparent (OpenAI's masks), or where it is white if nothing in it is.

    Raises:
        PromptError: As `open_image`.
    """
    with _open(source) as (image, name):
        if not image.has_transparency_data or _has_16_bits(image):
            return to_rgb(image, name)
        alpha = _upright(image).convert("RGBA").getchannel("A")
        return ImageOps.invert(alpha).convert("RGB")


def look_at(source: str | Path | bytes | BinaryIO) -> Look:
    """Return what there is in a file beside the picture that `open_image` returns.

    Raises:
        PromptError: As `open_image`.
    """
    with _open(source) as (image, _):
        transparent = _transparent(image)
        return Look(num_frames=getattr(image, "n_frames", 1), transparent=transparent)


def to_rgb(image: Image.Image, name: str = "a picture") -> Image.Image:
    """Return a picture of any mode as 8-bit RGB, upright, transparent parts on white.

    White, because the pictures the model learnt from are cut out on white. 16-bit pixels are
    scaled, not clipped.

    Args:
        name: What a message calls it.

    Raises:
        PromptError: If its file turns out to be damaged, or its pixels are 32-bit numbers, of
            which nobody knows the range.
    """
    try:
        image.load()  # a file is decoded only now
        image = _upright(image)
    except _DAMAGE as error:
        raise PromptError(_damaged(name, error)) from error
    if _has_16_bits(image):
        image = _grey_of_16_bits(image)
    if image.mode in ("I", "F"):
        raise PromptError(
            f"{name} has 32-bit pixels (mode {image.mode}); save it as 8-bit PNG or JPEG"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def clip_view(image: Image.Image, size: int = 224) -> Float[Tensor, "3 {size} {size}"]:
    """Return what CLIP sees of a picture: its centre square, bicubic, normalised.

    Raises:
        PromptError: If the picture is more than 32 times as long as wide.

    Source:
        NUMERICS section 3.1 (`gpt`): float64 until the end.
    """
    pixels = clip_pixels(image, size).numpy()
    view = np.empty((3, size, size), np.float32)
    for channel, values in enumerate(_CLIP_VALUES):
        # "clip" never clips here: it lets numpy write without a check of each pixel.
        values.take(pixels[..., channel], out=view[channel], mode="clip")
    return torch.from_numpy(view)


def clip_pixels(image: Image.Image, size: int = 224) -> UInt8[Tensor, "{size} {size} 3"]:
    """Return `clip_view` as bytes in a picture's own order, for `normalised`.

    Raises:
        PromptError: As `clip_view`.
    """
    return torch.from_numpy(_centre_square(image, size, Image.Resampling.BICUBIC).copy())


def normalised(
    pixels: UInt8[Tensor, "*batch height width 3"],
) -> Float[Tensor, "*batch 3 height width"]:
    """Return pixels as CLIP sees them, with the bits of `clip_view`."""
    tables = torch.from_numpy(_CLIP_VALUES).to(pixels.device)
    channels = zip(tables, pixels.int().unbind(-1), strict=True)
    return torch.stack([table[levels] for table, levels in channels], -3)


def clip_square(image: Image.Image, size: int = 224) -> Image.Image:
    """Return the part of a picture that `clip_view` sees, with the very same view, in little room.

    Raises:
        PromptError: As `clip_view`.
    """
    return Image.fromarray(_centre_square(image, size, Image.Resampling.BICUBIC))


def decoder_view(image: Image.Image, size: int = 512) -> Float[Tensor, "3 {size} {size}"]:
    """Return what the image decoder learns to paint: the centre square, bilinear, in [-1, 1].

    Raises:
        PromptError: If the picture is more than 32 times as long as wide.

    Source:
        NUMERICS section 3.1 (`diff`).
    """
    return scaled(torch.from_numpy(decoder_pixels(image, size).copy()))


def decoder_pixels(image: Image.Image, size: int = 512) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Return `decoder_view` as bytes in a picture's own order, for `scaled`: a quarter of the size.

    They may be the picture's own memory: copy before writing.

    Raises:
        PromptError: As `decoder_view`.
    """
    return _centre_square(image, size, Image.Resampling.BILINEAR)


def scaled(
    pixels: UInt8[Tensor, "*batch height width 3"],
) -> Float[Tensor, "*batch 3 height width"]:
    """Return pixels in [-1, 1], with the bits of (pixels / 255 - 0.5) / 0.5 in float64."""
    # Contiguous, as convolutions may choose other arithmetic by the order in memory.
    values = pixels.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format)
    return values.mul_(2).sub_(255).div_(255)  # this numerator is exact


def to_pil(picture: Float[Tensor, "3 height width"]) -> Image.Image:
    """Return the picture of a tensor in [-1, 1], the inverse of `decoder_view`; clips the rest.

    Source:
        NUMERICS section 10: uint8 = round(255 y).
    """
    unit = (picture.detach().float().cpu() / 2 + 0.5).clamp(0, 1)
    return Image.fromarray((unit * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def check_finite(pictures: Float[Tensor, "_batch 3 _height _width"]) -> None:
    """Pass pictures all of whose values are numbers: as pixels the others would just be black.

    Raises:
        ConfigError: If there are others.
    """
    if not pictures.isfinite().all():
        raise ConfigError(
            "the picture has values that are no numbers; draw with dtype bfloat16 or float32 "
            "(float16 is too narrow for some models) and less guidance, or get the weights again"
        )


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
        if target != (size, size):
            image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)


def is_address(text: str) -> bool:
    """Return whether this is an address of the web, such as `https://...`."""
    return _ADDRESS.match(text) is not None and len(text.split()) == 1


def shown(source: str | Path) -> str:
    """Return a file's name as a message shows it: quoted if it would break the line."""
    name = str(source)
    return name if name.isprintable() else ascii(name)


def _read(source: str | Path | bytes | BinaryIO, name: str) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        try:
            if isinstance(source, str | Path):
                _check_kind(source, name)
                with Path(source).open("rb") as file:
                    data = file.read(MAX_BYTES + 1)
            else:
                data = source.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            reason = getattr(error, "strerror", None) or error
            raise PromptError(f"cannot open {name}: {reason}; check the path") from error
    if len(data) > MAX_BYTES:
        raise PromptError(f"{name} has more than {MAX_BYTES // 2**20} MiB; make it smaller")
    if not data:
        raise PromptError(f"{name} is empty (0 bytes); save or download it again")
    return data


def _check_kind(source: str | Path, name: str) -> None:
    """Pass a regular file: reading a pipe or a device may never end."""
    if is_address(str(source)):
        raise PromptError(f"{name} is an address, and nothing is fetched; download the picture")
    mode = Path(source).stat().st_mode
    if not stat.S_ISREG(mode):
        kind = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "no file")
        raise PromptError(f"{name} is {kind}, not a file with a picture; save the picture first")


@contextmanager
def _open(
    source: str | Path | bytes | BinaryIO, *, load: bool = True
) -> Iterator[tuple[Image.Image, str]]:
    """Give a file's picture as Pillow decodes it, and its name; what is wrong is one error."""
    name = shown(source) if isinstance(source, str | Path) else "the picture"
    data = _read(source, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd tags, which are no part of the pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(data), formats=FORMATS)
            _check_size(image, name)
            if load:
                image.load()
            yield image, name
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PromptError(_too_large(name)) from error
    except Image.UnidentifiedImageError as error:
        raise PromptError(
            f"{name} is not a picture that can be read; save it as PNG or JPEG"
        ) from error
    except _DAMAGE as error:
        raise PromptError(_damaged(name, error)) from error


def _upright(image: Image.Image) -> Image.Image:
    """Return a picture straight from its file as its EXIF says; any other as it is.

    What was made of a picture keeps its EXIF, though it may be turned already; its format is None.
    """
    if image.format is None:
        return image
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd tags
        if image.getexif().get(ORIENTATION, 1) == 1:
            return image
        turned = ImageOps.exif_transpose(image)
    turned.format = image.format  # which tells the 16 bits of a PGM
    return turned


def _has_16_bits(image: Image.Image) -> bool:
    # Of a PGM with more than 8 bits Pillow makes 32-bit numbers, scaled to 0..65535.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def _grey_of_16_bits(image: Image.Image) -> Image.Image:
    """Return 8-bit grey, with transparency if one of the 65536 values stands for it."""
    values = np.asarray(image, np.float64)
    grey = Image.fromarray((values / 257).round().clip(0, 255).astype(np.uint8))
    nothing = image.info.get("transparency")
    if isinstance(nothing, int):
        grey.putalpha(Image.fromarray(np.where(values == nothing, 0, 255).astype(np.uint8)))
    return grey


def _transparent(image: Image.Image) -> float:
    """Return the part of the picture through which the ground is seen, 0 to 1."""
    if _has_16_bits(image):
        image = _grey_of_16_bits(image)
    if not image.has_transparency_data:
        return 0.0
    return 1 - float(np.asarray(image.convert("RGBA").getchannel("A")).mean()) / 255


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise PromptError(f"{_too_large(name)} (it has {width} x {height})")
    _check_aspect(image, name)


def _check_aspect(image: Image.Image, name: str) -> None:
    width, height = image.size
    if not width or not height:
        raise PromptError(f"{name} is {width} x {height}: it has no pixels; give another")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise PromptError(
            f"{name} is {width} x {height}, more than {MAX_ASPECT} times as long as wide; crop it"
        )


def _damaged(name: str, error: BaseException) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{name} is a damaged picture ({reason}); save or download it again"


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS // 10**6} million pixels; make it smaller"
