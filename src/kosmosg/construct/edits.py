"""Other people's edits: units of InstructPix2Pix's folders, or of pairs by name; who screens them.

No model is needed, unless the filters name a classifier.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from kosmosg.construct.config import EditsConfig
from kosmosg.construct.journal import Journal
from kosmosg.construct.leaks import Leaks
from kosmosg.construct.models import load_filter
from kosmosg.construct.screen import passing_records, screened
from kosmosg.construct.unit import Unit
from kosmosg.data.readers.files import tried
from kosmosg.data.readers.folders import Files, list_files, read_files
from kosmosg.data.readers.instructpix2pix import Folder, list_folders, pairs_of
from kosmosg.data.readers.names import key_of
from kosmosg.data.records import Caption, Edit
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PromptsUnit(Unit):
    """Some of InstructPix2Pix's folders below `root`; `bad` are entries of its list in error."""

    root: str
    folders: tuple[Folder, ...]
    bad: tuple[DataError, ...]


@dataclass(frozen=True, kw_only=True)
class PairsUnit(Unit):
    """Some targets below `root` with what belongs to them."""

    root: str
    files: tuple[Files, ...]


EditsUnit: TypeAlias = PromptsUnit | PairsUnit


def prompts_units(path: Path, *, unit_size: int) -> list[PromptsUnit]:
    """Return units of so many folders of InstructPix2Pix each, in the order of its list.

    Raises:
        DataError: If there is none, or the list is damaged.
    """
    units: list[PromptsUnit] = []
    for number, block in enumerate(_blocks(path, list_folders(path), unit_size)):
        folders = tuple(one for one in block if not isinstance(one, DataError))
        bad = tuple(one for one in block if isinstance(one, DataError))
        units.append(PromptsUnit(name=f"{number:06d}", root=str(path), folders=folders, bad=bad))
    return units


def pairs_units(path: Path, *, unit_size: int) -> list[PairsUnit]:
    """Return units of so many targets each, in the order of their names.

    Raises:
        DataError: If there is none, or it is unclear which folder is what.
    """
    return [
        PairsUnit(name=f"{number:06d}", root=str(path), files=tuple(block))
        for number, block in enumerate(_blocks(path, list_files(path), unit_size))
    ]


@dataclass(frozen=True, kw_only=True)
class MakeEditsWorker:
    """Makes what reads and screens a unit's edits, in the process that will do it.

    Args:
        config: Of the run.
        leaks: Pictures of evaluation sets, which become no edits.
    """

    config: EditsConfig
    leaks: Leaks | None = None

    def __call__(self) -> Callable[[EditsUnit, Skips, Journal], Iterator[Caption | Edit]]:
        """Return the worker: from a unit to its records."""
        filters, judge = self.config.filters, load_filter(self.config)
        return lambda unit, skips, journal: screened(
            passing_records(records_of(unit, skips, journal), filters, judge, skips),
            filters,
            self.leaks,
            skips,
        )


def records_of(unit: EditsUnit, skips: Skips, journal: Journal) -> Iterator[Caption | Edit]:
    """Yield the records of a unit, each noted before its pictures are read; bad ones are skipped.

    Raises:
        DataError: If too many were skipped.
    """
    reader = _in_folders if isinstance(unit, PromptsUnit) else _in_files
    found = reader(unit, skips)  # pyright: ignore[reportArgumentType]
    for _, read in journal.each(found, skips):
        yield from tried(skips, read)


def _in_folders(unit: PromptsUnit, skips: Skips) -> Iterator[tuple[str, Callable[[], Edit]]]:
    for error in unit.bad:
        skips.skip(error)
    for folder in unit.folders:
        yield from pairs_of(Path(unit.root), folder, skips)


def _in_files(unit: PairsUnit, skips: Skips) -> Iterator[tuple[str, Callable[[], Caption | Edit]]]:
    del skips  # nothing is read yet
    for files in unit.files:
        yield key_of(files.stem), functools.partial(read_files, Path(unit.root), files)


def _blocks(path: Path, things: Iterable[T], size: int) -> Iterator[list[T]]:
    things = iter(things)
    first = list(itertools.islice(things, size))
    if not first:
        raise DataError(f"{path} holds no pairs; name a folder that does", reason="missing file")
    yield first
    while block := list(itertools.islice(things, size)):
        yield block
