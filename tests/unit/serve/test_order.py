from kosmosg.drawing import Drawing
from kosmosg.serve.order import FairQueue
from kosmosg.serve.tasks import Slot, Task


def slots(client: str, n: int, steps: int = 20) -> list[Slot]:
    arguments = {"width": 10, "height": 100, "num_inference_steps": steps}
    drawing = Drawing(prompt=["a"], seeds=list(range(n)), arguments=arguments)
    task = Task(client=client, drawing=drawing, lora=None, partial_images=0, tell=lambda _: None)
    return [Slot(task=task, index=index) for index in range(n)]


def served(queue: FairQueue, n: int) -> str:
    names = ""
    for _ in range(n):
        slot = queue.in_order()[0]
        queue.take(slot)
        names += slot.task.client
    return names


def test_many_requests_of_one_do_not_delay_the_first_of_another():
    queue = FairQueue(100)
    for _ in range(5):
        queue.add(slots("a", 2))
    assert served(queue, 2) == "aa"
    queue.add(slots("b", 3))
    assert served(queue, 6) == "bababa"


def test_turns_are_shared_by_work_and_not_by_number():
    queue = FairQueue(100)
    queue.add(slots("a", 4, steps=60))
    queue.add(slots("b", 6, steps=20))
    assert served(queue, 8) == "abbbabbb"


def test_nobody_saves_up_turns_while_away():
    queue = FairQueue(100)
    queue.add(slots("a", 8))
    queue.add(slots("b", 1))
    served(queue, 6)
    queue.add(slots("b", 3))  # b has had one, a has had five
    assert served(queue, 4) == "baba"


def test_the_order_that_is_foretold_is_the_order_that_comes():
    queue = FairQueue(100)
    for client, n, steps in (("a", 3, 20), ("b", 2, 50), ("a", 2, 10), ("c", 4, 20)):
        queue.add(slots(client, n, steps))
    foretold = queue.in_order()
    came = []
    while len(queue):
        came.append(queue.in_order()[0])
        queue.take(came[-1])
    assert came == foretold


def test_a_task_is_taken_whole_or_not_at_all():
    queue = FairQueue(5)
    assert queue.add(slots("a", 3))
    assert not queue.add(slots("b", 3))
    assert len(queue) == 3
    assert queue.add(slots("b", 2))


def test_what_nobody_wants_any_more_leaves_and_makes_room():
    queue = FairQueue(4)
    first, second = slots("a", 2), slots("a", 2)
    queue.add(first)
    queue.add(second)
    queue.discard(first[0].task)
    assert queue.in_order() == second
    assert queue.add(slots("b", 2))


def test_it_forgets_clients():
    queue = FairQueue(10)
    for number in range(2000):
        queue.add(slots(f"client-{number}", 1))
        served(queue, 1)
    assert len(queue._had) <= 1001
    queue.forget()
    assert not queue._had
