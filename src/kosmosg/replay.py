"""Drawing a picture again from the note in its PNG, and saying whether it is the same."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kosmosg import devices, drawing, hashes, release
from kosmosg.controlnet import WEIGHTS
from kosmosg.drawing import Drawing
from kosmosg.errors import ConfigError, PromptError
from kosmosg.images import MAX_BYTES, open_image
from kosmosg.note import File, Note, Picture, Wanted, read_png, unpack
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.settings import checked

MAX_FILES = 10_000
MAX_THREADS = 256
_ALL = (*drawing.ENCODER, *drawing.DECODER)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a replay found.

    Args:
        image: The picture as it was drawn now.
        pixels: How it differs from the file's, in words; None where it does not.
        differences: What else is not as it was then, in words: model, sampler, machine, versions.
    """

    image: Image.Image
    pixels: str | None
    differences: tuple[str, ...]


def replay(
    path: Path, *, model: str | Path | None = None, pictures: Sequence[Path] | None = None
) -> Outcome:
    """Return what comes of drawing the picture of a PNG again, with the same call.

    Nothing in the note is executed or followed: settings are compared with those there are, and
    files are looked for by bare name and sha256, here only.

    Args:
        path: A PNG that `kosmosg generate` wrote, or one of its sheets.
        model: The name or directory of the model; None takes the shipped one of the note's name.
        pictures: Where the pictures and files of the prompt are; None is the PNG's directory and
            the working one.

    Raises:
        ConfigError: If the file carries no note, or one that cannot be replayed.
        PromptError: If a picture or file of the prompt is not found, naming its sha256.
        CheckpointError: If the model is not there.
    """
    image, note = read_png(path)
    if note.nsfw_content_detected:
        raise ConfigError(
            f"a safety checker made {path} black, so there is nothing to compare with; "
            "`kosmosg generate` with the prompt and seeds in its note draws it"
        )
    folders = [path.parent, Path()] if pictures is None else list(pictures)
    try:
        drawn, load = _read(note, folders)
        directory = release.find(_name(note) if model is None else model)
    except (ConfigError, RecursionError) as error:
        raise ConfigError(f"the note in {path} cannot be replayed: {error}") from None
    parts = drawing.DECODER if drawn.arguments.get("conditions") else _ALL
    there = devices.find()
    device = devices.choose(load["device"] if load["device"] in there.names else "auto", there)
    with _threads(note.machine.threads):
        load = {**load, "device": device}
        pipe = drawing.load(directory, **load, encoder=parts is _ALL)
        pipe.set_progress_bar_config(disable=None, desc="denoising")
        drawing.check(pipe, drawn)
        images = drawing.draw(pipe, drawn.prompt, seeds=drawn.seeds, **drawn.arguments).images
        now = drawing.note(pipe, drawn, model=directory, load=load, index=note.index)
    again = drawing.sheet(images) if note.index is None else images[note.index]
    return Outcome(
        image=again, pixels=compare(image, again), differences=tuple(_differences(note, now))
    )


def compare(then: Image.Image, now: Image.Image) -> str | None:
    """Return in words how two RGB pictures differ, or None where every pixel is the same."""
    if then.size != now.size:
        sizes = " and ".join(f"{one.width} x {one.height}" for one in (then, now))
        return f"the sizes are {sizes}"
    distance = np.abs(np.asarray(then, np.int16) - np.asarray(now, np.int16)).max(axis=2)
    if not distance.any():
        return None
    count = np.count_nonzero(distance)
    return f"{count} of {distance.size} pixels differ, by at most {distance.max()} of 255"


def find(wanted: Wanted, folders: Sequence[Path]) -> Picture | File:
    """Return the file that a note names: by its name, else by its sha256 under any name.

    Raises:
        PromptError: If no file in the folders has that sha256, or the picture is damaged.
    """
    named = [folder / wanted.name for folder in folders]
    for path in [*named, *(path for folder in folders for path in _files(folder))]:
        if _fits(path, wanted) and hashes.of_file(path) == wanted.sha256:
            if wanted.kind == "file":
                return File(path=path, sha256=wanted.sha256)
            return Picture(path=path, image=open_image(path), sha256=wanted.sha256)
    where = " or ".join(dict.fromkeys(str(folder.resolve()) for folder in folders))
    changed = any(_fits(path, wanted) for path in named)
    raise PromptError(
        f"no {wanted.kind} with the sha256 {wanted.sha256} is in {where}: it was {wanted.name!r}"
        f"{', which is another now' if changed else ''}; name its folder with --pictures"
    )


def _read(note: Note, folders: Sequence[Path]) -> tuple[Drawing, dict[str, Any]]:
    found: dict[Wanted, Picture | File] = {}

    def find_once(wanted: Wanted) -> Picture | File:
        if wanted not in found:
            found[wanted] = find(wanted, folders)
        return found[wanted]

    # What can be said of the rest comes first, before files are looked for.
    if missing := {"dtype", "device"} - note.load.keys():
        raise ConfigError(f"it does not say the {' and '.join(sorted(missing))}")
    if not 1 <= note.machine.threads <= MAX_THREADS:
        raise ConfigError(f"it asks for {note.machine.threads} threads; 1 to {MAX_THREADS} can be")
    wrong = [part for part in note.prompt if not isinstance(part, str | dict)]
    if wrong:
        raise ConfigError(f"{str(wrong[0])[:80]!r} in its prompt is neither words nor a picture")
    load = checked(unpack(note.load, find_once), drawing.load)
    prompt = unpack(note.prompt, find_once)
    if any(not isinstance(part, str | Picture) for part in prompt):
        raise ConfigError("its prompt holds what is neither words nor a picture")
    arguments = checked(unpack(note.arguments, find_once), drawing.draw, KosmosGPipeline.__call__)
    return Drawing(prompt=prompt, seeds=note.seeds, arguments=arguments), load


def _name(note: Note) -> str:
    if note.model.name in release.SHIPPED:
        return note.model.name
    raise ConfigError(
        f"it was drawn by the model {note.model.name[:80]!r}; name its directory with --model"
    )


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder, but not of all a disk's."""
    try:
        for number, path in enumerate(folder.iterdir()):
            if number == MAX_FILES:
                return
            yield path
    except OSError:
        return  # no such folder, or not ours to read: the picture is not found there


def _fits(path: Path, wanted: Wanted) -> bool:
    """Return whether it is worth reading: pictures are small, other files keep their suffix."""
    try:
        if not path.is_file():
            return False
        if wanted.kind == "file":
            if WEIGHTS in (path.name, wanted.name):  # a ControlNet's, read by its directory
                return path.name == wanted.name
            return path.suffix == Path(wanted.name).suffix
        return 0 < path.stat().st_size <= MAX_BYTES
    except OSError:
        return False


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let torch compute with that many threads: how work is cut decides the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _differences(then: Note, now: Note) -> Iterator[str]:
    yield from _changed("model, part", then.model.parts, now.model.parts)
    if then.scheduler != now.scheduler:
        yield f"scheduler: {then.scheduler.name} then, {now.scheduler.name} now, or its settings"
    yield from _changed("", vars(then.machine), vars(now.machine))
    yield from _changed("", then.versions, now.versions)


def _changed(what: str, then: Mapping[str, object], now: Mapping[str, object]) -> Iterator[str]:
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            values = (str(values.get(name, "none"))[:20] for values in (then, now))
            yield "{} {}: {} then, {} now".format(what, name, *values).strip()
