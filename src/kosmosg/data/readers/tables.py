"""Parquet files: their rows one after the other, and a row by what stands in one column."""

import hashlib
from collections.abc import Iterator, Mapping
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

    Args:
        columns: Files, and what the column is called in each.
        skips: Where files that cannot be read are counted.

    Raises:
        ConfigError: If pyarrow is not installed.
        DataError: If too many were skipped.
    """

    def __init__(self, columns: Mapping[Path, str], skips: Skips) -> None:
        self._columns = list(columns.items())
        self._group = lru_cache(maxsize=2)(self._read_group)
        hashes, places = [np.empty(0, np.uint64)], [np.empty((0, 3), np.int64)]
        for number, (path, column) in enumerate(self._columns):
            for group, values in until_damage(_column(path, column), skips):
                hashes.append(np.array([_hash(_plain(value)) for value in values], np.uint64))
                rows = np.arange(len(values), dtype=np.int64)
                places.append(np.stack([0 * rows + number, 0 * rows + group, rows], axis=1))
        order = np.argsort(np.concatenate(hashes), kind="stable")
        self._hashes, self._places = np.concatenate(hashes)[order], np.concatenate(places)[order]

    def find(self, value: str) -> Mapping[str, object]:
        """Return the first row that has this value, without its binary columns; or nothing.

        Raises:
            DataError: If the row cannot be read.
        """
        wanted = np.uint64(_hash(value))
        start = int(np.searchsorted(self._hashes, wanted))
        while start < len(self._hashes) and self._hashes[start] == wanted:
            number, group, row = map(int, self._places[start])
            path, column = self._columns[number]
            try:
                found = self._group(number, group).slice(row, 1).to_pylist()[0]
            except (ValueError, OverflowError) as error:
                raise DataError(
                    f"{path}: {error}; write it again as UTF-8", reason="bad row"
                ) from None
            if str(found[column]) == value:
                return found
            start += 1
        return {}

    def _read_group(self, number: int, group: int) -> Any:  # noqa: ANN401 -- pyarrow has no types
        pyarrow, _ = _pyarrow()
        types = pyarrow.types
        with _opened(self._columns[number][0]) as file:
            columns = [
                field.name
                for field in file.schema_arrow
                if not types.is_nested(field.type)
                and not types.is_binary(field.type)
                and not types.is_large_binary(field.type)
            ]
            return file.read_row_group(group, columns=columns)


def _column(path: Path, column: str) -> Iterator[tuple[int, Any]]:
    with _opened(path) as file:
        for group in range(file.num_row_groups):
            yield group, file.read_row_group(group, columns=[column]).column(0)


def _plain(value: Any) -> object:  # noqa: ANN401
    try:
        return value.as_py()
    except (ValueError, OverflowError):  # bytes that are no text: nobody will ask for them
        return None


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
