"""Parquet files: their rows one after the other, and a row by what stands in one column."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kosmosg.data.readers.files import until_damage
from kosmosg.data.skips import Skips
from kosmosg.errors import ConfigError, DataError

BATCH = 64


def read_rows(path: Path, skips: Skips) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield the rows of a parquet file with their numbers from 0; damage is skipped.

    Some rows at a time are in memory, never the file.

    Raises:
        ConfigError: If pyarrow is not installed.
        DataError: If too many were skipped.
    """
    for number, row in until_damage(_rows(path), skips):
        if isinstance(row, DataError):
            skips.skip(row)
        else:
            yield number, row


def columns_of(path: Path) -> list[str]:
    """Return the names of a parquet file's columns.

    Raises:
        ConfigError: If pyarrow is not installed.
        DataError: If it cannot be read.
    """
    with _opened(path) as file:
        return list(file.schema_arrow.names)


class Lookup:
    """Rows of parquet files, found by what stands in one column.

    In memory are a hash and a place for each row, and the row groups used last.

    Raises:
        ConfigError: If pyarrow is not installed.
        DataError: If a file cannot be read.
    """

    def __init__(self, paths: Sequence[Path], column: str) -> None:
        self._column = column
        self._paths = list(paths)
        self._group = lru_cache(maxsize=2)(self._read_group)
        hashes: list[int] = []
        places: list[tuple[int, int, int]] = []
        for number, path in enumerate(paths):
            with _opened(path) as file:
                for group in range(file.num_row_groups):
                    values = file.read_row_group(group, columns=[column]).column(0)
                    hashes += (_hash(value.as_py()) for value in values)
                    places += ((number, group, row) for row in range(len(values)))
        order = np.argsort(np.array(hashes, np.uint64), kind="stable")
        self._hashes = np.array(hashes, np.uint64)[order]
        self._places = np.array(places, np.int64).reshape(-1, 3)[order]

    def find(self, value: object) -> Mapping[str, object] | None:
        """Return the first row that has this value, without its binary columns.

        Raises:
            DataError: If its file cannot be read any more.
        """
        wanted = _hash(value)
        start = int(np.searchsorted(self._hashes, np.uint64(wanted)))
        while start < len(self._hashes) and int(self._hashes[start]) == wanted:
            number, group, row = map(int, self._places[start])
            found = self._group(number, group).slice(row, 1).to_pylist()[0]
            if str(found[self._column]) == str(value):
                return found
            start += 1
        return None

    def _read_group(self, number: int, group: int) -> Any:  # noqa: ANN401 -- pyarrow has no types
        pyarrow, _ = _pyarrow()
        with _opened(self._paths[number]) as file:
            simple = [
                field.name for field in file.schema_arrow if not pyarrow.types.is_nested(field.type)
            ]
            binary = [
                field.name for field in file.schema_arrow if pyarrow.types.is_binary(field.type)
            ]
            columns = [name for name in simple if name not in binary]
            return file.read_row_group(group, columns=columns)


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, object] | DataError]]:
    number = 0
    with _opened(path) as file:
        for batch in file.iter_batches(batch_size=BATCH):
            columns = list(zip(batch.schema.names, batch.columns, strict=True))
            for index in range(batch.num_rows):
                try:
                    row = {name: column[index].as_py() for name, column in columns}
                except (ValueError, OverflowError) as error:  # bytes that are no text, odd dates
                    what = f"{path} row {number}: {error}; write it again as UTF-8"
                    yield number, DataError(what, reason="bad row")
                else:
                    yield number, row
                number += 1


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    pyarrow, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        what = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: {what}; expected a parquet file that is all there", reason="unreadable file"
        ) from error


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            'reading parquet needs pyarrow; type: pip install "kosmosg[data]"'
        ) from error
    return pyarrow, pyarrow.parquet


def _hash(value: object) -> int:
    data = str(value).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
