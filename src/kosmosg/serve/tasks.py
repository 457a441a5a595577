"""What the API and the device thread hand one another: tasks, their pictures, what happens."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from kosmosg.conditions import Condition
from kosmosg.drawing import Drawing
from kosmosg.note import File


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What a server is started with.

    Args:
        model: `nano`, or a directory.
        device: As torch names it.
        loras: Files for the U-Net, by the names that requests say.
        controlnets: Directories, likewise.
        batch_bytes: What the U-Net's pass may take at most beside the weights; None: most of what
            is free on a GPU, 2 GiB on a CPU.
        max_batch: Pictures that are drawn at once, at most.
        max_waiting: Pictures that may wait, at most.
        max_steps: Of one picture.
        max_side: Of one picture, in pixels; None: twice the model's own.
        timeout_s: From a request's acceptance to its last picture.
        requests_per_minute: Of one client; None: any number.
        max_upload_bytes: Of one request's body.
        mark: Whether pictures carry an invisible mark, and words in their metadata, that say that
            they were generated.
        safety_checker: The directory of one; what it flags is black.
    """

    model: str | Path = "nano"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    device: str = "cpu"
    quantize: Literal["int8"] | None = None
    loras: dict[str, File] = field(default_factory=dict[str, File])
    controlnets: dict[str, File] = field(default_factory=dict[str, File])
    batch_bytes: int | None = None
    max_batch: int = 16
    max_waiting: int = 64
    max_steps: int = 250
    max_side: int | None = None
    timeout_s: float = 600.0
    requests_per_minute: int | None = None
    max_upload_bytes: int = 32 * 2**20
    mark: bool = False
    safety_checker: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Queued:
    """How many pictures are drawn before the task's first."""

    position: int


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a task is: steps of all its pictures together."""

    step: int
    steps: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Preview:
    """What a picture would be by now."""

    index: int
    number: int
    image: Image.Image


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """A picture that is done; black if the safety checker flagged it, where there is one."""

    index: int
    image: Image.Image
    flagged: bool | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """A condition that was asked for."""

    condition: Condition


@dataclass(frozen=True, kw_only=True, eq=False)
class Failed:
    """Why nothing more will come."""

    error: Exception


Event = Queued | Progress | Preview | Finished | Encoded | Failed


@dataclass(kw_only=True, eq=False)
class Task:
    """What one request asks of the device.

    Args:
        client: Whose it is, for fairness.
        drawing: What to draw; its seeds are one for each picture. With no seeds its condition is
            wanted alone.
        lora: Name and scale; pictures under another cannot be drawn in the same pass.
        partial_images: Previews of each picture.
        tell: Called on the device thread with what happens.
    """

    client: str
    drawing: Drawing
    lora: tuple[str, float] | None
    partial_images: int
    tell: Callable[[Event], None]
    condition: Condition | None = None
    position: int = -1
    steps_of: dict[int, int] = field(default_factory=dict[int, int])
    left: threading.Event = field(default_factory=threading.Event)

    @property
    def arguments(self) -> Any:  # noqa: ANN401 -- of drawing.draw, by name
        """What `drawing.draw` would be called with."""
        return self.drawing.arguments

    @property
    def on_canvas(self) -> bool:
        """Whether diffusers' own loops draw it, each picture alone."""
        return bool(self.arguments.get("init_image") or self.arguments.get("controlnets"))

    @property
    def cost(self) -> float:
        """How much work a picture of it is, in steps of a thousand pixels."""
        if not self.drawing.seeds:
            return 1.0
        size = self.arguments["width"] * self.arguments["height"]
        return self.arguments["num_inference_steps"] * size / 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Slot:
    """One picture of a task, or the condition that it wants alone."""

    task: Task
    index: int

    @property
    def seed(self) -> int:
        """Of its noise."""
        return self.task.drawing.seeds[self.index]
