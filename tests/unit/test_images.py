import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kosmosg import images
from kosmosg.errors import PromptError
from kosmosg.images import clip_view, decoder_view, open_image, to_pil, to_rgb

RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


PNG, JPEG = saved(gradient()), saved(gradient(), "JPEG")


def test_every_kind_of_source(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    with path.open("rb") as file:
        for source in (path, str(path), PNG, file):
            opened = open_image(source)
            assert opened.mode == "RGB"
            assert np.array_equal(np.asarray(opened), np.asarray(gradient()))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "RGBA", "PA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("RGB", (8, 8), WHITE)
    converted = image.convert("L").convert(mode) if mode in ("LA", "PA") else image.convert(mode)
    assert set(to_rgb(converted).get_flattened_data()) == {WHITE}


def test_cmyk_jpeg() -> None:
    red = np.asarray(open_image(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")))
    assert (abs(red.astype(int) - RED) < 4).all()


def test_16_bit_grey_keeps_its_range() -> None:
    grey = Image.fromarray(np.array([[0, 257, 65535]], np.uint16).repeat(2, 0))
    assert np.asarray(open_image(saved(grey)))[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_pixels_are_refused(mode: str) -> None:
    with pytest.raises(PromptError, match=f"32-bit pixels \\(mode {mode}\\); save it as 8-bit"):
        open_image(saved(Image.new(mode, (4, 4), 7), "TIFF"))


def test_transparent_parts_are_white() -> None:
    image = Image.new("RGBA", (2, 1), (*RED, 0))
    image.putpixel((1, 0), (*RED, 255))
    assert list(open_image(saved(image)).get_flattened_data()) == [WHITE, RED]
    # A palette with one transparent colour, the black under it being no part of the picture.
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, *RED])
    palette.putpixel((1, 0), 1)
    pixels = open_image(saved(palette, transparency=0)).get_flattened_data()
    assert list(pixels) == [WHITE, RED]


def test_a_photograph_taken_on_its_side_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to see it
    turned = open_image(saved(gradient(40, 30), exif=exif))
    assert turned.size == (30, 40)
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(gradient(40, 30)), -1))


def test_of_an_animation_the_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert set(open_image(data).get_flattened_data()) == {RED}


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises width x height and whose body is tiny."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + kind + body + check

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"is empty \(0 bytes\); save or download it again"),
    "text": (b"<html>not found</html>", "is not a picture that can be read; save it as PNG"),
    "cut png": (PNG[: len(PNG) // 2], "is a damaged picture"),
    "cut jpeg": (JPEG[:-40], "is a damaged picture"),
    "bomb of 72 M": (bomb(9000, 8000), r"more than 64 million pixels; .* \(it has 9000 x 8000\)"),
    "bomb of 100 M": (bomb(10000, 10000), "more than 64 million pixels; make it smaller"),
    "bomb of 2500 M": (bomb(50000, 50000), "more than 64 million pixels; make it smaller"),
    "thin": (saved(Image.new("L", (1, 99))), "is 1 x 99, more than 32 times as long as wide; crop"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_get_one_line_with_their_name(tmp_path: Path, name: str) -> None:
    data, message = HOSTILE[name]
    path = tmp_path / "evil.png"
    path.write_bytes(data)
    with pytest.raises(PromptError, match=message) as raised:
        open_image(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"cannot open .*none.png: No such file .*; check"):
        open_image(tmp_path / "none.png")
    with pytest.raises(PromptError, match=r"cannot open .*: Is a directory; check the path"):
        open_image(tmp_path)


def test_a_file_of_too_many_bytes_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 2**20)
    with pytest.raises(PromptError, match="the picture has more than 1 MiB; make it smaller"):
        open_image(bytes(2**20 + 1))


@settings(max_examples=150)
@given(data=st.sampled_from([PNG, JPEG, saved(gradient(), "GIF")]), draw=st.data())
def test_damaged_bytes_are_a_picture_or_one_error(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 8))):
        damaged[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    message = ""
    try:
        assert open_image(bytes(damaged)).mode == "RGB"
    except PromptError as error:
        message = str(error)
    assert "\n" not in message


def test_a_truncated_picture_opened_elsewhere_is_refused_too() -> None:
    with pytest.raises(PromptError, match="is a damaged picture"):
        clip_view(Image.open(io.BytesIO(PNG[: len(PNG) // 2])), 16)


@pytest.mark.parametrize("view", [clip_view, decoder_view])
def test_a_view_is_the_centre_square(view: Callable[[Image.Image, int], torch.Tensor]) -> None:
    wide = Image.new("RGB", (96, 32), "blue")
    wide.paste(Image.new("RGB", (32, 32), "red"), (32, 0))
    assert torch.equal(view(wide, 32), view(Image.new("RGB", (32, 32), "red"), 32))
    assert torch.equal(view(wide.rotate(90, expand=True), 32), view(wide, 32))
    with pytest.raises(PromptError, match="more than 32 times as long as wide"):
        view(Image.new("RGB", (330, 10)), 32)


def test_views_leave_the_picture_as_it_was() -> None:
    image = gradient()
    before = image.tobytes()
    clip_view(image, 16)
    decoder_view(image, 16)
    assert image.tobytes() == before


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_decoder_view_comes_back(side: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    image = Image.fromarray(pixels)
    view = decoder_view(image, side)
    assert view.abs().max() <= 1
    assert np.array_equal(np.asarray(to_pil(view)), pixels)


def test_what_is_out_of_range_is_clipped() -> None:
    picture = torch.tensor([-3.0, 0.0, 3.0])[:, None, None].expand(3, 1, 2)
    assert list(to_pil(picture).get_flattened_data()) == [(0, 128, 255)] * 2
