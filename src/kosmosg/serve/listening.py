"""From the device thread to one client: events in order, a whole answer or a stream of them."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from time import time
from typing import Any

import anyio
from fastapi import Request
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
    """Hears on the event loop what the device thread tells.

    Args:
        timeout_s: From now to the task's end.
    """

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._timeout_s = timeout_s
        self._deadline = self._loop.time() + timeout_s

    def tell(self, event: Event) -> None:
        """Take an event, on any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(
        self, request: Request, task: Task, *, worker: Worker, metrics: Metrics
    ) -> AsyncIterator[Event | None]:
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
            worker.leave(task)
            metrics.count(f"kosmosg_{outcome}_total")

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


async def answer(
    request: Request,
    said: Settings,
    task: Task,
    listener: Listener,
    *,
    worker: Worker,
    metrics: Metrics,
    kind: str,
) -> Response:
    """Return all pictures in one answer."""
    del kind
    done: dict[int, PictureOut] = {}
    async for event in listener.events(request, task, worker=worker, metrics=metrics):
        if isinstance(event, Finished):
            done[event.index] = await _picture(said, task, event, worker)
            metrics.count("kosmosg_pictures_total")
    if len(done) < len(task.drawing.seeds):
        return Response(status_code=CLIENT_LEFT)
    whole = PicturesOut(
        created=int(time()),
        data=[done[index] for index in sorted(done)],
        output_format=said.output_format or "png",
        size=_size(task),
    )
    return JSONResponse(whole.model_dump())


async def stream(
    request: Request,
    said: Settings,
    task: Task,
    listener: Listener,
    *,
    worker: Worker,
    metrics: Metrics,
    kind: str,
) -> Response:
    """Return a stream of events: OpenAI's for pictures, ours for place and progress.

    Args:
        kind: What OpenAI's events are named after.
    """
    events = _lines(request, said, task, listener, worker=worker, metrics=metrics, kind=kind)
    return StreamingResponse(
        events, media_type="text/event-stream", headers={"x-accel-buffering": "no"}
    )


async def _lines(
    request: Request,
    said: Settings,
    task: Task,
    listener: Listener,
    *,
    worker: Worker,
    metrics: Metrics,
    kind: str,
) -> AsyncIterator[str]:
    from fastapi import HTTPException

    about = {
        "size": _size(task),
        "output_format": said.output_format or "png",
        "background": "opaque",
        "quality": "auto",
    }
    form = said.output_format or "png"
    try:
        async for event in listener.events(request, task, worker=worker, metrics=metrics):
            match event:
                case None:
                    yield ": still here\n\n"
                case Queued(position=position):
                    yield sse("kosmosg.queued", {"type": "kosmosg.queued", "position": position})
                case Progress(step=step, steps=steps):
                    said_so = {"type": "kosmosg.progress", "step": step, "steps": steps}
                    yield sse("kosmosg.progress", said_so)
                case Preview(index=index, number=number, image=image):
                    data = await anyio.to_thread.run_sync(partial(preview_file, image, form))
                    name = f"{kind}.partial_image"
                    yield sse(
                        name,
                        {
                            "type": name,
                            "b64_json": base64_of(data),
                            "partial_image_index": number,
                            "index": index,
                            "created_at": int(time()),
                            **about,
                        },
                    )
                case Finished():
                    picture = await _picture(said, task, event, worker)
                    metrics.count("kosmosg_pictures_total")
                    name = f"{kind}.completed"
                    yield sse(
                        name,
                        {
                            "type": name,
                            **picture.model_dump(),
                            "index": event.index,
                            "created_at": int(time()),
                            **about,
                        },
                    )
                case _:
                    pass
    except HTTPException as error:
        detail: Any = error.detail
        yield sse("error", detail)


async def _picture(said: Settings, task: Task, event: Finished, worker: Worker) -> PictureOut:
    device = worker.device
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
    )
    data = await anyio.to_thread.run_sync(make)
    return PictureOut(b64_json=base64_of(data), seed=task.drawing.seeds[event.index])


def _size(task: Task) -> str:
    return f"{task.arguments['width']}x{task.arguments['height']}"


async def _until_gone(request: Request) -> None:
    """Wait until the client has closed the connection; its body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
