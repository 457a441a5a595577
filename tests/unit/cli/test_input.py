"""docs/input.md is true: each row of its tables is tried, and each message is as quoted."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toys.model import toy_picture

Case = Callable[[], list[str]]


def saved(name: str, image: Image.Image, **options: object) -> list[str]:
    image.save(name, **options)
    return ["a", name]


def turned() -> list[str]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved("turned.jpg", toy_picture(), exif=exif)


def no_suffix() -> list[str]:
    Path("cat.png").rename("cat")
    return ["cat"]


def odd_name() -> list[str]:
    Path("cat.png").rename("my\n кошка.png")
    return ["my\n кошка.png"]


def modes() -> list[str]:
    for mode, name in (("1", "1.png"), ("LA", "la.png"), ("P", "p.gif"), ("CMYK", "cmyk.jpg")):
        toy_picture().convert("L" if mode == "LA" else "RGB").convert(mode).save(name)
    return ["1.png", "la.png", "p.gif", "cmyk.jpg"]


def deep() -> list[str]:
    return saved("deep.png", Image.fromarray(np.arange(0, 65536, 64, np.uint16).reshape(32, 32)))


def animation() -> list[str]:
    for name in ("a.gif", "a.png", "a.webp"):
        toy_picture(1).save(name, save_all=True, append_images=[toy_picture(2)])
    return ["a.gif", "a.png", "a.webp"]


def written(name: str, data: bytes) -> list[str]:
    Path(name).write_bytes(data)
    return [name]


def truncated() -> list[str]:
    return written("cut.png", Path("cat.png").read_bytes()[:2000])


def huge() -> list[str]:
    return written("huge.ppm", b"P6 50000 50000 255\n123")


def directory() -> list[str]:
    Path("folder.png").mkdir()
    return ["folder.png"]


def pipe() -> list[str]:
    os.mkfifo("pipe")
    return ["a", "pipe"]


def secret() -> list[str]:
    Path("cat.png").chmod(0)
    return ["cat.png"]


CASES: dict[str, Case] = {
    "a picture of any suffix, or none": no_suffix,
    "a name with spaces, other scripts or line breaks": odd_name,
    "a photograph taken on its side": turned,
    "transparent parts": lambda: saved("glass.png", toy_picture().convert("RGBA")),
    "1-bit, grey, palette, CMYK": modes,
    "16 bits a channel": deep,
    "an animation (GIF, APNG, WebP)": animation,
    "32-bit or floating-point pixels": lambda: saved("f.tiff", Image.new("F", (32, 32))),
    "0 bytes": lambda: written("empty.png", b""),
    "a truncated file": truncated,
    "another kind of file, named as a picture": lambda: written("page.png", b"<html>"),
    "50,000 x 50,000 pixels": huge,
    "more than 32 times as long as wide": lambda: saved("thin.png", Image.new("L", (1, 99))),
    "a missing file with a picture's suffix": lambda: ["a", "lost.png"],
    "a directory named as a picture": directory,
    "a pipe": pipe,
    "a device": lambda: ["/dev/zero"],
    "a file that may not be read": secret,
    "an address": lambda: ["a", "https://example.org/cat.png"],
    "a dash": lambda: ["a", "-"],
    "pictures without words": lambda: ["cat.png", "dog.jpg"],
    "neither words nor pictures": lambda: ["", "  "],
    "more pictures than the model takes": lambda: ["cat.png"] * 9,
    "more pictures than its training's prompts (nano: 3)": lambda: ["cat.png", "dog.jpg"] * 2,
    "a hundred pictures": lambda: ["cat.png"] * 100,
    "a word that the model does not know": lambda: ["a zebra"],
    "markup such as `<image>`": lambda: ["a <image> </image> <s> <i>"],
    "control characters": lambda: ["a\x07 cat\x1b[31m"],
    "half a character, as in a broken file name": lambda: ["a \udcff cat"],
    "100,000 characters": lambda: ["a cat " * 16_667],
}


def rows(repository: Path) -> dict[str, str]:
    """Return the second cell of each row under its first."""
    lines = (repository / "docs/input.md").read_text().splitlines()
    cells = [line.strip("|").split(" | ") for line in lines if line.startswith("| ")]
    return {first.strip(): second.strip() for first, second in cells if first.strip() != "Given"}


def test_every_row_is_tried(repository: Path):
    assert set(rows(repository)) == set(CASES)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Without the rights of root, who may read everything."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_what_happens(name, run, here, toy_dir, repository):
    said = rows(repository)[name]
    arguments = CASES[name]()
    if name == "a file that may not be read":
        with nobody():  # who may not read the model either
            code, out, err = run("inspect", *arguments)
    else:
        code, out, err = run("generate", *arguments, "--model", toy_dir, "--steps", "1")
    quoted = re.search(r'"(.+)"', said)
    if quoted is None:
        assert said.startswith("read")
        assert (code, out) == (0, "out.png\n"), err
    else:
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert quoted[1] in err
        assert len(err) < 400
        assert not (here / "out.png").exists()
