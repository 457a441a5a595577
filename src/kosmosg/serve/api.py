"""The app: paths, and what each answers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as PlainHTTPException

from kosmosg import conditions
from kosmosg.serve import intake, schema
from kosmosg.serve.answers import RETRY_AFTER_S, error_body, invalid, refusal
from kosmosg.serve.forms import edit_body, read_form
from kosmosg.serve.gate import Gate
from kosmosg.serve.keys import Keys
from kosmosg.serve.limits import Rate, Room
from kosmosg.serve.listening import CLIENT_LEFT
from kosmosg.serve.metrics import Metrics
from kosmosg.serve.schema import (
    ConditionRequest,
    ErrorAnswer,
    GenerationRequest,
    ModelsOut,
    PicturesOut,
)
from kosmosg.serve.service import Service
from kosmosg.serve.tasks import Encoded
from kosmosg.serve.worker import Worker

_STATIC = Path(str(files("kosmosg"))) / "serve" / "static"
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
    only_loopback: bool = False,
) -> FastAPI:
    """Return the app over a worker, which it starts, and drains when the app ends.

    Args:
        worker: Not started yet.
        metrics: The worker's.
        keys: Who may ask; None: everybody.
        only_loopback: Whether only names of this machine itself are taken.
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
        only_loopback=only_loopback,
        metrics=metrics,
    )
    app.add_exception_handler(PlainHTTPException, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    _add_health(app, worker, metrics)
    _add_api(app, Service(worker, metrics))
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


def _add_api(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", tags=["pictures"])
    async def models() -> ModelsOut:
        """Name the model, and what may be asked of it."""
        device = service.device()
        entry = schema.ModelOut(
            id=service.name, created=service.began, kosmosg=intake.offer(device)
        )
        return ModelsOut(data=[entry])

    @app.post("/v1/images/generations", response_model=PicturesOut, tags=["pictures"])
    async def generations(said: GenerationRequest, request: Request) -> Any:  # noqa: ANN401 -- as above
        """Draw pictures from words and pictures."""
        device = service.device()
        return await service.pictures(
            request, said, lambda: intake.generation(said, device), device, "image_generation"
        )

    @app.post(
        "/v1/images/edits",
        response_model=PicturesOut,
        tags=["pictures"],
        openapi_extra={"requestBody": edit_body()},
    )
    async def edits(request: Request) -> Any:  # noqa: ANN401 -- as above
        """Draw pictures from words and uploaded pictures; with a mask, paint on the first."""
        device = service.device()
        said, given, mask = await read_form(request)
        return await service.pictures(
            request, said, lambda: intake.edit(said, given, mask, device), device, "image_edit"
        )

    @app.post(
        "/v1/conditions",
        response_class=Response,
        tags=["pictures"],
        responses={200: {"content": {"application/octet-stream": {}}}},
    )
    async def condition(said: ConditionRequest, request: Request) -> Response:
        """Return the U-Net's condition of a prompt, as the file that `kosmosg encode` writes."""
        device = service.device()
        task, listener = await service.begin(
            request, said, lambda: intake.condition(said, device), device
        )
        async with aclosing(listener.events(request, task)) as events:
            async for event in events:
                if isinstance(event, Encoded):
                    return Response(conditions.to_bytes(event.condition))
        return Response(status_code=CLIENT_LEFT)


async def _on_refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, PlainHTTPException)
    body: Any = error.detail
    if not isinstance(body, dict):  # the framework's own: no such path, another method
        code = "not_found" if error.status_code == 404 else "invalid_value"
        body = error_body(str(error.detail), status=error.status_code, code=code)
    return JSONResponse(body, error.status_code, headers=error.headers)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _on_refusal(request, invalid(error.errors()))
