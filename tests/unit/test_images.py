import io
import os
import socket
import struct
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
from kosmosg.images import (
    CLIP_MEAN,
    CLIP_STD,
    Look,
    clip_pixels,
    clip_view,
    decoder_pixels,
    decoder_view,
    look_at,
    normalised,
    open_image,
    scaled,
    to_pil,
    to_rgb,
)

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


DEEP = np.array([0, 257, 32896, 65535], ">u2")  # a byte twice each: 0, 1, 128, 255


def png(bits: int, colour: int, pixels: np.ndarray, nothing: bytes = b"") -> bytes:
    """A PNG of one row; `nothing` is the colour that stands for transparency."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    header = struct.pack(">IIBBBBB", pixels.size // channels, 1, bits, colour, 0, 0, 0)
    row = zlib.compress(b"\0" + pixels.tobytes())
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"tRNS", nothing) if nothing else b"")
        + chunk(b"IDAT", row)
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "data",
    [
        png(16, 0, DEEP),
        saved(Image.fromarray(DEEP.astype(np.uint16)[None].repeat(4, 0)), "TIFF"),
        saved(Image.frombytes("I;16B", (4, 4), DEEP.tobytes() * 4), "TIFF"),
        b"P5 4 1 65535\n" + DEEP.tobytes(),
        png(16, 2, DEEP.repeat(3)),
        png(16, 4, np.stack([DEEP, DEEP | 0xFFFF], -1)),
        png(16, 6, np.stack([DEEP] * 3 + [DEEP | 0xFFFF], -1)),
    ],
    ids=["png grey", "tiff", "big-endian tiff", "pgm", "png rgb", "png grey alpha", "png rgba"],
)
def test_16_bits_are_scaled_not_clipped(data: bytes) -> None:
    assert np.asarray(open_image(data))[0].tolist() == [[value] * 3 for value in (0, 1, 128, 255)]


def test_a_colour_that_stands_for_transparency_is_white() -> None:
    grey = png(8, 0, np.array([0, 100], np.uint8), struct.pack(">H", 100))
    deep = png(16, 0, np.array([0, 30000], ">u2"), struct.pack(">H", 30000))
    colour = png(8, 2, np.array([0, 0, 0, 9, 8, 7], np.uint8), struct.pack(">HHH", 9, 8, 7))
    for data in (grey, deep, colour):
        assert list(open_image(data).get_flattened_data()) == [(0, 0, 0), WHITE]
        assert look_at(data) == Look(num_frames=1, transparent=0.5)


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


def test_a_photograph_that_the_caller_opened_stands_upright_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    given = Image.open(io.BytesIO(saved(gradient(64, 32), exif=exif)))
    turned = given.transpose(Image.Transpose.ROTATE_270)  # by a caller who knows: not once more
    upright = Image.fromarray(np.rot90(np.asarray(gradient(64, 32)), -1))
    assert turned.getexif()[0x0112] == 6
    for image in (given, turned):
        assert torch.equal(clip_view(image, 32), clip_view(upright, 32))
    assert given.size == (64, 32)


@pytest.mark.parametrize("size", [(0, 0), (0, 9), (9, 0)])
def test_a_picture_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(PromptError, match=f"a picture is {size[0]} x {size[1]}: it has no pixels"):
        clip_view(Image.new("RGB", size), 32)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert set(open_image(data).get_flattened_data()) == {RED}
    assert look_at(data) == Look(num_frames=2, transparent=0.0)


def test_how_much_of_a_picture_is_transparent() -> None:
    image = Image.new("RGBA", (4, 1), (*RED, 255))
    image.putpixel((0, 0), (*RED, 0))
    assert look_at(saved(image)) == Look(num_frames=1, transparent=0.25)
    assert look_at(JPEG) == Look(num_frames=1, transparent=0.0)


def test_odd_tags_are_no_reason_to_refuse_or_to_warn() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(saved(gradient(), "JPEG", exif=exif))
    data[36] ^= 0xFF  # the size of the tags
    assert open_image(bytes(data)).mode == "RGB"


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises width x height and whose body is tiny."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + kind + body + check

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body)


SIDE = struct.pack("<H", 50000)
BOMBS = {
    "bmp": b"BM"
    + struct.pack("<IHHI", 99, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 50000, 50000, 1, 24, 0, 0, 0, 0, 0, 0),
    "gif": b"GIF89a" + SIDE * 2 + b"\0\0\0,\0\0\0\0" + SIDE * 2 + b"\0\x08\x01\0\0;",
    "small frame of a large gif": b"GIF89a"
    + SIDE * 2
    + b"\0\0\0,\0\0\0\0\x01\0\x01\0\0\x08\x01\0\0;",
    "ppm": b"P6 50000 50000 255\n123",
    "tiff": saved(Image.new("L", (2, 3)), "TIFF")
    .replace(struct.pack("<HHII", 256, 4, 1, 2), struct.pack("<HHII", 256, 4, 1, 50000))
    .replace(struct.pack("<HHII", 257, 4, 1, 3), struct.pack("<HHII", 257, 4, 1, 50000)),
    "jpeg": saved(Image.new("L", (8, 8)), "JPEG").replace(
        b"\xff\xc0\0\x0b\x08\0\x08\0\x08", b"\xff\xc0\0\x0b\x08\xc3\x50\xc3\x50"
    ),
    "webp": saved(Image.new("L", (8, 8)), "WEBP").replace(
        b"\x9d\x01\x2a\x08\0\x08\0",
        b"\x9d\x01\x2a\xff\x3f\xff\x3f",  # 16383, the most it can say
    ),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_of_any_kind_is_refused_before_it_is_decoded(kind: str) -> None:
    assert len(BOMBS[kind]) < 1000
    with pytest.raises(PromptError, match="more than 64 million pixels; make it smaller"):
        open_image(BOMBS[kind])


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
    with pytest.raises(PromptError, match=r"is a directory, not a file with a picture; save"):
        open_image(tmp_path)
    with pytest.raises(PromptError, match=r"cannot open 'a\\x00b.png': embedded null"):
        open_image("a\0b.png")


def test_pipes_sockets_and_devices_are_not_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name has at most 107 bytes
    os.mkfifo("pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
        for name, kind in (
            ("pipe.png", "a pipe"),
            ("socket.png", "a socket"),
            ("/dev/zero", "a device"),
        ):
            with pytest.raises(PromptError, match=f"{name} is {kind}, not a file with a picture"):
                open_image(name)


@pytest.mark.parametrize("address", ["https://example.org/cat.png", "file:///cat.png", "data:,x"])
def test_an_address_is_not_fetched(address: str) -> None:
    with pytest.raises(PromptError, match="is an address, and nothing is fetched; download"):
        open_image(address)


@pytest.fixture
def nobody():
    """No rights of root, who may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


def test_a_file_that_may_not_be_read(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(PNG)
    path.chmod(0)
    request.getfixturevalue("nobody")
    with pytest.raises(PromptError, match=r"cannot open .*secret.png: Permission denied; check"):
        open_image(path)


@pytest.mark.parametrize(
    "name", ["a cat.png", "кошка.png", "猫 1.png", "a\ncat.png", "a\udcffb.png"]
)
def test_a_file_of_any_name_is_read_and_named_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(PNG)
    assert open_image(path).size == (40, 30)
    path.write_bytes(b"")
    with pytest.raises(PromptError) as raised:
        open_image(str(path))
    message = str(raised.value)
    assert message.isprintable()
    assert (name if name.isprintable() else ascii(name)[1:-1]) in message


def test_a_file_of_too_many_bytes_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 2**20)
    with pytest.raises(PromptError, match="the picture has more than 1 MiB; make it smaller"):
        open_image(bytes(2**20 + 1))


OTHERS = [saved(gradient(), kind) for kind in ("GIF", "WEBP", "TIFF", "BMP", "PPM")]


@settings(max_examples=300)
@given(data=st.sampled_from([PNG, JPEG, *OTHERS]), draw=st.data())
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


def test_views_have_the_bits_of_float64_at_every_level() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([levels, levels.T, levels[::-1]], -1))
    exact = np.asarray(image, np.float64) / 255
    clip = torch.from_numpy((exact - CLIP_MEAN) / CLIP_STD).permute(2, 0, 1).float()
    assert clip_view(image, 16).equal(clip)
    target = torch.from_numpy((exact - 0.5) / 0.5).permute(2, 0, 1).float()
    assert decoder_view(image, 16).equal(target)
    pixels = torch.from_numpy(np.stack([decoder_pixels(image, 16)] * 2))
    assert scaled(pixels).equal(torch.stack([target] * 2))


def test_bytes_normalised_later_have_the_bits_of_the_view() -> None:
    levels = np.arange(256, dtype=np.uint8)
    every = Image.fromarray(np.stack([levels, levels[::-1], np.roll(levels, 7)], -1)[None])
    square = every.resize((256, 256), Image.Resampling.NEAREST)
    for image in (square, gradient()):
        pixels = clip_pixels(image, 64 if image is not square else 256)
        assert pixels.dtype == torch.uint8
        assert torch.equal(normalised(pixels), clip_view(image, len(pixels)))
