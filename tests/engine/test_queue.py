"""Admission: limits, order, ends, and honest times to come back."""

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zturbo.engine.queue import ENDED, AdmissionQueue, Ticket
from zturbo.engine.worker import Worker
from zturbo.errors import Busy, Cancelled
from zturbo.params import GenerationParams


def request(**changes: object) -> GenerationParams:
    return GenerationParams.parse({"prompt": "a cat", "size": "512x512", "steps": 2, "seed": 7} | changes)


def opened(limit: int = 3) -> AdmissionQueue:
    queue = AdmissionQueue(limit)
    queue.open()
    return queue


def admit(queue: AdmissionQueue, **changes: object) -> Ticket:
    return queue.admit(request(**changes), lambda _event: None)


def test_a_closed_queue_refuses_with_the_reason() -> None:
    queue = AdmissionQueue(3)
    with pytest.raises(Busy, match="still loading") as caught:
        admit(queue)
    assert caught.value.retry_after_s > 0
    queue.open()
    admit(queue)
    queue.drain()
    with pytest.raises(Busy, match="shutting down"):
        admit(queue)


def test_tickets_come_in_order_and_wait_within_the_limit() -> None:
    queue = opened(3)
    tickets = [admit(queue, seed=seed) for seed in (1, 2, 3)]
    assert [queue.position(ticket) for ticket in tickets] == [0, 1, 2]
    with pytest.raises(Busy, match="3 requests are waiting"):
        admit(queue)
    assert queue.take() is tickets[0]
    assert tickets[0].state == "running"
    admit(queue)
    assert queue.position(tickets[2]) == 1


def test_a_cancelled_ticket_frees_its_place_and_is_never_taken() -> None:
    queue = opened(2)
    first, second = admit(queue), admit(queue)
    first.cancel()
    third = admit(queue)
    assert first.state == "cancelled"
    assert queue.take() is second
    queue.end(second, "done", 1.0)
    assert queue.take() is third


def test_the_time_to_come_back_is_the_cost_of_the_ticket_in_front() -> None:
    queue = opened(1)
    small = admit(queue)
    queue.take()
    queue.end(small, "done", seconds=2.0)  # 512 * 512 * 2 pixel-steps in two seconds
    large = admit(queue, size="1024x1024", steps=8, num_images=2)
    assert queue.take() is large
    admit(queue)
    with pytest.raises(Busy) as caught:
        admit(queue)
    assert caught.value.retry_after_s == 2 * large.cost // small.cost


def test_a_drained_queue_is_worked_off() -> None:
    queue = opened()
    ticket = admit(queue)
    queue.drain()
    assert queue.take() is ticket
    queue.end(ticket, "done", 1.0)
    assert queue.take() is None


@given(actions=st.lists(st.sampled_from(["admit", "take", "done", "failed", "cancelled", "leave"]), max_size=40))
def test_every_ticket_ends_once_and_none_is_lost(actions: list[str]) -> None:
    queue, running = opened(4), None
    tickets: list[Ticket] = []
    for action in actions:
        if action == "admit" and len([t for t in tickets if t.state == "waiting" and not t.cancelled()]) < 4:
            tickets.append(admit(queue))
        elif action == "take" and running is None and any(t.state == "waiting" and not t.cancelled() for t in tickets):
            running = queue.take()
        elif action in ("done", "failed", "cancelled") and running is not None:
            queue.end(running, action, 1.0)  # type: ignore[arg-type]
            running = None
        elif action == "leave" and tickets:
            tickets[-1].cancel()
    queue.drain()
    if running is not None:
        queue.end(running, "done", 1.0)
    while (ticket := queue.take()) is not None:
        queue.end(ticket, "done", 1.0)
    assert all(ticket.state in ENDED for ticket in tickets)
    assert len(queue) == 0


class Instant:
    """An engine that draws at once, or fails as told."""

    def draw(self, params: GenerationParams, cancelled: Any = lambda: False, previews: int = 0) -> Any:
        if params.prompt == "break":
            raise RuntimeError("the device is gone")
        for step in range(params.steps):
            if cancelled():
                raise Cancelled("cancelled")
            yield step


def test_the_worker_draws_warms_up_and_survives_a_failure() -> None:
    queue, done = AdmissionQueue(8), threading.Event()
    events: list[Any] = []
    worker = Worker(queue, Instant)
    worker.start()
    while queue.refusal is not None:
        done.wait(0.001)

    def publish(event: Any) -> None:
        events.append(event)
        if event == 3:
            done.set()

    broken = queue.admit(request(prompt="break"), publish)
    left = queue.admit(request(), publish)
    left.cancel()
    last = queue.admit(request(steps=4), publish)
    assert done.wait(10)
    queue.drain()
    assert worker.join(10)
    assert (broken.state, left.state, last.state) == ("failed", "cancelled", "done")
    assert isinstance(events[0], RuntimeError)
    assert events[1:] == [0, 1, 2, 3]


def test_a_model_that_cannot_be_loaded_is_told() -> None:
    def load() -> Instant:
        raise OSError("no such folder")

    worker = Worker(queue := AdmissionQueue(8), load)
    worker.start()
    assert worker.join(10)
    assert isinstance(worker.failure, OSError)
    with pytest.raises(Busy, match="could not be loaded: no such folder"):
        admit(queue)
