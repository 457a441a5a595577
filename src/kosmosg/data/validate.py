"""What is wrong with shards: which file of which sample, and where in it. Nothing is repaired."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from kosmosg.data.foreign import PICTURES, TEXT, is_img2dataset, picture_of, record_of
from kosmosg.data.jsonplace import line_and_column, place_of
from kosmosg.data.looking import is_bare, kind_of, pictures_of, plain, texts_of, walk
from kosmosg.data.records import Caption, Document, Edit, Example, Record
from kosmosg.data.samples import JSON, FieldError
from kosmosg.errors import DataError, PromptError
from kosmosg.images import open_image, to_rgb


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    `member` is a file's name in the tar, empty if it is the sample as a whole, as `key` is if it is
    the shard; `line` and `column` count from 1 and are 0 where there are none. `reason` is a short
    fixed phrase.
    """

    shard: str
    key: str
    member: str
    line: int
    column: int
    reason: str
    what: str

    def __str__(self) -> str:
        """Return one line, in the manner of a compiler."""
        where = f", line {self.line}, column {self.column}" if self.line else ""
        inside = [self.member + where if self.member else self.key] if self.key else []
        # Of a shard as a whole the words say themselves which it is.
        return ": ".join([self.shard, *inside, self.what] if inside else [self.what])


@dataclass(kw_only=True)
class Report:
    """What there was: sums over the records that are all right, and why the others are not.

    `num_files_unused` counts files in samples that no record names; `num_shards_empty` tars in
    which there is no file at all, as construction writes where no picture passed.
    """

    num_shards: int = 0
    num_shards_empty: int = 0
    num_records: Counter[str] = field(default_factory=Counter[str])
    num_pictures: Counter[str] = field(default_factory=Counter[str])
    num_words: Counter[str] = field(default_factory=Counter[str])
    num_wrong: int = 0
    num_files_unused: int = 0
    reasons: Counter[str] = field(default_factory=Counter[str])
    img2dataset: Counter[str] = field(default_factory=Counter[str])


@dataclass(frozen=True, kw_only=True)
class _Fault:
    """What is wrong with a sample: at a path in its json, or in a file as a whole."""

    reason: str
    what: str
    file: str = JSON
    path: tuple[str | int, ...] | None = None
    place: tuple[int, int] = (0, 0)


def validate(
    tars: Sequence[Path],
    report: Report,
    *,
    limit: int | None = None,
    done: Callable[[int], object] | None = None,
) -> Iterator[Problem]:
    """Yield every problem of every sample, and add up what there is while it goes.

    Every picture, cut-out and mask is decoded. Keys are kept to find those that come twice: about
    150 bytes a record.

    Args:
        limit: Samples to look at, at most.
        done: Told the number of bytes that each step got further.
    """
    shard_of_key: dict[str, Path] = {}
    empty = dict.fromkeys(tars, True)
    num_samples = 0
    for tar, key, files in walk(tars, limit=limit, done=done):
        num_samples += bool(key)
        empty[tar] = False
        if isinstance(files, DataError):
            report.num_wrong += bool(key)
            report.reasons[files.reason] += 1
            yield _problem(tar, key, {}, _Fault(reason=files.reason, what=str(files), file=""))
            continue
        foreign = is_img2dataset(files)
        report.img2dataset[str(tar)] += foreign
        record, wrong = _look(key, files)
        faults = [*_twice(tar, key, shard_of_key), *wrong]
        report.num_wrong += bool(faults)
        if record and not faults:
            _count(record, files, report, foreign=foreign)
        report.reasons.update(fault.reason for fault in faults)
        yield from (_problem(tar, key, files, fault) for fault in faults)
    report.num_shards = len(tars)
    looked_at_all = limit is None or num_samples < limit
    for tar in (tar for tar, is_empty in empty.items() if is_empty and looked_at_all):
        if is_bare(tar):
            report.num_shards_empty += 1
            continue
        report.reasons["no sample"] += 1
        what = f"{tar} holds no sample: no file such as 000.json; write it again, or leave it out"
        yield _problem(tar, "", {}, _Fault(reason="no sample", what=what, file=""))


def _twice(tar: Path, key: str, shard_of_key: dict[str, Path]) -> Iterator[_Fault]:
    if key in shard_of_key:
        what = f"another sample in {shard_of_key[key]} has this key; name each record once"
        yield _Fault(reason="key twice", what=what, file="")
    shard_of_key.setdefault(key, tar)


def _look(key: str, files: Mapping[str, bytes]) -> tuple[Record | None, list[_Fault]]:
    """Return a sample's record, if it has one, and what is wrong with it."""
    try:
        record = record_of(key, files)
    except DataError as error:
        return None, list(_unreadable(error, files))
    return record, list(_odd(record, files))


def _count(record: Record, files: Mapping[str, bytes], report: Report, *, foreign: bool) -> None:
    kind = kind_of(record)
    report.num_records[kind] += 1
    report.num_pictures[kind] += len(pictures_of(record))
    report.num_words[kind] += sum(len(text.split()) for text in texts_of(record))
    report.num_files_unused += len(files.keys() - _used(files, foreign=foreign))


def _unreadable(error: DataError, files: Mapping[str, bytes]) -> Iterator[_Fault]:
    """Yield why there is no record, and which pictures are damaged beside."""
    first = _fault_of(error, files)
    yield first
    for name, data in files.items():
        if name != first.file and name.rpartition(".")[2] in PICTURES:
            try:
                open_image(data)
            except PromptError as damage:
                yield _Fault(reason="unreadable picture", what=str(damage), file=name)


def _fault_of(error: DataError, files: Mapping[str, bytes]) -> _Fault:
    what, cause = str(error), error.__cause__
    if isinstance(error, FieldError):
        if error.reason == "unreadable picture":
            name = _value(files, error.path)
            return _Fault(reason=error.reason, what=str(cause), file=name)
        return _Fault(reason=error.reason, what=what, path=error.path)
    if isinstance(cause, json.JSONDecodeError):
        return _Fault(reason=error.reason, what=what, place=(cause.lineno, cause.colno))
    if isinstance(cause, UnicodeDecodeError):
        name = TEXT if error.reason == "bad text" and TEXT in files else JSON
        before = files[name][: cause.start].decode(errors="replace")
        return _Fault(reason=error.reason, what=what, file=name, place=line_and_column(before))
    if error.reason == "no caption":
        if TEXT in files:
            return _Fault(reason="empty text", what=what, file=TEXT)
        return _Fault(reason="empty text", what=what, path=("caption",))
    if isinstance(cause, PromptError):  # of an img2dataset sample, which has one picture
        return _Fault(reason=error.reason, what=str(cause), file=picture_of(files) or "")
    return _Fault(reason=error.reason, what=what, file=JSON if JSON in files else "")


def _odd(record: Record, files: Mapping[str, bytes]) -> Iterator[_Fault]:
    """Yield what a reader passes over and training should not see."""
    for path, text in _said(record):
        if not text.strip():
            what = "its text is empty; write the words, or leave the record out"
            yield _Fault(reason="empty text", what=what, path=path)
    if isinstance(record, Example):
        for index, entity in enumerate(record.entities):
            for name in ("crop", "cutout", "mask"):
                if image := getattr(entity, name):
                    member = _value(files, ("entities", index, name))
                    yield from _odd_cut(image, member, is_mask=name == "mask")


def _odd_cut(image: Image.Image, member: str, *, is_mask: bool) -> Iterator[_Fault]:
    try:
        to_rgb(image, "the picture")
    except PromptError as error:
        yield _Fault(reason="unreadable picture", what=str(error), file=member)
        return
    if is_mask and image.convert("L").getbbox() is None:
        what = "the mask is all black; leave it out where the thing is not to be seen"
        yield _Fault(reason="empty mask", what=what, file=member)


def _said(record: Record) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield the texts that may not be empty, and where they stand."""
    match record:
        case Document():
            for index, part in enumerate(record.parts):
                if isinstance(part, str):
                    yield ("parts", index, "text"), part
        case Caption():
            yield ("text",), record.text
        case Example():
            yield ("caption",), record.caption
        case Edit():
            yield ("instruction",), record.instruction
            if record.after_caption is not None:
                yield ("after_caption",), record.after_caption


def _problem(tar: Path, key: str, files: Mapping[str, bytes], fault: _Fault) -> Problem:
    line, column = fault.place
    if fault.path is not None:
        line, column = place_of(_text(files), fault.path)
    # Readers name the record, which here stands before.
    what = re.sub(rf"^(record|sample|document|example|edit) {re.escape(key)}:? ", "", fault.what)
    return Problem(
        shard=plain(str(tar)),
        key=plain(key),
        member=plain(f"{key}.{fault.file}") if fault.file else "",
        line=line,
        column=column,
        reason=fault.reason,
        what=plain(" ".join(what.split())),
    )


def _used(files: Mapping[str, bytes], *, foreign: bool) -> set[str]:
    if foreign:
        return {JSON, TEXT, picture_of(files) or JSON}
    return {JSON, *_strings(json.loads(files[JSON]))}


def _strings(value: object) -> Iterator[str]:
    """Yield every text of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _value(files: Mapping[str, bytes], path: Sequence[str | int]) -> str:
    value: Any = json.loads(files[JSON])
    for step in path:
        value = value[step]
    return value


def _text(files: Mapping[str, bytes]) -> str:
    data = files[JSON]
    return data.decode(json.detect_encoding(data), "surrogatepass")  # as json.loads does
