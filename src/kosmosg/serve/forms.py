"""A form with pictures to a request of the schema."""

from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from kosmosg.serve import schema
from kosmosg.serve.answers import invalid, refusal
from kosmosg.serve.schema import EditRequest


async def read_form(request: Request) -> tuple[EditRequest, list[bytes], bytes | None]:
    """Return the fields, pictures and mask of a form.

    Raises:
        HTTPException: If it is none, or a field is wrong.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise refusal(400, "send a form (multipart/form-data)", code="invalid_value")
    most = schema.MAX_EDIT_PICTURES
    try:
        form = await request.form(max_files=most + 1, max_fields=64, max_part_size=2**20)
    except HTTPException as error:
        if isinstance(error.detail, dict):
            raise  # the gate's own: too large, too slow
        raise refusal(
            400, f"the form cannot be read: {error.detail}", code="invalid_value"
        ) from None
    files: dict[str, list[bytes]] = {"image": [], "mask": []}
    texts: list[tuple[str, str]] = []
    try:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                texts.append((name, value))
            elif name.removesuffix("[]") in files:
                files[name.removesuffix("[]")].append(await value.read())
            else:
                raise refusal(
                    400, f"{name[:80]!r} is a file; image[] and mask are", code="invalid_value"
                )
    finally:
        await form.close()
    if len(files["mask"]) > 1:
        raise refusal(400, "there are several masks; give one", code="invalid_value", param="mask")
    try:
        said = EditRequest.model_validate(schema.form_fields(texts))
    except ValidationError as error:
        raise invalid(error.errors()) from None
    except ValueError as error:
        raise refusal(400, str(error), code="invalid_value") from None
    return said, files["image"], next(iter(files["mask"]), None)


def edit_body() -> dict[str, Any]:
    """Return what OpenAPI says of the form of an edit."""
    fields = EditRequest.model_json_schema()
    file = {"type": "string", "format": "binary"}
    several = {"type": "array", "items": file, "maxItems": schema.MAX_EDIT_PICTURES}
    own = {"image": file, "image[]": several, "mask": file}
    whole = fields | {"properties": own | fields["properties"]}
    return {"required": True, "content": {"multipart/form-data": {"schema": whole}}}
