"""The formats by name, and which of them a path is in."""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from kosmosg.data.readers.files import PICTURES, is_object, opened, parse, parse_any, read_lines
from kosmosg.data.readers.folders import is_folders, read_folders
from kosmosg.data.readers.img2dataset import read_img2dataset, samples_of
from kosmosg.data.readers.instructpix2pix import read_instructpix2pix
from kosmosg.data.readers.interleaved import read_mmc4, read_obelics
from kosmosg.data.readers.parquet import read_captions_tsv, read_parquet
from kosmosg.data.readers.tables import columns_of
from kosmosg.data.readers.texts import read_text
from kosmosg.data.readers.tsv import (
    read_tsv_instructpix2pix,
    read_tsv_laion,
    read_tsv_openimages,
    sources_of,
)
from kosmosg.data.records import Record
from kosmosg.data.skips import Skips
from kosmosg.errors import ConfigError, DataError

READERS: Mapping[str, Callable[..., Iterator[Record]]] = {
    "img2dataset": read_img2dataset,
    "parquet": read_parquet,
    "captions-tsv": read_captions_tsv,
    "mmc4": read_mmc4,
    "obelics": read_obelics,
    "instructpix2pix": read_instructpix2pix,
    "folders": read_folders,
    "text": read_text,
    "tsv-laion": read_tsv_laion,
    "tsv-laion-text": partial(read_tsv_laion, stage=2),
    "tsv-instructpix2pix": read_tsv_instructpix2pix,
    "tsv-openimages": read_tsv_openimages,
}

_SUFFIXES = (".tar", ".parquet", ".jsonl", ".tsv", ".txt")


def detect(path: Path) -> str:
    """Return the name of the format that a file or directory is in.

    The first file of each kind is looked into; of several kinds that could be meant none is chosen.

    Raises:
        ConfigError: If it is in none or could be in several, or holds our own shards.
        DataError: If there is no such path, or its first file cannot be read.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path", reason="missing file")
    found = _of_directory(path) if path.is_dir() else {_of_file(path)}
    names = sorted(name for name in found if name)
    if len(names) != 1:
        choice = " or ".join(names or READERS)
        known = "may be in several formats" if names else "is in no format that is known"
        raise ConfigError(f"{path} {known}; name it: {choice}")
    return names[0]


def _of_directory(path: Path) -> set[str | None]:
    if (path / "seeds.json").is_file() or any(
        any(path.glob(pattern)) for pattern in ("*/prompt.json", "*/*/prompt.json")
    ):
        return {"instructpix2pix"}
    if (path / "json" / "train.json").is_file():
        return {_of_file(path / "json" / "train.json")}
    if is_folders(path):
        return {"folders"}
    first = _first_of_each(path)
    if ".parquet" in first or ".jsonl" in first:  # tars and pictures belong to them
        return {_of_file(first[suffix]) for suffix in (".parquet", ".jsonl") if suffix in first}
    if ".txt" in first and "picture" in first and first.keys() == {".txt", "picture"}:
        return {"folders"}
    return {_of_file(first[suffix]) for suffix in _SUFFIXES if suffix in first}


def _first_of_each(path: Path) -> dict[str, Path]:
    """Return the first file of each suffix, packed or not, and the first picture."""
    first: dict[str, Path] = {}
    for directory, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            suffix = _suffix(name)
            if suffix and not name.startswith("."):
                first.setdefault(suffix, Path(directory, name))
    return first


def _suffix(name: str) -> str | None:
    name = name.lower().removesuffix(".gz").removesuffix(".zip")
    if name.endswith(PICTURES):
        return "picture"
    return next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), None)


def _of_file(path: Path) -> str | None:
    match _suffix(path.name):
        case ".tar":
            return _of_tar(path)
        case ".parquet":
            columns = {name.lower() for name in columns_of(path)}
            return "obelics" if columns >= {"images", "texts"} else "parquet"
        case ".jsonl":
            return _of_objects(path)
        case ".tsv":
            return _of_rows(path)
        case ".txt":
            return "text"
    first = next(sources_of(path), None) if path.suffix == ".json" else None
    return None if first is None else _of_rows(first)


def _of_tar(path: Path) -> str | None:
    for _, files in samples_of(path, Skips(limit=0.0, least=1)):
        known = parse_any(files["json"], str(path)) if "json" in files else {}
        if is_object(known) and {"kind", "format_version"} <= known.keys():
            raise ConfigError(f"{path} is one of our own shards; there is nothing to convert")
        return "img2dataset" if "json" in files or "txt" in files else None
    return None


def _of_objects(path: Path) -> str | None:
    for number, line in read_lines(path, Skips(limit=0.0, least=1)):
        if line.strip():
            names = parse(line, f"{path} line {number}").keys()
            for name, fields in (
                ("mmc4", {"text_list", "image_info"}),
                ("obelics", {"images", "texts"}),
                ("text", {"text"}),
            ):
                if fields <= names:
                    return name
            return None
    return None


def _of_rows(path: Path) -> str | None:
    """Return the format of a row by its columns: LAION's five end in two numbers."""
    with opened(path) as file:
        columns = file.readline(1 << 28).rstrip(b"\r\n").split(b"\t")
    if len(columns) == 2:
        return "captions-tsv"
    if len(columns) == 5 and columns[3].isdigit() and columns[4].isdigit():
        return "tsv-laion"
    if len(columns) < 3:
        return None
    return "tsv-openimages" if len(columns) % 2 else "tsv-instructpix2pix"
