"""What a PNG says about how it was made: a note in JSON, written, and read back as a stranger's.

A note holds JSON only. A file that a picture depends on stands in it by its name and sha256, never
by its path: {"picture": "cat.png", "sha256": ...} or {"file": "cat.safetensors", "sha256": ...}.
"""

import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kosmosg import config
from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

KEY = "kosmosg"
VERSION = 1
MAX_CHARACTERS = 2**20
RESERVED = 2**16  # of them, for what is not prompt and settings
# What one pass may be asked for, by its user or by a note.
MAX_IMAGES, MAX_SIDE, MAX_STEPS, MAX_SEED = 64, 2048, 999, 2**63 - 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A picture that was given, and where it came from."""

    path: Path
    image: "Image.Image"
    sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class File:
    """Any other file that was given, such as a condition."""

    path: Path
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A picture or file as a note names it."""

    kind: Literal["picture", "file"]
    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which weights: the directory's name and what `hashes.of_parts` says of its parts."""

    name: str
    parts: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """Which sampler: its class and the sha256 of its configuration."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What else decides the last bits: the kind of device, its instructions, torch's threads."""

    device: str
    instructions: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class Note:
    """All that a picture depends on.

    Args:
        version: Of this layout.
        prompt: Words and pictures in order; empty where a condition was given instead.
        seeds: Of all pictures that were drawn in one pass: their number decides the last bits.
        index: Which of them this is; None is the sheet of all.
        arguments: Exactly what `drawing.draw` was called with.
        load: Exactly what `drawing.load` was called with, besides the model.
        model: The weights.
        scheduler: The sampler.
        machine: Where.
        versions: Of kosmosg and the libraries that compute.
        nsfw_content_detected: Whether the picture, or one of the sheet, is black because a safety
            checker flagged it; None where there was none.
    """

    version: int
    prompt: list[Any]
    seeds: list[int]
    index: int | None
    arguments: dict[str, Any]
    load: dict[str, Any]
    model: Model
    scheduler: Scheduler
    machine: Machine
    versions: dict[str, str]
    nsfw_content_detected: bool | None = None


def prompt_of(parts: Sequence[str | Picture]) -> "list[str | Image.Image]":
    """Return the parts as the pipeline takes them."""
    return [part.image if isinstance(part, Picture) else part for part in parts]


def pack(value: Any) -> Any:  # noqa: ANN401 -- any JSON value with Picture and File in it
    """Return `value` as JSON, with a name and sha256 in the place of each picture and file."""
    if isinstance(value, Picture | File):
        kind = "picture" if isinstance(value, Picture) else "file"
        return {kind: value.path.name, "sha256": value.sha256}
    if isinstance(value, Mapping):
        return {name: pack(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [pack(inner) for inner in value]
    return value


def check_room(prompt: Sequence[str | Picture], arguments: Mapping[str, Any]) -> None:
    """Pass a prompt and settings that a note has room for: a longer one could not be read back.

    Raises:
        ConfigError: Naming both sizes.
    """
    size, most = len(json.dumps([pack(prompt), pack(arguments)])), MAX_CHARACTERS - RESERVED
    if size > most:
        raise ConfigError(
            f"prompt and settings are {size} characters of JSON; a PNG's note has room for {most}: "
            "use fewer words"
        )


def unpack(value: Any, find: Callable[[Wanted], Picture | File]) -> Any:  # noqa: ANN401 -- as above
    """Return what `pack` was given, with what `find` returns in the place of names and sha256.

    Raises:
        ConfigError: If a name is a path, a sha256 is none, or a number is not finite.
    """
    if isinstance(value, dict):
        if "sha256" in value:
            return find(_wanted(value))
        return {name: unpack(inner, find) for name, inner in value.items()}
    if isinstance(value, list):
        return [unpack(inner, find) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"the note holds the number {value}; it was changed by hand")
    return value


def png(image: "Image.Image", note: Note, *, xmp: str | None = None) -> bytes:
    """Return a picture as the bytes of a PNG file that carries `note`, and what other tools read.

    Args:
        xmp: Metadata in Adobe's XML.
    """
    from PIL import PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text(KEY, json.dumps(config.to_dict(note)))
    if xmp is not None:
        text.add_itxt("XML:com.adobe.xmp", xmp)
    data = io.BytesIO()
    image.save(data, "PNG", pnginfo=text)
    return data.getvalue()


def read_png(path: Path) -> tuple["Image.Image", Note]:
    """Return the picture and the note of a PNG file, which may be anybody's.

    Raises:
        PromptError: If it is no picture, or a damaged one.
        ConfigError: If it carries no note, or one that no kosmosg of this version has written.
    """
    from PIL import Image

    from kosmosg.images import FORMATS, open_image

    image = open_image(path)
    with Image.open(path, formats=FORMATS) as file:  # just opened, checked and found whole
        file.load()
        text = getattr(file, "text", {}).get(KEY)
    if text is None:
        raise ConfigError(
            f"{path} carries no note of how it was made; give a PNG as `kosmosg generate` wrote it"
            " (programs that save a picture again leave the note out)"
        )
    try:
        return image, _parse(text)
    except ConfigError as error:
        raise ConfigError(f"the note in {path} cannot be replayed: {error}") from None


def _parse(text: str) -> Note:
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"it has {len(text)} characters, more than {MAX_CHARACTERS}")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"it is not JSON ({' '.join(str(error).split())})") from None
    version = data.get("version") if isinstance(data, dict) else None
    if version != VERSION:
        raise ConfigError(
            f"it has version {version!r:.40}, this kosmosg reads version {VERSION}; "
            "use the kosmosg that wrote it"
        )
    note = config.from_dict(Note, data)
    if not 1 <= len(note.seeds) <= MAX_IMAGES:
        raise ConfigError(f"it has {len(note.seeds)} seeds; 1 to {MAX_IMAGES} can be")
    for seed in note.seeds:
        if not 0 <= seed <= MAX_SEED:
            raise ConfigError(f"the seed {seed} is not one of 0 to {MAX_SEED}")
    if note.index is not None and not 0 <= note.index < len(note.seeds):
        raise ConfigError(f"it is of picture {note.index}, counted from 0, of {len(note.seeds)}")
    return note


def _wanted(value: dict[str, Any]) -> Wanted:
    kind = "picture" if "picture" in value else "file"
    name, sha256 = value.get(kind), value["sha256"]
    if value.keys() != {kind, "sha256"} or not isinstance(name, str):
        raise ConfigError(f"{str(value)[:80]!r} names neither a picture nor a file")
    # Whoever wrote the note must not choose where on this machine we look.
    if name in ("", ".", "..") or len(name) > 255 or any(mark in name for mark in "/\\\0"):
        raise ConfigError(f"{name[:80]!r} is not the bare name of a file")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ConfigError(f"{str(sha256)[:80]!r} is not a sha256")
    return Wanted(kind=kind, name=name, sha256=sha256)
