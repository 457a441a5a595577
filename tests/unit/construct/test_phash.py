"""Hashes of pictures: near for the same picture, far for others."""

import io

import numpy as np
import pytest
from PIL import Image

from kosmosg.construct.phash import MAX_DISTANCE, centre_square, phash, target_of
from kosmosg.data.records import Caption, Document, Edit, Example
from toys.photos import as_jpeg, photo


def apart(one: Image.Image, other: Image.Image) -> int:
    return (phash(one) ^ phash(other)).bit_count()


@pytest.mark.parametrize("seed", range(10))
def test_the_same_picture_kept_otherwise_is_near(seed: int) -> None:
    image = photo(seed)
    assert apart(image, Image.open(io.BytesIO(as_jpeg(image, 60)))) <= MAX_DISTANCE
    assert apart(image, image.resize((256, 192), Image.Resampling.BICUBIC)) <= MAX_DISTANCE
    assert apart(image, image.resize((48, 36), Image.Resampling.BICUBIC)) <= MAX_DISTANCE


def test_other_pictures_are_far() -> None:
    hashes = [phash(photo(seed)) for seed in range(40)]
    assert min((a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]) > 10


def test_a_mirrored_picture_is_another() -> None:
    assert apart(photo(1), photo(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT)) > 10


def test_the_bits_are_those_of_the_known_hash() -> None:
    """Of the cosine transform, as imagehash has it: above the median of the 8 x 8 lowest."""
    grey = photo(3).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    rows = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(32) + 1) / 64)
    waves = 4 * rows @ np.asarray(grey, float) @ rows.T
    bits = "".join("1" if above else "0" for above in (waves > np.median(waves)).ravel())
    assert f"{phash(photo(3)):064b}" == bits


def test_pictures_without_shape_have_one_hash() -> None:
    hashes = {phash(Image.new("RGB", (w, 50), (w, 77, 13))) for w in (33, 50, 101, 255)}
    assert hashes == {1 << 63}


def test_the_target_is_what_training_aims_at() -> None:
    one, other = photo(1), photo(2)
    assert target_of(Example(key="a", caption="", entities=(), image=one)) is one
    edit = Edit(key="a", caption="", before=(one,), instruction="", after=other)
    assert target_of(edit) is other
    assert target_of(Caption(key="a", text="")) is None
    assert target_of(Document(key="a", parts=(one,))) is None


def test_the_centre_square() -> None:
    image = photo(1)
    assert centre_square(image).size == (72, 72)
    assert centre_square(image).getpixel((0, 0)) == image.getpixel((12, 0))
