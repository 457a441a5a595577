"""InstructPix2Pix's folders: one for each prompt, in it a pair of pictures for each seed."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeAlias

from kosmosg.data.readers.files import (
    MAX_OBJECT_BYTES,
    inside,
    is_object,
    opened,
    parse,
    parse_any,
    picture,
    read_objects,
    said,
    tried,
)
from kosmosg.data.readers.names import key_of
from kosmosg.data.records import Edit
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError

_SEED = re.compile(r"\w+")


# The name of a prompt's folder below the data set's directory, and the seeds of its pairs.
Folder: TypeAlias = tuple[str, tuple[str, ...]]


def read_instructpix2pix(path: Path, *, skips: Skips) -> Iterator[Edit]:
    """Yield an edit for each seed's pair in the original data set's folders.

    The pairs are those of `seeds.json` where it is there, else all that are found. What
    `metadata.jsonl` says of a seed becomes its record's provenance.

    Args:
        path: The directory with `seeds.json`, or with folders that hold a `prompt.json`.
        skips: Where bad pairs are counted.

    Raises:
        DataError: If there is no prompt, the list is damaged, or too many pairs were skipped.

    Source:
        Layout: github.com/timothybrooks/instruct-pix2pix, prepare_dataset.py.
    """
    for folder in list_folders(path):
        if isinstance(folder, DataError):
            skips.skip(folder)
            continue
        for _, read in pairs_of(path, folder, skips):
            yield from tried(skips, read)


def list_folders(path: Path) -> Iterator[Folder | DataError]:
    """Yield the folders of the data set, or in the place of a bad entry of its list what is wrong.

    Raises:
        DataError: If there is no prompt, or the list is damaged.
    """
    listed = path / "seeds.json"
    yield from _listed(listed) if listed.is_file() else _found(path)


def pairs_of(path: Path, folder: Folder, skips: Skips) -> Iterator[tuple[str, Callable[[], Edit]]]:
    """Yield the key of each pair of a folder, and what reads it; a bad prompt is skipped.

    Raises:
        DataError: If too many were skipped.
    """
    name, seeds = folder
    try:
        prompt = _prompt(path / name / "prompt.json")
    except DataError as error:
        skips.skip(error)
        return
    notes = _notes(path / name / "metadata.jsonl", skips)
    for seed in seeds:
        read = partial(_edit, path / name, name, seed, prompt, notes.get(seed, {}))
        yield key_of(name, seed), read


def _listed(path: Path) -> Iterator[Folder | DataError]:
    with opened(path) as file:
        listed = parse_any(file.read(MAX_OBJECT_BYTES + 1), str(path))
    if not isinstance(listed, list):
        raise DataError(f"{path} is no list of [name, [seeds]]; remove it", reason="bad json")
    for number, entry in enumerate(listed):
        try:
            yield _entry(path, number, entry)
        except DataError as error:
            yield error


def _entry(path: Path, number: int, entry: object) -> Folder:
    place = f"{path} entry {number}"
    match entry:
        case [str(name), [*seeds]]:
            if all(_SEED.fullmatch(str(seed)) for seed in seeds):
                folder = inside(path.parent, name, place).relative_to(path.parent)
                return folder.as_posix(), tuple(map(str, seeds))
    raise DataError(f"{place} is {str(entry)[:60]}, expected [name, [seeds]]", reason="bad entry")


def _found(path: Path) -> Iterator[Folder]:
    is_empty = True
    for directory, folders, names in os.walk(path):
        folders.sort()
        if "prompt.json" in names:
            is_empty = False
            seeds = [name.removesuffix("_0.jpg") for name in names if name.endswith("_0.jpg")]
            yield Path(directory).relative_to(path).as_posix(), tuple(sorted(seeds))
    if is_empty:
        raise DataError(
            f"{path} has no folder with a prompt.json; name the data set's directory",
            reason="missing file",
        )


def _prompt(path: Path) -> Mapping[str, str]:
    with opened(path) as file:
        fields = parse(file.read(MAX_OBJECT_BYTES + 1), str(path))
    texts = {name: fields.get(name) for name in ("input", "edit", "output")}
    for name in ("input", "edit"):
        if not isinstance(texts[name], str):
            raise DataError(
                f"{path}: {name} is {str(texts[name])[:40]!r}, expected a text",
                reason=f"bad field {name}",
            )
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _notes(path: Path, skips: Skips) -> Mapping[str, Mapping[str, str]]:
    if not path.is_file():
        return {}
    return {
        str(fields.get("seed")): said(fields, but=())
        for _, fields in read_objects(path, skips)
        if is_object(fields)
    }


def _edit(
    folder: Path, name: str, seed: str, prompt: Mapping[str, str], notes: Mapping[str, str]
) -> Edit:
    before, after = (folder / f"{seed}_{which}.jpg" for which in (0, 1))
    for file, other in ((before, after), (after, before)):
        if not file.is_file():
            raise DataError(
                f"{file} is missing, the pair of {other.name}; copy it again",
                reason="missing picture",
            )
    return Edit(
        key=key_of(name, seed),
        caption=prompt["input"],
        before=(picture(before, str(before)),),
        instruction=prompt["edit"],
        after=picture(after, str(after)),
        after_caption=prompt.get("output"),
        provenance=notes,
    )
