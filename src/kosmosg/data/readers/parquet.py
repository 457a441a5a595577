"""LAION, COYO and CC: captions in parquet files, pictures in them, beside them in tars, or nowhere.

Columns are known by their names, in capitals or not: `caption` or `text` (or `txt`, `alt_text`);
`url`; `key`; `image`, `jpg`, `png`, `webp` or `bytes` with the bytes of a picture or {bytes, path}
as the datasets library writes them. Other short columns become the records' provenance.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from kosmosg.data.readers.files import decode as decoded
from kosmosg.data.readers.files import (
    files_in,
    is_object,
    parse,
    picture,
    read_lines,
    root_of,
    said,
    tried,
    words,
)
from kosmosg.data.readers.img2dataset import CAPTIONS, NO_PROVENANCE, caption_of, samples_of
from kosmosg.data.readers.names import key_of, stems
from kosmosg.data.readers.tables import Lookup, columns_of, read_rows
from kosmosg.data.records import Caption
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError

IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "bytes")


def read_parquet(path: Path, *, skips: Skips) -> Iterator[Caption]:
    """Yield the captions of parquet files, or of the tars beside them with what the files add.

    A tar's sample finds its row by key in the parquet file of the tar's name, as img2dataset
    writes them, and by url in the others, such as LAION's own; a row's caption goes before the
    tar's. Where there is no tar, each row is a record, with its picture if it holds one.

    Raises:
        ConfigError: If pyarrow is not installed.
        DataError: If there is no parquet file, or too many rows were skipped.
    """
    tables = files_in(path, ".parquet")
    if not tables:
        raise DataError(f"{path} holds no .parquet; name a directory that does", reason="no file")
    tars = files_in(path, ".tar") if path.is_dir() else []
    if tars:
        yield from _joined(path, tars, tables, skips)
        return
    for table, name in stems(tables, root_of(path)).items():
        for number, row in read_rows(table, skips):
            key = key_of(name, number)
            yield from tried(skips, _caption, key, row, f"{table} row {number}")


def read_captions_tsv(path: Path, *, skips: Skips) -> Iterator[Caption]:
    """Yield the lines of Conceptual Captions' own files, `caption<TAB>url`, without pictures.

    Raises:
        DataError: If there is no file, or too many lines were skipped.
    """
    files = files_in(path, ".tsv", ".tsv.gz")
    if not files:
        raise DataError(f"{path} holds no .tsv; name a file of captions", reason="missing file")
    for file, name in stems(files, root_of(path)).items():
        for number, line in read_lines(file, skips):
            yield from tried(skips, _line, key_of(name, number), line, f"{file} line {number}")


def _line(key: str, line: bytes, place: str) -> Caption:
    columns = decoded(line, place).split("\t")
    if len(columns) != 2 or not columns[0].strip():
        raise DataError(
            f"{place} has {len(columns)} columns, expected a caption, a tab and an address",
            reason="wrong columns",
        )
    return Caption(key=key, text=columns[0].strip(), provenance={"url": columns[1].strip()})


def _caption(key: str, row: Mapping[str, object], place: str) -> Caption:
    text = words(row, *CAPTIONS)
    if text is None:
        names = ", ".join(row)[:80]
        raise DataError(
            f"{place} has no caption among {names}; name the column caption or text",
            reason="no caption",
        )
    columns = {name.lower(): value for name, value in row.items()}
    value = next((columns[name] for name in IMAGES if columns.get(name) is not None), None)
    if is_object(value):
        if value.get("bytes") is None and value.get("path"):
            raise DataError(
                f"{place} names the picture {str(value['path'])[:80]!r} and does not hold it;"
                " embed the pictures",
                reason="missing picture",
            )
        value = value.get("bytes")
    image = picture(value, place) if isinstance(value, bytes) else None
    provenance = said(row, but=(*NO_PROVENANCE, *IMAGES))
    return Caption(key=key, text=text, image=image, provenance=provenance)


def _joined(path: Path, tars: list[Path], tables: list[Path], skips: Skips) -> Iterator[Caption]:
    beside = {tar.with_suffix(".parquet") for tar in tars}
    keyed = {table: name for table, name in _named(tables, "key", skips) if table in beside}
    addressed = {table: name for table, name in _named(tables, "url", skips) if table not in keyed}
    by_url = Lookup(addressed, skips)
    for tar, name in stems(tars, root_of(path)).items():
        own = tar.with_suffix(".parquet")
        by_key = Lookup({own: keyed[own]} if own in keyed else {}, skips)
        for key, files in samples_of(tar, skips):
            yield from tried(skips, _sample, tar, name, key, files, by_key, by_url)


def _named(tables: list[Path], column: str, skips: Skips) -> Iterator[tuple[Path, str]]:
    """Yield the files that have a column, and how each spells it."""
    for table in tables:
        try:
            names = columns_of(table)
        except DataError as error:
            skips.skip(error)
        else:
            yield from ((table, name) for name in names if name.lower() == column)


def _sample(
    tar: Path, name: str, key: str, files: Mapping[str, bytes], by_key: Lookup, by_url: Lookup
) -> Caption:
    place = f"{tar}: sample {key[:80]!r}"
    fields = parse(files["json"], place) if "json" in files else {}
    own = by_key.find(key.rpartition("/")[2])
    address = words(own, "url") or words(fields, "url")
    other = by_url.find(address) if address else {}
    text = words(other, *CAPTIONS) or words(own, *CAPTIONS)
    if text:
        files = {**files, "txt": text.encode("utf-8", "surrogatepass")}
    known = {key.lower(): value for each in (fields, own, other) for key, value in each.items()}
    return caption_of(key_of(name, key), files, known, place=place)
