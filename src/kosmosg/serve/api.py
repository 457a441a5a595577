"""The app: paths, and what each answers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from time import time
from typing import Annotated, Any

import anyio
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as PlainHTTPException

from kosmosg import conditions
from kosmosg.errors import KosmosGError
from kosmosg.serve import intake, schema
from kosmosg.serve.answers import RETRY_AFTER_S, error_body, failure, refusal
from kosmosg.serve.device import Device
from kosmosg.serve.gate import Gate
from kosmosg.serve.keys import Keys
from kosmosg.serve.limits import Rate, Room
from kosmosg.serve.listening import Listener, answer, stream
from kosmosg.serve.metrics import Metrics
from kosmosg.serve.schema import (
    ConditionRequest,
    EditRequest,
    ErrorAnswer,
    GenerationRequest,
    ModelsOut,
    PicturesOut,
)
from kosmosg.serve.tasks import Encoded, Task
from kosmosg.serve.worker import Worker

_STATIC = Path(str(files("kosmosg"))) / "serve" / "static"
_OPENING = 2  # requests whose pictures are opened at once: one may have 64 million pixels
_BODIES = 8  # largest bodies in memory at once
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": meaning}
    for status, meaning in (
        (400, "The request cannot be done; the message says what is wrong."),
        (401, "The server wants an API key."),
        (403, "A page of another origin asked."),
        (404, "There is no such model."),
        (408, "The body did not come in time."),
        (413, "The body is too large."),
        (421, "The server was called by a name that is not its own."),
        (429, "The client asks too often."),
        (500, "Drawing failed."),
        (503, "The queue is full or the server not ready; see Retry-After."),
        (504, "The pictures were not done in time."),
        ("default", "Any other error."),
    )
}


def create_app(
    worker: Worker,
    *,
    metrics: Metrics,
    keys: Keys | None = None,
    hosts: tuple[str, ...] = (),
) -> FastAPI:
    """Return the app over a worker, which it starts, and drains when the app ends.

    Args:
        worker: Not started yet.
        metrics: The worker's.
        keys: Who may ask; None: everybody.
        hosts: By which names the server may be called; none: by any.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.drain()
        await asyncio.to_thread(worker.join, 60.0)

    app = FastAPI(
        title="kosmosg",
        summary="Pictures from prompts in which pictures are words.",
        lifespan=lifespan,
        docs_url=None,  # they load scripts from other hosts
        redoc_url=None,
        responses=_ERRORS,
    )
    config = worker.config
    app.add_middleware(
        Gate,
        keys=keys or Keys([]),
        rate=Rate(config.requests_per_minute),
        room=Room(_BODIES * config.max_upload_bytes),
        max_bytes=config.max_upload_bytes,
        hosts=hosts,
        metrics=metrics,
    )
    app.add_exception_handler(PlainHTTPException, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_mistake)
    _add_health(app, worker, metrics)
    _add_api(app, worker, metrics)
    if _STATIC.is_dir():
        app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    return app


def _add_health(app: FastAPI, worker: Worker, metrics: Metrics) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        if not (_STATIC / "index.html").is_file():
            raise refusal(404, "this installation has no page; the API is at /v1", code="not_found")
        return FileResponse(_STATIC / "index.html", headers={"cache-control": "no-cache"})

    @app.get("/healthz", response_class=PlainTextResponse, tags=["health"])
    async def healthz() -> PlainTextResponse:
        """Say that the process lives."""
        alive = worker.state != "failed"
        return PlainTextResponse("ok" if alive else "failed", 200 if alive else 503)

    @app.get("/readyz", response_class=PlainTextResponse, tags=["health"])
    async def readyz() -> PlainTextResponse:
        """Say whether requests are taken."""
        ready = worker.state == "ready"
        headers = {} if ready else {"retry-after": str(RETRY_AFTER_S)}
        return PlainTextResponse(worker.state, 200 if ready else 503, headers)

    @app.get("/metrics", response_class=PlainTextResponse, tags=["health"])
    async def measured() -> PlainTextResponse:
        """Say what was done, in Prometheus' text form."""
        waiting, running = worker.counts()
        gauges = {
            "kosmosg_waiting_pictures": waiting,
            "kosmosg_running_pictures": running,
            "kosmosg_ready": int(worker.state == "ready"),
        }
        return PlainTextResponse(metrics.text(gauges), media_type="text/plain; version=0.0.4")


def _add_api(app: FastAPI, worker: Worker, metrics: Metrics) -> None:
    opening = anyio.CapacityLimiter(_OPENING)
    name = Path(worker.config.model).resolve().name
    began = int(time())

    def ready() -> Device:
        if worker.state != "ready" or worker.device is None:
            raise _unready(worker)
        return worker.device

    Ready = Annotated[Device, Depends(ready)]

    async def begin(
        request: Request,
        said: Any,  # noqa: ANN401 -- any request of the schema
        make: Callable[[], Any],
        device: Device,
    ) -> tuple[Task, Listener]:
        """Open and check, then put into the queue."""
        if said.model not in (None, name):
            raise refusal(
                404,
                f"there is no model {said.model[:80]!r}; this server has {name}",
                code="model_not_found",
                param="model",
            )
        try:
            drawn = await anyio.to_thread.run_sync(make, limiter=opening)
            lora = intake.lora_of(said, device) if isinstance(said, schema.Settings) else None
        except KosmosGError as error:
            metrics.count("kosmosg_refused_total", reason="request")
            raise failure(error) from None
        listener = Listener(timeout_s=worker.config.timeout_s)
        task = Task(
            client=request.state.client,
            drawing=drawn,
            lora=lora,
            partial_images=(getattr(said, "partial_images", 0) or 0),
            tell=listener.tell,
        )
        request.state.log.update(_facts(task))
        refused = worker.submit(task)
        if refused is not None:
            metrics.count("kosmosg_refused_total", reason=refused)
            raise _unready(worker, full=refused == "full")
        metrics.count("kosmosg_accepted_total")
        return task, listener

    async def pictures(
        request: Request, said: schema.Settings, make: Callable[[], Any], device: Device, kind: str
    ) -> Any:  # noqa: ANN401 -- a whole answer or a stream
        task, listener = await begin(request, said, make, device)
        give = stream if said.stream else answer
        return await give(request, said, task, listener, worker=worker, metrics=metrics, kind=kind)

    @app.get("/v1/models", tags=["pictures"])
    async def models(device: Ready) -> ModelsOut:
        """Name the model, and what may be asked of it."""
        entry = schema.ModelOut(id=name, created=began, kosmosg=intake.offer(device))
        return ModelsOut(data=[entry])

    @app.post("/v1/images/generations", response_model=PicturesOut, tags=["pictures"])
    async def generations(said: GenerationRequest, request: Request, device: Ready) -> Any:  # noqa: ANN401 -- as above
        """Draw pictures from words and pictures."""
        return await pictures(
            request, said, lambda: intake.generation(said, device), device, "image_generation"
        )

    @app.post(
        "/v1/images/edits",
        response_model=PicturesOut,
        tags=["pictures"],
        openapi_extra={"requestBody": _edit_body()},
    )
    async def edits(request: Request, device: Ready) -> Any:  # noqa: ANN401 -- as above
        """Draw pictures from words and uploaded pictures; with a mask, paint on the first."""
        said, given, mask = await _read_form(request)
        return await pictures(
            request, said, lambda: intake.edit(said, given, mask, device), device, "image_edit"
        )

    @app.post(
        "/v1/conditions",
        response_class=Response,
        tags=["pictures"],
        responses={200: {"content": {"application/octet-stream": {}}}},
    )
    async def condition(said: ConditionRequest, request: Request, device: Ready) -> Response:
        """Return the U-Net's condition of a prompt, as the file that `kosmosg encode` writes."""
        task, listener = await begin(request, said, lambda: intake.condition(said, device), device)
        async for event in listener.events(request, task, worker=worker, metrics=metrics):
            if isinstance(event, Encoded):
                return Response(conditions.to_bytes(event.condition))
        return Response(status_code=499)  # nobody listens


def _facts(task: Task) -> dict[str, Any]:
    """Return what may be logged of a request: numbers, no words and no pictures."""
    prompt = task.drawing.prompt
    words = sum(len(part) for part in prompt if isinstance(part, str))
    pictures = sum(not isinstance(part, str) for part in prompt)
    known = ("width", "height", "num_inference_steps")
    return {
        "n": len(task.drawing.seeds),
        "pictures": pictures,
        "characters": words,
        **{name: task.arguments[name] for name in known if name in task.arguments},
    }


def _unready(worker: Worker, *, full: bool = False) -> HTTPException:
    reason = "the queue is full" if full else f"the server is {worker.state}"
    return refusal(
        503,
        f"{reason}; try again later",
        code="overloaded" if full else "not_ready",
        headers={"retry-after": str(RETRY_AFTER_S)},
    )


async def _read_form(request: Request) -> tuple[EditRequest, list[bytes], bytes | None]:
    """Return the fields, pictures and mask of a form.

    Raises:
        HTTPException: If it is none, or a field is wrong.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise refusal(400, "send a form (multipart/form-data)", code="invalid_value")
    most = schema.MAX_EDIT_PICTURES
    try:
        form = await request.form(max_files=most + 1, max_fields=64, max_part_size=2**20)
    except PlainHTTPException as error:
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
        raise _invalid(error.errors()) from None
    except ValueError as error:
        raise refusal(400, str(error), code="invalid_value") from None
    return said, files["image"], next(iter(files["mask"]), None)


def _edit_body() -> dict[str, Any]:
    """Return what OpenAPI says of the form of an edit."""
    fields = EditRequest.model_json_schema()
    file = {"type": "string", "format": "binary"}
    several = {"type": "array", "items": file, "maxItems": schema.MAX_EDIT_PICTURES}
    own = {"image": file, "image[]": several, "mask": file}
    whole = fields | {"properties": own | fields["properties"]}
    return {"required": True, "content": {"multipart/form-data": {"schema": whole}}}


async def _on_refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, PlainHTTPException)
    body: Any = error.detail
    if not isinstance(body, dict):  # the framework's own: no such path, another method
        code = "not_found" if error.status_code == 404 else "invalid_value"
        body = error_body(str(error.detail), status=error.status_code, code=code)
    return JSONResponse(body, error.status_code, headers=error.headers)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _on_refusal(request, _invalid(error.errors()))


async def _on_mistake(_: Request, error: Exception) -> Response:
    body = error_body("the server made a mistake", status=500, code="internal_error")
    return JSONResponse(body, 500)


def _invalid(errors: Any) -> HTTPException:  # noqa: ANN401 -- pydantic's list
    """Return the answer to a body that is not of the schema; it names the field."""
    first = errors[0]
    places = [str(place) for place in first["loc"] if place != "body"]
    where = ".".join(places)[:120] or None
    message = first["msg"]
    if first["type"] == "extra_forbidden":
        message = "unknown field; see /openapi.json for those there are"
    elif first["type"] == "json_invalid":
        message = "the body is not JSON"
    return refusal(
        400, f"{where}: {message}" if where else message, code="invalid_value", param=where
    )
