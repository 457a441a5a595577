"""The device thread over a toy model: what is drawn together, who joins, who leaves."""

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kosmosg import drawing
from kosmosg.drawing import Drawing
from kosmosg.note import Picture
from kosmosg.samplers import NAMES
from kosmosg.serve.batch import advance, begin, finish
from kosmosg.serve.device import Device, Held
from kosmosg.serve.metrics import Metrics
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
from kosmosg.serve.worker import Worker
from toys.model import SIZE, toy_picture

CAT = Picture(path=Path("cat"), image=toy_picture(1), sha256="0" * 64)


def task_of(
    prompt: list[Any] | None = None,
    seeds: tuple[int, ...] = (1,),
    client: str = "a",
    partial: int = 0,
    lora: Any = None,
    **more: Any,
) -> tuple[Task, "queue.Queue[Any]"]:
    arguments = {
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "width": SIZE,
        "height": SIZE,
        "negative_prompt": None,
        "scheduler": None,
    } | more
    events: queue.Queue[Any] = queue.Queue()
    drawn = Drawing(prompt=prompt or ["a red cat"], seeds=list(seeds), arguments=arguments)
    task = Task(client=client, drawing=drawn, lora=lora, partial_images=partial, tell=events.put)
    return task, events


@pytest.fixture(scope="module")
def device(toy_dir: Path) -> Device:
    return Device(ServeConfig(model=toy_dir))


@pytest.fixture
def worker(toy_dir: Path) -> Iterator[Worker]:
    made = Worker(ServeConfig(model=toy_dir, max_waiting=12, max_batch=4), Metrics())
    made.start()
    made.wait_until_loaded()
    assert made.state == "ready", made.failure
    yield made
    made.drain()
    assert made.join(60)


def all_of(events: "queue.Queue[Any]", pictures: int = 1) -> list[Any]:
    found = []
    while pictures:
        found.append(events.get(timeout=60))
        assert not isinstance(found[-1], Failed), found[-1].error
        pictures -= isinstance(found[-1], Finished | Encoded)
    return found


def pixels(image: Any) -> np.ndarray:
    return np.asarray(image, int)


def expected(device: Device, task: Task) -> list[Any]:
    drawn = task.drawing
    return [
        drawing.draw(device.pipe, drawn.prompt, seeds=[seed], **drawn.arguments).images[0]
        for seed in drawn.seeds
    ]


SETTINGS: list[dict[str, Any]] = [
    {},
    {"prompt": ["a", CAT, "in the snow"]},
    {"prompt": ["a", CAT], "picture_weights": [[0.5]]},
    {"prompt": ["a", CAT, "hat"], "picture_guidance_scale": 1.5},
    {"prompt": [CAT], "picture_guidance_scale": 1.5},
    {"guidance_scale": 1.0},
    {"negative_prompt": "snow", "num_inference_steps": 5},
    *({"scheduler": name} for name in NAMES),
]
# Not their text: a picture's holds its address, which differs in each worker of one run.
NAMED = ["-".join(settings) or "defaults" for settings in SETTINGS]


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMED)
def test_alone_a_picture_is_that_of_generate_to_the_bit(device: Device, settings: dict[str, Any]):
    task, _ = task_of(**settings)
    device.encode(task)
    one = begin(device.pipe, Slot(task=task, index=0))
    while not one.is_done:
        advance(device.pipe, [one])
    np.testing.assert_array_equal(
        pixels(finish(device.pipe, one).images[0]), pixels(expected(device, task)[0])
    )


def test_together_each_picture_is_what_it_is_alone(device: Device):
    tasks = [task_of(**settings)[0] for settings in SETTINGS]
    running = []
    for task in tasks:
        device.encode(task)
        running.append(begin(device.pipe, Slot(task=task, index=0)))
    all_of_them, began = list(running), 0
    while running:
        began += 1
        advance(device.pipe, running[: 2 + began])  # they join one after another
        running = [one for one in running if not one.is_done]
    for one, task in zip(all_of_them, tasks, strict=True):
        apart = np.abs(
            pixels(finish(device.pipe, one).images[0]) - pixels(expected(device, task)[0])
        )
        assert apart.max() <= 1, task.arguments


def test_a_task_is_told_of_its_place_its_progress_and_its_pictures(worker: Worker):
    task, events = task_of(seeds=(5, 6), partial=1)
    assert worker.submit(task) is None
    told = all_of(events, 2)
    assert isinstance(told[0], Queued)
    assert told[0].position == 0
    steps = [event.step for event in told if isinstance(event, Progress)]
    assert steps == sorted(steps)
    assert steps[-1] == 6
    assert {event.steps for event in told if isinstance(event, Progress)} == {6}
    previews = [event for event in told if isinstance(event, Preview)]
    assert sorted(event.index for event in previews) == [0, 1]
    done = {event.index: event.image for event in told if isinstance(event, Finished)}
    assert done[0].size == (SIZE, SIZE)
    assert np.any(pixels(done[0]) != pixels(done[1]))


def test_a_preview_of_the_last_steps_looks_like_the_picture(device: Device):
    from kosmosg.serve.batch import preview

    task, _ = task_of(partial=1, num_inference_steps=20, scheduler="euler")
    device.encode(task)
    one = begin(device.pipe, Slot(task=task, index=0))
    distances = []
    shown = []
    while not one.is_done:
        advance(device.pipe, [one])
        shown.append(preview(device.pipe, one.clean))
    final = pixels(finish(device.pipe, one).images[0])
    distances = [np.abs(pixels(image) - final).mean() for image in shown]
    assert distances[-1] < 2
    assert distances[-1] < distances[0]


def test_pictures_of_one_size_are_drawn_in_one_pass(worker: Worker):
    tasks = [task_of(seeds=(n,), num_inference_steps=30 + n) for n in range(4)]
    for task, _ in tasks:
        assert worker.submit(task) is None
    for _, events in tasks:
        all_of(events)
    text = worker._metrics.text({})
    passes = count(text, 'kosmosg_work_seconds_count{work="step"}')
    pictures = count(text, "kosmosg_batched_pictures_total")
    assert pictures == 30 + 31 + 32 + 33
    assert passes < 80  # 33 where all come at once; the first may have begun before


def test_who_leaves_is_drawn_no_further_and_who_waits_goes_on(worker: Worker):
    leaving, told = task_of(num_inference_steps=900)
    other, others = task_of(width=SIZE // 2)  # another size, so it has to wait
    assert worker.submit(leaving) is None
    while not isinstance(told.get(timeout=60), Progress):
        pass
    assert worker.submit(other) is None
    worker.leave(leaving)
    all_of(others)
    rest = [told.get() for _ in range(told.qsize())]
    assert not any(isinstance(event, Finished) for event in rest)
    assert sum(isinstance(event, Progress) for event in rest) < 300


def test_others_get_their_turn_where_one_size_never_ends(worker: Worker):
    long, told = task_of(num_inference_steps=100)
    worker.submit(long)
    while not isinstance(told.get(timeout=60), Progress):
        pass
    order: list[str] = []
    small, before = task_of(width=SIZE // 2, client="b")
    late, after = task_of(num_inference_steps=10)
    for task, name, events in ((small, "small", before), (late, "late", after)):
        task.tell = lambda event, name=name, events=events: (
            order.append(name) if isinstance(event, Progress) else None,
            events.put(event),
        )
        worker.submit(task)
    all_of(before)
    all_of(after)
    assert order == ["small"] * 3 + ["late"] * 10  # it did not join the long one


def test_a_full_queue_takes_nothing_and_a_draining_one_neither(worker: Worker):
    blocking, told = task_of(num_inference_steps=900)
    worker.submit(blocking)
    while not isinstance(told.get(timeout=60), Progress):
        pass
    waiting = [task_of(width=SIZE // 2, seeds=tuple(range(4))) for _ in range(3)]
    assert [worker.submit(task) for task, _ in waiting] == [None] * 3
    assert worker.submit(task_of()[0]) == "full"
    worker.leave(waiting[0][0])
    extra, extras = task_of()
    assert worker.submit(extra) is None
    worker.drain()
    assert worker.submit(task_of()[0]) == "draining"
    worker.leave(blocking)
    for _, events in waiting[1:]:
        all_of(events, 4)
    all_of(extras)
    assert worker.join(60)
    assert worker.state == "stopped"


def test_one_bad_picture_does_not_end_the_others(worker: Worker):
    bad, bads = task_of(guidance_scale=1e38)  # its values are no numbers
    good, goods = task_of()
    worker.submit(bad)
    worker.submit(good)
    while not isinstance(event := bads.get(timeout=60), Failed):
        pass
    assert "no numbers" in str(event.error)
    all_of(goods)


def test_a_condition_alone_comes_while_pictures_are_drawn(worker: Worker, device: Device):
    blocking, told = task_of(num_inference_steps=900)
    worker.submit(blocking)
    while not isinstance(told.get(timeout=60), Progress):
        pass
    events: queue.Queue[Any] = queue.Queue()
    drawn = Drawing(prompt=["a red cat"], seeds=[], arguments={"negative_prompt": "snow"})
    task = Task(client="b", drawing=drawn, lora=None, partial_images=0, tell=events.put)
    worker.submit(task)
    condition = all_of(events)[-1].condition
    own = drawing.encode(device.pipe, ["a red cat"], "snow")
    torch.testing.assert_close(condition.prompt_embeds, own.prompt_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        condition.negative_prompt_embeds, own.negative_prompt_embeds, rtol=0, atol=1e-6
    )
    worker.leave(blocking)


def test_a_batch_keeps_to_its_memory(toy_dir: Path):
    room = Device(ServeConfig(model=toy_dir)).row_bytes * 2 * 2  # two pictures with guidance
    made = Worker(ServeConfig(model=toy_dir, batch_bytes=room), Metrics())
    tasks = [task_of(seeds=(n,)) for n in range(6)]
    made.start()
    made.wait_until_loaded()
    for task, _ in tasks:
        made.submit(task)
    for _, events in tasks:
        all_of(events)
    made.drain()
    assert made.join(60)
    text = made._metrics.text({})
    assert count(text, "kosmosg_batched_pictures_total") == 18
    assert count(text, 'kosmosg_work_seconds_count{work="step"}') >= 9


def test_a_model_that_cannot_be_loaded_says_so(tmp_path: Path):
    said = threading.Event()
    made = Worker(ServeConfig(model=tmp_path), Metrics(), on_failure=said.set)
    made.start()
    assert said.wait(60)
    assert made.state == "failed"
    assert "no Kosmos-G model" in str(made.failure)
    assert made.submit(task_of()[0]) == "not ready"


def test_the_peak_of_memory_is_counted():
    with Held() as held:
        first = torch.zeros(1000, 250)  # a million bytes
        for _ in range(10):
            first = first + 1
        view = first.view(250, 1000)
        del first, view
    assert held.most == 2_000_000
    assert held.now == 0


def count(text: str, name: str) -> float:
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))
