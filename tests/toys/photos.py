"""Pictures with the spectrum of photographs, from nothing but a seed."""

import io

import numpy as np
from PIL import Image


def photo(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    width, height = size
    rng = np.random.default_rng(seed)
    power = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.fftfreq(width) ** 2
    power[0, 0] = 1
    waves = np.fft.ifft2(np.fft.fft2(rng.standard_normal((height, width))) / power**0.6).real
    grey = (waves - waves.min()) / (waves.max() - waves.min())
    tints = rng.uniform(0.7, 1.0, 3)
    return Image.fromarray((grey[..., None] * tints * 255).astype(np.uint8))


def as_jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()
