"""What goes back: pictures as files and base64, errors in OpenAI's form, events of a stream."""

import base64
import io
import json
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import HTTPException
from PIL import Image

from kosmosg import drawing
from kosmosg.drawing import Drawing
from kosmosg.errors import KosmosGError
from kosmosg.note import png
from kosmosg.serve.device import Device
from kosmosg.serve.mark import XMP, marked

Format = Literal["png", "jpeg", "webp"]
_QUALITY = 95
RETRY_AFTER_S = 2


def file_of(
    device: Device,
    drawn: Drawing,
    index: int,
    image: Image.Image,
    *,
    form: Format,
    quality: int | None,
    lora: tuple[str, float] | None,
    flagged: bool | None,
) -> bytes:
    """Return a picture's file: PNG with the note that `kosmosg replay` reads, or another format."""
    one = Drawing(prompt=drawn.prompt, seeds=[drawn.seeds[index]], arguments=drawn.arguments)
    load = dict(device.load)
    if lora is not None:
        load |= {"loras": [device.config.loras[lora[0]]], "lora_scales": [lora[1]]}
    if device.config.mark:
        image = marked(image)
    if form == "png":
        judged = None if flagged is None else [flagged]
        note = drawing.note(
            *(device.pipe, one), model=device.config.model, load=load, index=0, flagged=judged
        )
        return png(image, note, xmp=XMP if device.config.mark else None)
    data = io.BytesIO()
    more = {"xmp": XMP.encode()} if device.config.mark else {}
    image.save(data, form.upper(), quality=_QUALITY if quality is None else quality, **more)
    return data.getvalue()


def preview_file(image: Image.Image, form: Format) -> bytes:
    """Return a preview's file."""
    data = io.BytesIO()
    image.save(data, form.upper())
    return data.getvalue()


def base64_of(data: bytes) -> str:
    """Return bytes as JSON carries them."""
    return base64.b64encode(data).decode()


def refusal(
    status: int,
    message: str,
    *,
    code: str | None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> HTTPException:
    """Return the exception that answers with an error in OpenAI's form."""
    detail = error_body(message, status=status, code=code, param=param)
    return HTTPException(status, detail, headers=dict(headers or {}))


def error_body(
    message: str, *, status: int, code: str | None, param: str | None = None
) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    if status == 429:
        kind = "rate_limit_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def failure(error: Exception) -> HTTPException:
    """Return the answer to an error that came while drawing: a request's own fault, or ours."""
    if isinstance(error, KosmosGError):
        return refusal(400, str(error), code="invalid_value")
    return refusal(500, "drawing failed; the server's log says why", code="internal_error")


def sse(event: str, data: Mapping[str, Any]) -> str:
    """Return one server-sent event."""
    return f"event: {event}\ndata: {json.dumps(data)}\n\n"


def invalid(errors: Any) -> HTTPException:  # noqa: ANN401 -- pydantic's list
    """Return the answer to a body that is not of the schema; it names the field."""
    first = errors[0]
    places = [str(place) for place in first["loc"] if place != "body"]
    where = ".".join(places)[:120] or None
    message = first["msg"]
    if first["type"] == "extra_forbidden":
        message = "unknown field; see /openapi.json for those there are"
    elif first["type"] == "jsoninvalid":
        message = "the body is not JSON"
    return refusal(
        400, f"{where}: {message}" if where else message, code="invalid_value", param=where
    )
