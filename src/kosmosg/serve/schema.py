"""What a request may say: OpenAI's fields, and ours beside them.

Unknown fields are an error. OpenAI's fields that mean nothing here are taken where they ask for
nothing, because its clients send them: `quality`, `style`, `moderation`, `input_fidelity`, `user`.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kosmosg.controls import MAX_WEIGHT
from kosmosg.note import MAX_SEED, MAX_SIDE, MAX_STEPS

MAX_N = 10
MAX_EDIT_PICTURES = 16
MAX_CHARACTERS = 32_000  # of words; what OpenAI takes
MAX_PARTS = 64
DATA_URL = re.compile(r"data:[\w.+/-]{0,100};base64,")
_PLACEHOLDER = re.compile(r"<image (\d{1,2})>")
_SIZE = r"^(auto|\d{1,4}x\d{1,4})$"

Scale = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Words = Annotated[str, Field(max_length=MAX_CHARACTERS)]
DataURL = Annotated[str, Field(description="`data:image/png;base64,...`; nothing is ever fetched.")]


class TextPart(BaseModel):
    """Words of a prompt."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: Words


class ImageURL(BaseModel):
    """A picture inside the request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: DataURL
    detail: Literal["auto", "low", "high"] = Field("auto", description="Changes nothing.")


class ImagePart(BaseModel):
    """A picture of a prompt."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["image_url"]
    image_url: ImageURL
    weight: float = Field(1.0, ge=0, le=MAX_WEIGHT, allow_inf_nan=False)


class Control(BaseModel):
    """A picture that one of the server's ControlNets reads, as that was trained to read it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    image: DataURL


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(min_length=1, max_length=MAX_PARTS)]


class Settings(BaseModel):
    """What may be said of pictures to be made, beside the prompt; None is the model's own."""

    model: str | None = Field(None, description="The one that /v1/models names.")
    n: int | None = Field(1, ge=1, le=MAX_N)
    size: str | None = Field("auto", pattern=_SIZE, description="WIDTHxHEIGHT, or auto.")
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of jpeg and webp."
    )
    stream: bool | None = False
    partial_images: int | None = Field(0, ge=0, le=3)
    background: Literal["auto", "opaque"] | None = None
    quality: Literal["auto", "standard", "hd", "low", "medium", "high"] | None = None
    style: Literal["vivid", "natural"] | None = None
    moderation: Literal["auto", "low"] | None = None
    user: str | None = Field(None, max_length=512)
    seed: int | None = Field(None, ge=0, le=MAX_SEED - MAX_N, description="Picture i has seed + i.")
    guidance_scale: Scale | None = None
    image_guidance_scale: Scale | None = Field(
        None, description="Of the prompt's pictures; none: guidance_scale for all."
    )
    num_inference_steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    negative_prompt: Words | None = None
    scheduler: str | None = Field(None, max_length=80)
    lora: str | None = Field(None, max_length=80, description="One of the server's, by name.")
    lora_scale: float = Field(1.0, ge=-4, le=4, allow_inf_nan=False)


class GenerationRequest(Settings):
    """Of `POST /v1/images/generations`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Words | Parts = Field(description="Words, or words and pictures in order.")
    control: Control | None = None


class EditRequest(Settings):
    """Of `POST /v1/images/edits`: the fields of a form, its files apart."""

    model_config = ConfigDict(extra="forbid")

    prompt: Words = Field(description="`<image 1>` stands for the first picture, and so on.")
    input_fidelity: Literal["high", "low"] | None = None
    weights: (
        Annotated[
            list[Annotated[float, Field(ge=0, le=MAX_WEIGHT, allow_inf_nan=False)]],
            Field(max_length=MAX_EDIT_PICTURES, description="One for each picture, in order."),
        ]
        | None
    ) = None


class ConditionRequest(BaseModel):
    """Of `POST /v1/conditions`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    prompt: Words | Parts
    negative_prompt: Words | None = None


class PictureOut(BaseModel):
    """One picture, and what repeats it."""

    b64_json: str
    seed: int
    nsfw_content_detected: bool | None = Field(
        None, description="Whether the server's safety checker made it black; null: it has none."
    )


class PicturesOut(BaseModel):
    """The answer to a request for pictures, in OpenAI's form."""

    created: int
    data: list[PictureOut]
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    size: str


class ErrorOut(BaseModel):
    """What was wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorOut


class ModelOffer(BaseModel):
    """What the page needs to know to ask for what the server can do."""

    max_pictures: int
    sizes: list[str]
    default_size: str
    schedulers: list[str]
    default_scheduler: str
    default_steps: int
    default_guidance: float
    max_n: int
    max_steps: int
    max_side: int
    max_edit_pictures: int
    loras: list[str]
    controls: list[str]
    max_upload_bytes: int


class ModelOut(BaseModel):
    """A model in OpenAI's form, and what it offers."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "kosmosg"
    kosmosg: ModelOffer


class ModelsOut(BaseModel):
    """All models: one."""

    object: Literal["list"] = "list"
    data: list[ModelOut]


def placed(prompt: str, *, num_pictures: int, first: int) -> list[str | int]:
    """Return the words of an edit's prompt and the numbers of its pictures, from 0, in order.

    Args:
        prompt: `<image 1>` in it stands for the first picture.
        first: Without any such mark the pictures from this number on come first, in order.

    Raises:
        ValueError: If a mark names no picture, or one of these pictures has no mark.
    """
    pieces = _PLACEHOLDER.split(prompt)
    words, numbers = pieces[::2], [int(piece) - 1 for piece in pieces[1::2]]
    if not numbers:
        return [*range(first, num_pictures), *_said(words)]
    for number in numbers:
        if not 0 <= number < num_pictures:
            raise ValueError(
                f"the prompt names <image {number + 1}> and there are {num_pictures} pictures; "
                "they are counted from 1"
            )
    if unused := sorted(set(range(first, num_pictures)) - set(numbers)):
        raise ValueError(
            f"the prompt never names <image {unused[0] + 1}>; name every picture where it is "
            "read, or none: then they come before the words"
        )
    parts: list[str | int] = [*_said(words[:1])]
    for number, word in zip(numbers, words[1:], strict=True):
        parts += [number, *_said([word])]
    return parts


def size_of(size: str | None) -> tuple[int, int] | None:
    """Return width and height; None where the model's own are wanted.

    Raises:
        ValueError: If a side is out of range.
    """
    if size is None or size == "auto":
        return None
    width, height = (int(side) for side in size.split("x"))
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise ValueError(f"size is {size}; a side has 1 to {MAX_SIDE} pixels")
    return width, height


def form_fields(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a form's texts by name; those that end in [] as lists.

    Raises:
        ValueError: If another is there twice.
    """
    fields: dict[str, Any] = {}
    for name, value in items:
        if name.endswith("[]"):
            fields.setdefault(name[:-2], []).append(value)
        elif name in fields:
            raise ValueError(f"the field {name[:80]!r} is there twice; give it once")
        else:
            fields[name] = value
    return fields


def _said(words: Iterable[str]) -> list[str]:
    return [word for word in words if word.strip()]
