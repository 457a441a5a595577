"""Full-sentence packing: documents to pieces, and from the pieces' lengths to rows of a fixed size.

A piece is a sentence or a picture. A row holds whole consecutive pieces of one or more documents,
so a row is nothing but two places in a shard, and is addressable like a record.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from kosmosg.data.records import Caption, Document, Record
from kosmosg.errors import ConfigError, DataError

SEQ_LEN = 2048

Piece: TypeAlias = str | Image.Image

# Marks that end a sentence before a space (ellipsis, Arabic and Indian ones too), wide ones after
# which no space is written, and what may close a quotation behind them.
_MARKS = r".!?\u2026\u061f\u06d4\u0964"
_WIDE_MARKS = r"\u3002\uff01\uff1f"
_CLOSING = r"\"'\u2019\u201d\u00bb)\]\u300d\u300f\uff09"
# The lookbehind and the possessive quantifiers keep the search linear on text made to slow it down.
_SENTENCE_END = re.compile(
    rf"(?:(?<![{_MARKS}])[{_MARKS}]++[{_CLOSING}]*+(?=\s|\Z)|[{_WIDE_MARKS}]++[{_CLOSING}]*+|\n)\s*+"
)


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, each with the spaces after it; joined they are the text.

    A sentence ends at `.!?` and their like before a space, at the wide marks of Chinese and
    Japanese, and at a line break. So does an abbreviation, which only means that a row may break
    there.

    Example:
        >>> sentences("One. Two?  3.5 of them")
        ['One. ', 'Two?  ', '3.5 of them']
    """
    found: list[str] = []
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if not text[start : match.end()].isspace():  # blank lines belong to what follows
            found.append(text[start : match.end()])
            start = match.end()
    return [*found, text[start:]] if start < len(text) else found


def pieces(record: Record) -> list[Piece]:
    """Return the sentences and pictures of a document; a caption's picture comes before its words.

    Each sentence is tokenised by itself, and loses its spaces in that. Cut at spaces, the ids are
    those of the whole text; after a wide mark without a space there is a word boundary more.

    Raises:
        DataError: If the record is of another kind.

    Source:
        Paper appendix A, after Kosmos-1: text, captioned pictures, interleaved pages.
    """
    match record:
        case Document():
            parts = record.parts
        case Caption():
            parts = (record.text,) if record.image is None else (record.image, record.text)
        case _:
            raise DataError(
                f"{type(record).__name__.lower()} {record.key} belongs to stage 3; rows are packed"
                " from documents and captions",
                reason="wrong kind",
            )
    found: list[Piece] = []
    for part in parts:
        found += sentences(part) if isinstance(part, str) else [part]
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Lengths:
    """What packing needs to know of a shard: how many positions each piece takes.

    Attributes:
        counts: Pieces of each record; a record without any takes no room.
        sizes: Positions of each piece, all records in a row.
        pictures: Which pieces are pictures.
    """

    counts: Int[np.ndarray, " records"]
    sizes: Int[np.ndarray, " pieces"]
    pictures: Bool[np.ndarray, " pieces"]


def pack(lengths: Lengths, *, seq_len: int = SEQ_LEN) -> Int[np.ndarray, "bounds 3"]:
    """Return where rows begin, and at last where the last one ends: (record, piece, id in it).

    Rows are filled in order, each with as many whole pieces as fit behind the `<s>` of each of its
    documents. A picture and the sentence after it stay together if they fit into one row. A
    sentence longer than a row fills up the row before and goes on in the next. A record without
    ids takes no room, and lies in a row whose reader must leave it out.

    Raises:
        ConfigError: If a picture is longer than a row.

    Source:
        Paper appendix A, after Kosmos-1's full-sentence format.
    """
    room = seq_len - 1  # behind `<s>`
    first, sizes, opens = _units(lengths, room)
    ends = np.cumsum(sizes + opens)
    units, tokens = [0], [0]
    unit = token = 0
    while unit < len(first):
        if token and sizes[unit] - token > room:
            token += room
        else:
            if token:  # the rest of a sentence begins the row
                used = 1 + int(sizes[unit]) - token
                unit += 1
            else:
                used = int(not opens[unit])
            done = int(ends[unit - 1]) if unit else 0
            # Units up to here fit, as many as there are.
            unit = max(unit, int(np.searchsorted(ends, done + seq_len - used, side="right")))
            token = 0
            if unit < len(first) and sizes[unit] > room:
                used += int(ends[unit - 1]) - done if unit else 0
                token = max(0, seq_len - used - int(opens[unit]))
        units.append(unit)
        tokens.append(token)
    return _places(lengths, first[units[:-1]], opens[units[:-1]], tokens)


def _units(
    lengths: Lengths, room: int
) -> tuple[Int[np.ndarray, " units"], Int[np.ndarray, " units"], Bool[np.ndarray, " units"]]:
    """Return what stays together: its first piece, its size, whether a document opens with it."""
    owner = np.repeat(np.arange(len(lengths.counts)), lengths.counts)
    shown = np.flatnonzero(lengths.sizes)  # a text of spaces is no piece
    sizes, pictures, owner = lengths.sizes[shown], lengths.pictures[shown], owner[shown]
    if (sizes[pictures] > room).any():
        raise ConfigError(
            f"seq_len is {room + 1}, and a picture with its <s> takes"
            f" {sizes[pictures].max() + 1}; make rows longer"
        )
    opens = np.ones(len(sizes), np.bool_)
    opens[1:] = owner[1:] != owner[:-1]
    joined = np.zeros(len(sizes), np.bool_)  # to the picture before it
    joined[1:] = pictures[:-1] & ~pictures[1:] & ~opens[1:] & (sizes[:-1] + sizes[1:] <= room)
    first = np.flatnonzero(~joined)
    together = np.add.reduceat(sizes, first, dtype=np.int64) if len(first) else sizes
    return shown[first], together, opens[first]


def _places(
    lengths: Lengths,
    piece: Int[np.ndarray, " rows"],
    opens: Bool[np.ndarray, " rows"],
    tokens: Sequence[int],
) -> Int[np.ndarray, "bounds 3"]:
    """Return the places of the rows' first pieces, and the end of the shard."""
    places = np.zeros((len(piece) + 1, 3), np.int32)
    places[-1] = len(lengths.counts), 0, 0
    owner = np.repeat(np.arange(len(lengths.counts)), lengths.counts)[piece]
    begin = (np.cumsum(lengths.counts) - lengths.counts)[owner]
    places[:-1, 0] = owner
    places[:-1, 2] = tokens[:-1]
    # A document that opens a row does so with all its pieces, those without ids too.
    whole = opens & (places[:-1, 2] == 0)
    places[:-1, 1] = np.where(whole, 0, piece - begin)
    if len(piece):
        places[0] = 0
    return places
