import gzip
import json
import os

import pytest

from kosmosg.data.readers.texts import read_text
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError
from toys.foreign import write

TEXT = "\ufeffOne line.\r\nTwo.\r\n\r\n \nThree.\n\n"


def read(path, **options):
    skips = Skips(limit=1.0)
    records = list(read_text(path, skips=skips, **options))
    return [(record.key, *record.parts) for record in records], skips


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("file", [("a", "One line.\r\nTwo.\r\n\r\n \nThree.")]),
        ("paragraph", [("a/3", "One line.\nTwo."), ("a/6", "Three.")]),
        ("line", [("a/1", "One line."), ("a/2", "Two."), ("a/5", "Three.")]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_one_document(tmp_path, documents, expected, packed):
    data = TEXT.encode()
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    write(path, gzip.compress(data) if packed else data)
    assert read(path, documents=documents)[0] == expected
    assert read(tmp_path, documents=documents)[0] == expected


def test_the_last_paragraph_needs_no_blank_line(tmp_path):
    write(tmp_path / "a.txt", "one\n\ntwo")
    assert read(tmp_path, documents="paragraph")[0] == [("a/2", "one"), ("a/3", "two")]


def test_json_lines_and_folders(tmp_path):
    lines = [{"text": "one", "url": "x"}, {"text": ""}, {"words": "no"}, {"text": "two\n\n2"}]
    write(tmp_path / "s" / "b.jsonl", "\n".join(map(json.dumps, lines)))
    write(tmp_path / "a.txt", "first")
    records, skips = read(tmp_path)
    assert records == [("a", "first"), ("s/b/1", "one"), ("s/b/4", "two\n\n2")]
    assert skips.reasons == {"no text": 2}


def test_a_long_text_is_one_document_of_several_parts(tmp_path):
    text = "\n".join(["x" * 9_999] * 25)
    write(tmp_path / "a.txt", text)
    ((_, *parts),), _ = read(tmp_path)
    assert [len(part) for part in parts] == [100_000, 100_000, 49_999]
    assert "".join(parts) == text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no text"),
        (b" \n", "no text"),
        (b"\xff\xfea\x00", "bad text"),
        (b"x" * 100_001, "text too long"),
        (b"x\n" * 600_000, "document too large"),
    ],
    ids=lambda value: value if isinstance(value, str) else "data",
)
def test_bad_texts_are_skipped(tmp_path, data, reason):
    write(tmp_path / "a.txt", data)
    write(tmp_path / "b.txt", "good")
    records, skips = read(tmp_path)
    assert records == [("b", "good")]
    assert skips.reasons == {reason: 1}


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    write(tmp_path / "b.txt", "good")
    for documents in ("file", "line"):
        records, skips = read(tmp_path, documents=documents)
        assert len(records) == 1
        assert skips.reasons == {"unreadable file": 1}


def test_a_paragraph_too_large_is_refused_as_a_whole(tmp_path):
    write(tmp_path / "a.txt", "x\n" * 1_200_000 + "\ngood\n")
    records, skips = read(tmp_path, documents="paragraph")
    assert records == [("a/1200002", "good")]
    assert skips.num_skipped == 1


def test_no_text_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.txt"):
        read(tmp_path)
