"""From a request to a task in the queue, and to its answer."""

from collections.abc import Callable
from pathlib import Path
from time import time
from typing import Any

import anyio
from fastapi import HTTPException, Request

from kosmosg.drawing import Drawing
from kosmosg.errors import KosmosGError
from kosmosg.serve import intake, schema
from kosmosg.serve.answers import RETRY_AFTER_S, failure, refusal
from kosmosg.serve.device import Device
from kosmosg.serve.listening import Listener, answer, stream
from kosmosg.serve.metrics import Metrics
from kosmosg.serve.tasks import Task
from kosmosg.serve.worker import Worker

_OPENING = 2  # requests whose pictures are opened at once: one may have 64 million pixels


class Service:
    """What the paths share.

    Args:
        worker: Draws.
        metrics: The worker's.
    """

    def __init__(self, worker: Worker, metrics: Metrics) -> None:
        self.worker = worker
        self.metrics = metrics
        self.name = Path(worker.config.model).resolve().name
        self.began = int(time())
        self._opening: anyio.CapacityLimiter | None = None

    def device(self) -> Device:
        """Return the model, loaded.

        Raises:
            HTTPException: If the server takes no requests now.
        """
        if self.worker.state != "ready" or self.worker.device is None:
            raise self._unready()
        return self.worker.device

    async def begin(
        self,
        request: Request,
        said: schema.Settings | schema.ConditionRequest,
        make: Callable[[], Drawing],
        device: Device,
    ) -> tuple[Task, Listener]:
        """Return what was put into the queue, after opening its pictures and checking it all.

        Args:
            make: What `said` asks for; called in a thread.

        Raises:
            HTTPException: If it cannot be drawn, or there is no room.
        """
        if said.model not in (None, self.name):
            raise refusal(
                404,
                f"there is no model {said.model[:80]!r}; this server has {self.name}",
                code="model_not_found",
                param="model",
            )
        self._opening = self._opening or anyio.CapacityLimiter(_OPENING)
        settings = said if isinstance(said, schema.Settings) else None
        try:
            drawn = await anyio.to_thread.run_sync(make, limiter=self._opening)
            lora = None if settings is None else intake.lora_of(settings, device)
        except KosmosGError as error:
            self.metrics.count("kosmosg_refused_total", reason="request")
            raise failure(error) from None
        listener = Listener(self.worker, self.metrics)
        task = Task(
            client=request.state.client,
            drawing=drawn,
            lora=lora,
            partial_images=(settings.partial_images or 0) if settings else 0,
            tell=listener.tell,
        )
        request.state.log.update(_facts(task))
        refused = self.worker.submit(task)
        if refused is not None:
            self.metrics.count("kosmosg_refused_total", reason=refused)
            raise self._unready(full=refused == "full")
        self.metrics.count("kosmosg_accepted_total")
        return task, listener

    async def pictures(
        self,
        request: Request,
        said: schema.Settings,
        make: Callable[[], Drawing],
        device: Device,
        kind: str,
    ) -> Any:  # noqa: ANN401 -- a whole answer or a stream
        """Return the answer to a request for pictures.

        Args:
            kind: What OpenAI's events are named after.

        Raises:
            HTTPException: As `begin`, or if drawing fails.
        """
        task, listener = await self.begin(request, said, make, device)
        if said.stream:
            return stream(request, said, task, listener, kind=kind)
        return await answer(request, said, task, listener)

    def _unready(self, *, full: bool = False) -> HTTPException:
        reason = "the queue is full" if full else f"the server is {self.worker.state}"
        return refusal(
            503,
            f"{reason}; try again later",
            code="overloaded" if full else "not_ready",
            headers={"retry-after": str(RETRY_AFTER_S)},
        )


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
