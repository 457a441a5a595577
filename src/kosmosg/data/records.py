"""Records: what training data is made of, and their bytes, which may come from strangers."""

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard, cast

from PIL import Image

from kosmosg.errors import DataError, PromptError
from kosmosg.images import open_image

FORMAT_VERSION = 1
MAX_JSON_BYTES = 1 << 20
MAX_TEXT_LENGTH = 100_000
MAX_PARTS = 1_000
JSON = "json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Document:
    """Stage 1: words and pictures in the order of the page.

    Raises:
        DataError: If it has no parts.
    """

    key: str
    parts: tuple[str | Image.Image, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise DataError(f"document {self.key}: it has no parts", reason="empty document")


@dataclass(frozen=True, kw_only=True, eq=False)
class Caption:
    """Stage 2, and the plain third of stage 3: a text and the picture it tells of.

    Stage 2 never looks at the picture, so it may be missing.
    """

    key: str
    text: str
    image: Image.Image | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Entity:
    """A thing that a caption mentions, cut out of a picture.

    `start` and `end` are the mention's place in the caption; `crop` shows the thing on its own
    background, `cutout` on white.
    """

    mention: str
    start: int
    end: int
    crop: Image.Image
    cutout: Image.Image


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """Stage 3: a picture, its caption, and the caption's entities from left to right.

    Raises:
        DataError: If a mention is not where it says, or two overlap or are out of order.
    """

    key: str
    caption: str
    entities: tuple[Entity, ...]
    image: Image.Image

    def __post_init__(self) -> None:
        position = 0
        for entity in self.entities:
            if not position <= entity.start < entity.end <= len(self.caption):
                raise DataError(
                    f"example {self.key}: mention {entity.mention[:40]!r} at {entity.start} to"
                    f" {entity.end} overlaps another or leaves the caption; order the entities",
                    reason="mentions overlap",
                )
            if self.caption[entity.start : entity.end] != entity.mention:
                raise DataError(
                    f"example {self.key}: the caption reads"
                    f" {self.caption[entity.start : entity.end][:40]!r} where the mention"
                    f" {entity.mention[:40]!r} should stand; correct start and end",
                    reason="mention not in caption",
                )
            position = entity.end


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """Stage 3, in InstructPix2Pix's form: a picture, what to change, and the changed picture.

    `caption` tells of the picture before, `after_caption` of the one after, where it is known.
    """

    key: str
    caption: str
    before: Image.Image
    instruction: str
    after: Image.Image
    after_caption: str | None = None


Record: TypeAlias = Document | Caption | Example | Edit


def to_bytes(record: Record) -> dict[str, bytes]:
    """Return the record as the files of a WebDataset sample: one `json` and the pictures as PNG.

    The key is not among them: it is the sample's name in its shard.
    """
    files: dict[str, bytes] = {}

    def png(name: str, image: Image.Image) -> str:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        files[name] = buffer.getvalue()
        return name

    match record:
        case Document():
            parts = [
                {"text": part} if isinstance(part, str) else {"image": png(f"{i}.png", part)}
                for i, part in enumerate(record.parts)
            ]
            fields: dict[str, Any] = {"kind": "document", "parts": parts}
        case Caption():
            fields = {"kind": "caption", "text": record.text}
            if record.image is not None:
                fields["image"] = png("png", record.image)
        case Example():
            entities = [
                {
                    "mention": entity.mention,
                    "start": entity.start,
                    "end": entity.end,
                    "crop": png(f"{i}.crop.png", entity.crop),
                    "cutout": png(f"{i}.cutout.png", entity.cutout),
                }
                for i, entity in enumerate(record.entities)
            ]
            fields = {"kind": "example", "caption": record.caption, "entities": entities}
            fields["image"] = png("png", record.image)
        case Edit():
            fields = {
                "kind": "edit",
                "caption": record.caption,
                "instruction": record.instruction,
                "before": png("before.png", record.before),
                "after": png("after.png", record.after),
            }
            if record.after_caption is not None:
                fields["after_caption"] = record.after_caption
    fields["format_version"] = FORMAT_VERSION
    files[JSON] = json.dumps(fields, ensure_ascii=False).encode()
    return files


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
            return Document(key=key, parts=tuple(parts))
        case "caption":
            image = fields.image("image") if fields.has("image") else None
            return Caption(key=key, text=fields.text("text"), image=image)
        case "example":
            return Example(
                key=key,
                caption=fields.text("caption"),
                entities=tuple(entity.entity() for entity in fields.items("entities")),
                image=fields.image("image"),
            )
        case "edit":
            return Edit(
                key=key,
                caption=fields.text("caption"),
                before=fields.image("before"),
                instruction=fields.text("instruction"),
                after=fields.image("after"),
                after_caption=fields.text("after_caption") if fields.has("after_caption") else None,
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

    def has(self, name: str) -> bool:
        return name in self.values

    def wrong(self, name: str, expected: str) -> DataError:
        found = repr(self.values.get(name, "nothing"))[:60]
        return DataError(
            f"record {self.key}: field {name!r} is {found}, expected {expected}",
            reason=f"bad field {name}",
        )

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
        for item in items:
            if not _is_object(item):
                raise self.wrong(name, "a list of objects")
            parts.append(dataclasses.replace(self, values=item))
        return parts

    def image(self, name: str) -> Image.Image:
        file = self.text(name)
        if file not in self.files:
            raise DataError(
                f"record {self.key}: picture {file[:40]!r} is not in the sample",
                reason="missing picture",
            )
        try:
            return open_image(self.files[file])
        except PromptError as error:
            raise DataError(
                f"record {self.key}: {file[:40]!r}: {error}", reason="unreadable picture"
            ) from error

    def part(self) -> str | Image.Image:
        return self.image("image") if self.has("image") else self.text("text")

    def entity(self) -> Entity:
        return Entity(
            mention=self.text("mention"),
            start=self.number("start"),
            end=self.number("end"),
            crop=self.image("crop"),
            cutout=self.image("cutout"),
        )
