"""Plain text: files of words, or JSON lines that hold some."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from kosmosg.data.readers.files import (
    decode,
    files_in,
    opened,
    read_lines,
    read_objects,
    root_of,
    tried,
    until_damage,
    words,
)
from kosmosg.data.readers.names import key_of, stems
from kosmosg.data.records import Document
from kosmosg.data.samples import MAX_JSON_BYTES, MAX_TEXT_LENGTH
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".jsonl.zip")


def read_text(
    path: Path, *, skips: Skips, documents: Literal["file", "paragraph", "line"] = "file"
) -> Iterator[Document]:
    """Yield a document for each text.

    Args:
        path: A .txt or .jsonl, packed (.gz) or not, or a directory of them.
        skips: Where bad ones are counted.
        documents: What is one in a .txt: the file, what stands between blank lines, or a line. In
            JSON lines each line's `text` is one.

    Raises:
        DataError: If there is no file, or too many were skipped.
    """
    files = files_in(path, *SUFFIXES)
    if not files:
        raise DataError(f"{path} holds no .txt or .jsonl; name the texts", reason="missing file")
    for file, name in stems(files, root_of(path)).items():
        if ".jsonl" in file.suffixes:
            for number, fields in read_objects(file, skips):
                text = words(fields, "text")
                place = f"{file} line {number}"
                yield from tried(skips, _document, key_of(name, number), text, place)
        elif documents == "file":
            for text in until_damage(_whole(file), skips):
                yield from tried(skips, _document, key_of(name), text, str(file))
        else:
            yield from _pieces(file, name, documents, skips)


def _whole(path: Path) -> Iterator[str]:
    with opened(path) as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise DataError(
            f"{path} has more than {MAX_JSON_BYTES} bytes, too many for one document; make one of"
            " each paragraph or line",
            reason="document too large",
        )
    yield decode(data, str(path))


def _pieces(
    path: Path, name: str, documents: Literal["paragraph", "line"], skips: Skips
) -> Iterator[Document]:
    """Yield what stands between blank lines, or each line; its number is that of its last line."""
    lines: list[bytes] = []
    size = number = 0
    for number, line in read_lines(path, skips):
        if line.strip() and size <= MAX_JSON_BYTES:  # what is beyond is refused as a whole
            lines.append(line)
            size += len(line)
        if lines and (documents == "line" or not line.strip()):
            yield from tried(skips, _lines, key_of(name, number), lines, f"{path} line {number}")
            lines, size = [], 0
    if lines:
        yield from tried(skips, _lines, key_of(name, number), lines, f"{path} line {number}")


def _lines(key: str, lines: list[bytes], place: str) -> Document:
    return _document(key, decode(b"\n".join(lines), place), place)


def _document(key: str, text: str | None, place: str) -> Document:
    if text is None or not text.strip():
        raise DataError(f"{place} holds no text; write some, or remove it", reason="no text")
    return Document(key=key, parts=tuple(_parts(text.strip())))


def _parts(text: str) -> list[str]:
    """Return a long text in parts that a record may have, cut where a line ends."""
    parts = []
    while len(text) > MAX_TEXT_LENGTH:
        cut = text.rfind("\n", 0, MAX_TEXT_LENGTH) + 1
        if not cut:
            break  # one line is too long: the record is refused by that
        parts.append(text[:cut])
        text = text[cut:]
    return [*parts, text]
