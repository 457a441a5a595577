"""A record as the files of a WebDataset sample, which may come from strangers."""

import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeGuard, cast

from PIL import Image

from kosmosg.data.records import Caption, Document, Edit, Entity, Example, Record
from kosmosg.errors import DataError, PromptError
from kosmosg.images import open_image, open_later

FORMAT_VERSION = 1
FieldPath: TypeAlias = tuple[str | int, ...]
MAX_JSON_BYTES = 1 << 20
MAX_TEXT_LENGTH = 100_000
MAX_PARTS = 1_000
JPEG_QUALITY = 95
JSON = "json"


class FieldError(DataError):
    """A field of a record's json that is missing or not as it should be, or its picture is.

    Args:
        path: Names of fields and places in lists that lead to it.
    """

    def __init__(self, message: str, *, reason: str, path: FieldPath) -> None:
        super().__init__(message, reason=reason)
        self.path = path


def to_bytes(record: Record, *, pictures: Literal["png", "jpg"] = "png") -> dict[str, bytes]:
    """Return the record as the files of a WebDataset sample: one `json` and the pictures.

    The key is not among them: it is the sample's name in its shard. PNG keeps every pixel; JPEG
    (quality 95) is for photographs, a sixth of the size and three times as fast to read. Masks are
    PNG in any case.
    """
    files: dict[str, bytes] = {}

    def save(stem: str, image: Image.Image) -> str:
        name = f"{stem}.{pictures}".removeprefix(".")
        files[name] = _jpeg(image) if pictures == "jpg" else _png(image)
        return name

    def save_mask(name: str, mask: Image.Image) -> str:
        files[name] = _png(mask.convert("1"))
        return name

    match record:
        case Document():
            parts = [
                {"text": part} if isinstance(part, str) else {"image": save(f"{i}", part)}
                for i, part in enumerate(record.parts)
            ]
            fields: dict[str, Any] = {"kind": "document", "parts": parts}
        case Caption():
            fields = {"kind": "caption", "text": record.text}
            if record.image is not None:
                fields["image"] = save("", record.image)
        case Example():
            entities = [
                {
                    "mention": entity.mention,
                    "start": entity.start,
                    "end": entity.end,
                    "crop": save(f"{i}.crop", entity.crop),
                    "cutout": save(f"{i}.cutout", entity.cutout),
                    **({"mask": save_mask(f"{i}.mask.png", entity.mask)} if entity.mask else {}),
                }
                for i, entity in enumerate(record.entities)
            ]
            fields = {"kind": "example", "caption": record.caption, "entities": entities}
            fields["image"] = save("", record.image)
        case Edit():
            fields = {
                "kind": "edit",
                "caption": record.caption,
                "instruction": record.instruction,
                "before": [
                    {"image": save(f"before.{i}", image)} for i, image in enumerate(record.before)
                ],
                "after": save("after", record.after),
            }
            if record.after_caption is not None:
                fields["after_caption"] = record.after_caption
    if record.provenance:
        fields["provenance"] = dict(record.provenance)
    fields["format_version"] = FORMAT_VERSION
    files[JSON] = json.dumps(fields, ensure_ascii=False).encode()
    return files


def check_fits(record: Record) -> None:
    """Pass a record that `from_bytes` will take back once it is written.

    Raises:
        DataError: If a text is too long or no valid Unicode, or all of them are too much.
    """
    parts = _parts(record)
    if len(parts) > MAX_PARTS:
        raise DataError(
            f"record {record.key} has {len(parts)} parts, at most {MAX_PARTS} are read; split it",
            reason="too many parts",
        )
    size = 256 * len(parts) + 512  # more than names, numbers and brackets take
    for text in [*parts, *record.provenance, *record.provenance.values()]:
        if not isinstance(text, str):
            continue
        if len(text) > MAX_TEXT_LENGTH:
            raise DataError(
                f"record {record.key}: a text has {len(text)} characters, at most"
                f" {MAX_TEXT_LENGTH} are read; split it",
                reason="text too long",
            )
        try:
            size += len(json.dumps(text, ensure_ascii=False).encode())
        except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell
            raise DataError(
                f"record {record.key}: {text[:40]!a} is no valid Unicode; save it as UTF-8",
                reason="bad text",
            ) from error
    if size > MAX_JSON_BYTES:
        raise DataError(
            f"record {record.key}: its texts take {size} bytes, at most {MAX_JSON_BYTES} are read;"
            " split it",
            reason="json too large",
        )


def _parts(record: Record) -> Sequence[object]:
    match record:
        case Document():
            return record.parts
        case Caption():
            return [record.text]
        case Example():
            return [record.caption, *(entity.mention for entity in record.entities)]
        case Edit():
            return [record.caption, record.instruction, record.after_caption, *record.before]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def from_bytes(key: str, files: Mapping[str, bytes]) -> Record:
    """Return the record that a sample's files hold.

    Args:
        key: The sample's name in its shard; errors and logs call the record so.
        files: File contents by extension, `json` among them.

    Raises:
        DataError: If anything about it is not as it should be; `reason` says what, in few words.
    """
    fields = _Fields(key, _read_json(key, files), files)
    match fields.text("kind"):
        case "document":
            parts = [part.part() for part in fields.items("parts")]
            return Document(key=key, parts=tuple(parts), provenance=fields.provenance())
        case "caption":
            image = fields.image("image") if fields.has("image") else None
            text, provenance = fields.text("text"), fields.provenance()
            return Caption(key=key, text=text, image=image, provenance=provenance)
        case "example":
            return Example(
                key=key,
                caption=fields.text("caption"),
                entities=tuple(entity.entity() for entity in fields.items("entities")),
                image=fields.image("image"),
                provenance=fields.provenance(),
            )
        case "edit":
            return Edit(
                key=key,
                caption=fields.text("caption"),
                before=tuple(part.image("image") for part in fields.items("before")),
                instruction=fields.text("instruction"),
                after=fields.image("after"),
                after_caption=fields.text("after_caption") if fields.has("after_caption") else None,
                provenance=fields.provenance(),
            )
        case other:
            raise DataError(
                f"record {key}: kind {other[:40]!r} is none of document, caption, example, edit",
                reason="unknown kind",
            )


def _read_json(key: str, files: Mapping[str, bytes]) -> Mapping[str, object]:
    data = files.get(JSON)
    if data is None:
        names = ", ".join(sorted(files)[:4]) or "nothing"
        raise DataError(f"record {key} has no json beside {names}", reason="no json")
    if len(data) > MAX_JSON_BYTES:
        raise DataError(
            f"record {key}: its json has {len(data)} bytes, at most {MAX_JSON_BYTES} are read",
            reason="json too large",
        )
    try:
        fields: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"record {key}: its json is damaged: {error}", reason="bad json") from error
    if not _is_object(fields):
        raise DataError(f"record {key}: its json is not an object", reason="bad json")
    version = fields.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise DataError(
            f"record {key} has format version {str(version)[:40]}, this program reads"
            f" {FORMAT_VERSION}",
            reason="another format version",
        )
    return fields


def _is_object(value: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(value, dict)


@dataclass(frozen=True)
class _Fields:
    """One JSON object of a record, read field by field, each with its own complaint."""

    key: str
    values: Mapping[str, object]
    files: Mapping[str, bytes]
    path: FieldPath = ()

    def has(self, name: str) -> bool:
        return name in self.values

    def wrong(self, name: str, expected: str) -> DataError:
        found = repr(self.values.get(name, "nothing"))[:60]
        # What is in a provenance is called as strangers like, and a reason is a fixed phrase.
        known = self.path[0] if self.path == ("provenance",) else name
        return FieldError(
            f"record {self.key}: field {self.at(name)[:80]!r} is {found}, expected {expected}",
            reason=f"bad field {known}",
            path=(*self.path, name),
        )

    def at(self, name: str) -> str:
        """Return where a field is, as `entities[1].start`."""
        said = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path]
        return f"{''.join(said)}.{name}"[1:]

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str) or len(value) > MAX_TEXT_LENGTH:
            raise self.wrong(name, f"a text of at most {MAX_TEXT_LENGTH} characters")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell
            raise self.wrong(name, "text that is valid Unicode") from error
        return value

    def number(self, name: str) -> int:
        value = self.values.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(name, "a whole number")
        return value

    def items(self, name: str) -> "Sequence[_Fields]":
        value = self.values.get(name)
        if not isinstance(value, list):
            raise self.wrong(name, "a list")
        items = cast("list[object]", value)
        if len(items) > MAX_PARTS:
            raise self.wrong(name, f"a list of at most {MAX_PARTS}")
        parts: list[_Fields] = []
        for index, item in enumerate(items):
            if not _is_object(item):
                raise self.wrong(name, "a list of objects")
            path = (*self.path, name, index)
            parts.append(dataclasses.replace(self, values=item, path=path))
        return parts

    def provenance(self) -> Mapping[str, str]:
        value = self.values.get("provenance", {})
        if not _is_object(value) or len(value) > MAX_PARTS:
            raise self.wrong("provenance", "an object of texts")
        said = dataclasses.replace(self, values=value, path=("provenance",))
        return {name: said.text(name) for name in value}

    def image(self, name: str, read: Callable[[bytes], Image.Image] = open_image) -> Image.Image:
        file = self.text(name)
        if file not in self.files:
            raise FieldError(
                f"record {self.key}: picture {file[:40]!r} of field {self.at(name)!r} is not in"
                " the sample",
                reason="missing picture",
                path=(*self.path, name),
            )
        try:
            return read(self.files[file])
        except PromptError as error:
            raise FieldError(
                f"record {self.key}: {file[:40]!r}: {error}",
                reason="unreadable picture",
                path=(*self.path, name),
            ) from error

    def part(self) -> str | Image.Image:
        return self.image("image") if self.has("image") else self.text("text")

    def entity(self) -> Entity:
        return Entity(
            mention=self.text("mention"),
            start=self.number("start"),
            end=self.number("end"),
            crop=self.image("crop", open_later),
            cutout=self.image("cutout", open_later),
            mask=self.image("mask", open_later) if self.has("mask") else None,
        )
