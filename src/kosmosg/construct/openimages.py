"""Open Images: whose each picture is and under which licence, from its tables."""

import csv
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kosmosg.errors import ConfigError, DataError

# Columns of Open Images' tables of pictures, and their names in a record's provenance.
COLUMNS = {"OriginalURL": "url", "License": "license", "Author": "author"}
ID = "ImageID"
MAX_FIELD = 2_000
_MANY = 500  # parameters of one question, well below SQLite's limit


def index_licences(tables: Iterable[Path], index: Path) -> Path:
    """Write what Open Images' tables say of each picture into one file that can be asked by id.

    Nine million rows would take gigabytes in every process; the file takes about 2 GB of disk and
    is written whole or not at all.

    Args:
        tables: CSV files with the columns ImageID and any of OriginalURL, License, Author.
        index: The file to write.

    Raises:
        DataError: If a table is missing, damaged or has no such columns.
    """
    temporary = index.with_name(f".{index.name}.part")
    temporary.unlink(missing_ok=True)
    try:
        with sqlite3.connect(temporary, isolation_level=None) as database:
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("PRAGMA synchronous = OFF")
            database.execute(
                "CREATE TABLE pictures (id TEXT PRIMARY KEY, url, license, author) WITHOUT ROWID"
            )
            database.execute("BEGIN")
            for table in tables:
                database.executemany(
                    "INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?)", _rows(table)
                )
            database.execute("COMMIT")
        database.close()
        temporary.replace(index)
    except sqlite3.Error as error:
        raise DataError(
            f"cannot write {index}: {error}; is the disk full?", reason="unwritable index"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return index


def _rows(table: Path) -> Iterator[tuple[str, str, str, str]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            names = set(rows.fieldnames or ())
            if ID not in names or not names & COLUMNS.keys():
                raise DataError(
                    f"{table} has the columns {', '.join(sorted(names))[:120] or 'none'}; give a"
                    f" table of Open Images' pictures, with {ID} and {', '.join(COLUMNS)}",
                    reason="wrong table",
                )
            for row in rows:
                url, licence, author = ((row.get(name) or "")[:MAX_FIELD] for name in COLUMNS)
                yield row[ID] or "", url, licence, author
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{table}: {reason}; download it again", reason="unreadable file"
        ) from error


@dataclass(frozen=True)
class Licences:
    """An index that `index_licences` wrote, opened for each question: it can go to any process."""

    index: Path

    def of(self, ids: Iterable[str]) -> dict[str, Mapping[str, str]]:
        """Return what is known of these pictures; unknown ids are left out.

        Raises:
            ConfigError: If the index cannot be read.
        """
        wanted = list(dict.fromkeys(ids))
        found: dict[str, Mapping[str, str]] = {}
        try:
            database = sqlite3.connect(f"{self.index.resolve().as_uri()}?mode=ro", uri=True)
            try:
                for start in range(0, len(wanted), _MANY):
                    some = wanted[start : start + _MANY]
                    marks = ", ".join("?" * len(some))
                    question = f"SELECT * FROM pictures WHERE id IN ({marks})"
                    for one, *values in database.execute(question, some):
                        told = zip(COLUMNS.values(), values, strict=True)
                        found[one] = {name: str(value) for name, value in told if value}
            finally:
                database.close()
        except sqlite3.Error as error:
            raise ConfigError(
                f"cannot read {self.index}: {error}; remove it and begin anew"
            ) from None
        return found
