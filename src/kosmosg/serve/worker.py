"""The one device thread: what waits, what is drawn together, and what becomes of it."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

from kosmosg.errors import KosmosGError
from kosmosg.serve.batch import Running, advance, begin, finish, preview
from kosmosg.serve.device import Device
from kosmosg.serve.metrics import Metrics
from kosmosg.serve.order import FairQueue
from kosmosg.serve.tasks import (
    Encoded,
    Failed,
    Finished,
    Preview,
    Progress,
    Queued,
    ServeConfig,
    Slot,
    Task,
)

State = Literal["loading", "ready", "draining", "stopped", "failed"]
Refused = Literal["full", "draining", "not ready"]
_log = logging.getLogger("kosmosg.serve")


class _Left(Exception):
    """Nobody wants the picture any more."""


class Worker:
    """Owns the model and draws what is submitted, as long as somebody wants it.

    Pictures of one size and LoRA are drawn together, up to the memory there is for a pass; between
    two steps they join and leave. A batch that others wait for, with another size or LoRA, takes
    nobody more, so that their turn comes.

    Args:
        config: What the server was started with.
        metrics: Counts what happens.
        on_failure: Called on the device thread when the model could not be loaded, or the thread
            ends by a mistake of ours.
    """

    def __init__(
        self, config: ServeConfig, metrics: Metrics, on_failure: Callable[[], None] = lambda: None
    ) -> None:
        self.config = config
        self.state: State = "loading"
        self.failure: BaseException | None = None
        self.device: Device | None = None
        self._metrics = metrics
        self._on_failure = on_failure
        self._waiting = FairQueue(config.max_waiting)
        self._running: list[Running] = []
        self._busy = 0  # pictures between queue and end
        self._changed = threading.Condition()
        self._loaded = threading.Event()
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    def start(self) -> None:
        """Begin to load the model, and then to draw."""
        self._thread.start()

    def wait_until_loaded(self) -> None:
        """Wait until the model is loaded, or could not be."""
        self._loaded.wait()

    def submit(self, task: Task) -> Refused | None:
        """Put a task into the queue, or return why not."""
        slots = [Slot(task=task, index=index) for index in range(max(1, len(task.drawing.seeds)))]
        with self._changed:
            if self.state != "ready":
                return "draining" if self.state in ("draining", "stopped") else "not ready"
            if not self._waiting.add(slots):
                return "full"
            self._changed.notify()
            self._tell_positions()
        return None

    def leave(self, task: Task) -> None:
        """Give up a task: what waits of it goes now, what is drawn at the next step."""
        with self._changed:
            task.left.set()
            self._waiting.discard(task)
            self._changed.notify()

    def drain(self) -> None:
        """Take nothing more; what was accepted is finished, then the thread ends."""
        with self._changed:
            if self.state in ("loading", "ready"):
                self.state = "draining"
            self._changed.notify()

    def join(self, timeout_s: float | int | None = None) -> bool:
        """Wait for the thread's end; return whether it came."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def counts(self) -> tuple[int, int]:
        """Return how many pictures wait, and how many are drawn."""
        return len(self._waiting), self._busy

    def _run(self) -> None:
        try:
            device = Device(self.config)
            with self._changed:
                self.device = device
                if self.state == "loading":
                    self.state = "ready"
            self._loaded.set()
            while self._turn(device):
                pass
            self.state = "stopped"
        except BaseException as error:  # noqa: BLE001 -- the thread's last words
            self.failure, self.state = error, "failed"
            self._loaded.set()
            if not isinstance(error, KosmosGError):
                _log.exception("the device thread ended")
            for one in self._running:
                one.slot.task.tell(Failed(error=RuntimeError("the device thread ended")))
            for slot in self._waiting.in_order():
                slot.task.tell(Failed(error=RuntimeError("the device thread ended")))
            self._on_failure()

    def _turn(self, device: Device) -> bool:
        """Admit whom there is room for, then make one step; return whether to go on."""
        with self._changed:
            while not len(self._waiting) and not self._running:
                if self.state == "draining":
                    return False
                self._waiting.forget()
                self._changed.wait()
            joining = self._admit(device)
            self._busy = len(self._running) + len(joining)
        for slot in joining:
            self._guarded([slot.task], self._begin, device, slot)
        self._running = [one for one in self._running if not one.slot.task.left.is_set()]
        if self._running:
            tasks = [one.slot.task for one in self._running]
            self._guarded(tasks, self._step, device)
        self._busy = len(self._running)
        return True

    def _admit(self, device: Device) -> list[Slot]:
        """Take out of the queue who is drawn from now on; the lock is held."""
        order = self._waiting.in_order()
        if not order:
            return []
        group = [one.slot for one in self._running]
        joining = [slot for slot in order if not slot.task.drawing.seeds]  # a moment's work
        room = device.batch_bytes - sum(device.bytes_of(slot.task) for slot in group)
        for slot in order:
            if slot in joining:
                continue
            if not group:
                group.append(slot)
                joining.append(slot)
                room -= device.bytes_of(slot.task)
                continue
            if _kind(slot) != _kind(group[0]):
                if self._running:
                    break  # somebody else's turn comes when these are done
                continue
            needed = device.bytes_of(slot.task)
            if slot.task.on_canvas or len(group) >= self.config.max_batch or needed > room:
                break
            group.append(slot)
            joining.append(slot)
            room -= needed
        for slot in joining:
            self._waiting.take(slot)
        if joining:
            self._tell_positions()
        return joining

    def _begin(self, device: Device, slot: Slot) -> None:
        task = slot.task
        if task.left.is_set():
            return
        if task.drawing.seeds:  # a condition is read without the U-Net, and others may be drawing
            device.wear(task.lora)
        with self._metrics.timed("encode"):
            device.encode(task)
        if not task.drawing.seeds:
            assert task.condition is not None  # just encoded
            task.tell(Encoded(condition=task.condition))
        elif task.on_canvas:
            self._paint(device, slot)
        else:
            self._running.append(begin(device.pipe, slot))

    def _step(self, device: Device) -> None:
        with self._metrics.timed("step"):
            advance(device.pipe, self._running)
        self._metrics.count("kosmosg_batched_pictures_total", len(self._running))
        for one in list(self._running):
            task = one.slot.task
            arguments = task.arguments
            if one.is_done:
                self._running.remove(one)
                self._guarded([task], self._finish, device, one)
                continue
            if one.clean is not None:
                number = _preview_at(one.index, one.num_steps, task.partial_images)
                if number is not None:
                    image = preview(device.pipe, one.clean)
                    task.tell(Preview(index=one.slot.index, number=number, image=image))
            steps = arguments["num_inference_steps"]
            self._tell_step(one.slot, one.index * steps // one.num_steps)

    def _finish(self, device: Device, one: Running) -> None:
        with self._metrics.timed("decode"):
            output = finish(device.pipe, one)
        self._tell_step(one.slot, one.slot.task.arguments["num_inference_steps"])
        self._tell_finished(one.slot, output)

    def _paint(self, device: Device, slot: Slot) -> None:
        task = slot.task
        steps = task.arguments["num_inference_steps"]

        def each_step(pipe: Any, index: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401 -- diffusers' own
            if task.left.is_set():
                raise _Left
            done, of = index + 1, pipe.num_timesteps
            number = _preview_at(done, of, task.partial_images)
            if number is not None:
                image = preview(device.pipe, tensors["latents"])
                task.tell(Preview(index=slot.index, number=number, image=image))
            self._tell_step(slot, done * steps // of)
            return tensors

        self._tell_finished(slot, device.paint(slot, each_step))

    def _guarded(self, tasks: Sequence[Task], work: Callable[..., None], *given: Any) -> None:  # noqa: ANN401 -- of the work
        """Do what may fail for these tasks; the others go on."""
        try:
            work(*given)
        except _Left:
            pass
        except Exception as error:  # noqa: BLE001 -- whatever a library raises ends these tasks only
            if not isinstance(error, KosmosGError):
                _log.exception("drawing failed")
            for task in tasks:
                task.tell(Failed(error=error))
                self.leave(task)

    def _tell_step(self, slot: Slot, step: int) -> None:
        task = slot.task
        task.steps_of[slot.index] = step
        steps = task.arguments["num_inference_steps"] * len(task.drawing.seeds)
        task.tell(Progress(step=sum(task.steps_of.values()), steps=steps))

    def _tell_finished(self, slot: Slot, output: Any) -> None:  # noqa: ANN401 -- diffusers' output
        judged: list[bool] | None = output.nsfw_content_detected
        flagged = None if judged is None else judged[0]
        self._metrics.count("kosmosg_flagged_pictures_total", int(flagged or 0))
        slot.task.tell(Finished(index=slot.index, image=output.images[0], flagged=flagged))

    def _tell_positions(self) -> None:
        seen: set[int] = set()
        for position, slot in enumerate(self._waiting.in_order()):
            task = slot.task
            if id(task) in seen:
                continue
            seen.add(id(task))
            if task.condition is None and task.position != position:
                task.position = position
                task.tell(Queued(position=position))


def _kind(slot: Slot) -> tuple[Any, ...]:
    """Return what pictures must share to be drawn in one pass."""
    task = slot.task
    return task.arguments["width"], task.arguments["height"], task.lora, task.on_canvas


def _preview_at(done: int, steps: int, wanted: int) -> int | None:
    """Return the number of the preview that is due after so many steps."""
    for number in range(wanted):
        if done == (number + 1) * steps // (wanted + 1) and done > number * steps // (wanted + 1):
            return number
    return None
