"""From the device thread to one client: events in order, a whole answer or a stream of them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from time import time
from typing import Any

import anyio
from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from kosmosg.serve.answers import base64_of, failure, file_of, preview_file, refusal, sse
from kosmosg.serve.metrics import Metrics
from kosmosg.serve.schema import PictureOut, PicturesOut, Settings
from kosmosg.serve.tasks import (
    Encoded,
    Event,
    Failed,
    Finished,
    Preview,
    Progress,
    Queued,
    Task,
)
from kosmosg.serve.worker import Worker

_KEEP_ALIVE_S = 10.0
CLIENT_LEFT = 499  # as nginx logs it; nobody reads it


class Listener:
    """Hears on the event loop what the device thread tells of one task.

    Args:
        worker: Whose task; its time-out begins now.
        metrics: Counts how tasks end.
    """

    def __init__(self, worker: Worker, metrics: Metrics) -> None:
        self.worker = worker
        self.metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._timeout_s = worker.config.timeout_s
        self._deadline = self._loop.time() + self._timeout_s

    def tell(self, event: Event) -> None:
        """Take an event, on any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self, request: Request, task: Task) -> AsyncGenerator[Event | None]:
        """Give what happens until the task's end or the client's leaving; None: nothing for long.

        However it ends, the task is given up with it.

        Raises:
            HTTPException: If drawing failed or took too long.
        """
        missing = max(1, len(task.drawing.seeds))
        gone = asyncio.ensure_future(_until_gone(request))
        outcome = "left"
        try:
            while missing:
                event = await self._next(gone)
                if gone.done():
                    return
                if isinstance(event, Failed):
                    outcome = "failed"
                    raise failure(event.error)
                missing -= isinstance(event, Finished | Encoded)
                if not missing:
                    outcome = "answered"
                yield event
        except TimeoutError:
            outcome = "failed"
            raise refusal(
                504, f"not done within {self._timeout_s:g} s; ask for less", code="timeout"
            ) from None
        finally:
            gone.cancel()
            self.worker.leave(task)
            self.metrics.count(f"kosmosg_{outcome}_total")

    async def _next(self, gone: asyncio.Future[None]) -> Event | None:
        getting = asyncio.ensure_future(self._events.get())
        rest = self._deadline - self._loop.time()
        try:
            await asyncio.wait(
                {getting, gone},
                timeout=max(0.0, min(rest, _KEEP_ALIVE_S)),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if getting.done():
                return getting.result()
            if not gone.done() and self._loop.time() >= self._deadline:
                raise TimeoutError
            return None
        finally:
            getting.cancel()


async def answer(request: Request, said: Settings, task: Task, listener: Listener) -> Response:
    """Return all pictures in one answer.

    Raises:
        HTTPException: If drawing failed or took too long.
    """
    done: dict[int, PictureOut] = {}
    async with aclosing(listener.events(request, task)) as events:
        async for event in events:
            if isinstance(event, Finished):
                done[event.index] = await _picture(said, task, event, listener)
    if len(done) < len(task.drawing.seeds):
        return Response(status_code=CLIENT_LEFT)
    whole = PicturesOut(
        created=int(time()),
        data=[done[index] for index in sorted(done)],
        output_format=said.output_format or "png",
        size=_size(task),
    )
    return JSONResponse(whole.model_dump())


def stream(
    request: Request,
    said: Settings,
    task: Task,
    listener: Listener,
    *,
    kind: str,
) -> Response:
    """Return a stream of events: OpenAI's for pictures, ours for place and progress.

    Args:
        kind: What OpenAI's events are named after.
    """
    events = _lines(request, said, task, listener, kind=kind)
    return StreamingResponse(
        events, media_type="text/event-stream", headers={"x-accel-buffering": "no"}
    )


async def _lines(
    request: Request, said: Settings, task: Task, listener: Listener, *, kind: str
) -> AsyncIterator[str]:
    form = said.output_format or "png"
    about = {
        "size": _size(task),
        "output_format": form,
        "background": "opaque",
        "quality": "auto",
    }
    try:
        async with aclosing(listener.events(request, task)) as events:
            async for event in events:
                match event:
                    case None:
                        yield ": still here\n\n"
                    case Queued(position=position):
                        yield _sse("kosmosg.queued", position=position)
                    case Progress(step=step, steps=steps):
                        yield _sse("kosmosg.progress", step=step, steps=steps)
                    case Preview(index=index, number=number, image=image):
                        data = await anyio.to_thread.run_sync(partial(preview_file, image, form))
                        place = {"index": index, "partial_image_index": number}
                        yield _sse(
                            f"{kind}.partial_image", b64_json=base64_of(data), **place, **about
                        )
                    case Finished(index=index):
                        picture = await _picture(said, task, event, listener)
                        shown = picture.model_dump()
                        yield _sse(f"{kind}.completed", index=index, **shown, **about)
                    case _:
                        pass
    except HTTPException as error:
        detail: Any = error.detail
        yield sse("error", detail)


def _sse(kind: str, **data: object) -> str:
    return sse(kind, {"type": kind, "created_at": int(time()), **data})


async def _picture(said: Settings, task: Task, event: Finished, listener: Listener) -> PictureOut:
    device = listener.worker.device
    assert device is not None  # it has drawn
    make = partial(
        file_of,
        device,
        task.drawing,
        event.index,
        event.image,
        form=said.output_format or "png",
        quality=said.output_compression,
        lora=task.lora,
        flagged=event.flagged,
    )
    data = await anyio.to_thread.run_sync(make)
    listener.metrics.count("kosmosg_pictures_total")
    return PictureOut(
        b64_json=base64_of(data),
        seed=task.drawing.seeds[event.index],
        nsfw_content_detected=event.flagged,
    )


def _size(task: Task) -> str:
    return f"{task.arguments['width']}x{task.arguments['height']}"


async def _until_gone(request: Request) -> None:
    """Wait until the client has closed the connection; its body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
