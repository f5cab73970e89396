"""Admission: limits, order, ends, and honest times to come back."""

import gc
import random
import threading
import time
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zturbo.engine.breath import breathe
from zturbo.engine.progress import Picture, Progress
from zturbo.engine.queue import ENDED, AdmissionQueue, Ticket
from zturbo.engine.worker import Worker
from zturbo.errors import Busy, Cancelled, DeviceLost
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
    assert caught.value.retry_after_s
    queue.open()
    admit(queue)
    queue.drain()
    with pytest.raises(Busy, match="shutting down"):
        admit(queue)


def test_one_owner_leaves_places_for_the_others() -> None:
    queue = opened(8)

    def waiting(owner: str) -> int:
        """How many of an owner's tickets are taken before one is refused."""
        for count in range(9):
            try:
                queue.check(owner)
                queue.admit(request(), lambda _event: None, owner=owner)
            except Busy:
                return count
        raise AssertionError("nobody was refused")

    assert [waiting(owner) for owner in ("greedy", "second", "third", "fourth")] == [6, 1, 1, 0]
    with pytest.raises(Busy, match="8 requests are waiting"):
        queue.check("fourth")


def test_requests_that_wait_for_an_endpoint_count_as_waiting() -> None:
    queue = opened(8)
    ticket = admit(queue)
    assert queue.take() is ticket
    queue.end(ticket, "done", 1.0)  # now the rate is known
    queue.check("b", {"a": 7})
    with pytest.raises(Busy, match="8 requests are waiting") as caught:
        queue.check("b", {"a": 8})
    assert caught.value.retry_after_s
    with pytest.raises(Busy, match="6 requests of this key are waiting"):
        queue.check("a", {"a": 6})


def test_tickets_come_in_order_and_wait_within_the_limit() -> None:
    queue = opened(3)
    tickets = [admit(queue, seed=seed) for seed in (1, 2, 3)]
    assert [ticket.position for ticket in tickets] == [None, 1, 2]  # the first can begin
    with pytest.raises(Busy, match="3 requests are waiting"):
        admit(queue)
    assert queue.take() is tickets[0]
    assert tickets[0].state == "running"
    admit(queue)
    assert [ticket.position for ticket in tickets[1:]] == [0, 1]


def test_a_cancelled_ticket_frees_its_place_and_is_never_taken() -> None:
    queue = opened(2)
    first, second = admit(queue), admit(queue)
    first.cancel()
    third = admit(queue)
    assert first.state == "cancelled"
    assert queue.take() is second
    queue.end(second, "done", 1.0)
    assert queue.take() is third


def test_the_time_to_come_back_is_when_the_next_ticket_ends() -> None:
    queue = opened(1)
    small = admit(queue)
    queue.take()
    queue.end(small, "done", seconds=2.0)  # 512 * 512 * 2 pixel-steps in two seconds
    large = admit(queue, size="1024x1024", steps=8, num_images=2)
    assert queue.take() is large
    waiting = admit(queue, size="1024x1024", steps=8, num_images=4)
    with pytest.raises(Busy) as caught:
        admit(queue)
    assert caught.value.retry_after_s == 2 * large.cost // small.cost
    large.drawn = large.cost // 4
    assert queue.take(large) is large
    with pytest.raises(Busy) as caught:
        admit(queue)
    assert caught.value.retry_after_s == 2 * large.cost * 3 // 4 // small.cost
    waiting.cancel()


def test_who_comes_back_need_not_wait_for_what_was_cancelled() -> None:
    queue = opened(1)
    small = admit(queue)
    queue.take()
    queue.end(small, "done", seconds=2.0)
    large = admit(queue, size="1024x1024", steps=8, num_images=4)
    assert queue.take() is large
    admit(queue, size="1024x1024", steps=8, num_images=4)
    large.cancel()
    with pytest.raises(Busy) as caught:
        admit(queue)
    assert caught.value.retry_after_s == 1


def test_previews_count_as_the_decodings_they_are() -> None:
    queue = opened()
    plain = queue.admit(request(steps=8), lambda _event: None)
    shown = queue.admit(request(steps=8), lambda _event: None, previews=3)
    assert (plain.cost, shown.cost) == (512 * 512 * 9, 512 * 512 * 12), "a decoding is taken for a step at first"
    preview = Picture(np.zeros((1, 1, 3), np.uint8), 7).pixels
    for step, seen, steps in ((2, None, 2), (2, preview, 3), (3, None, 4), (4, preview, 6), (8, None, 11)):
        shown.reached(Progress("denoise", 0, 1, step, 8, seen))
        assert shown.drawn == 512 * 512 * steps
    shown.reached(Progress("drawn", 0, 1, 8, 8))
    assert shown.drawn == shown.cost


def test_a_ticket_that_waits_is_told_its_place_until_it_begins() -> None:
    queue = opened(8)
    told: dict[str, list[Progress]] = {"first": [], "large": [], "small": []}
    first = queue.admit(request(), told["first"].append)
    queue.take()
    queue.end(first, "done", 0.5)
    running = admit(queue, size="1024x1024", steps=4)
    assert queue.take() is running
    large = queue.admit(request(size="1024x1024", steps=8), told["large"].append)
    small = queue.admit(request(steps=1), told["small"].append)
    assert [(event.stage, event.position) for event in told["large"]] == [("queued", 0), ("queued", 1)]
    (place,) = told["small"]
    assert place.position == 0
    assert place.expected_s == 0.0  # it passes the running one at its next turn
    assert told["large"][0].expected_s == pytest.approx(running.cost / (first.cost / 0.5))
    assert queue.take(running) is small
    queue.end(small, "done", 0.1)
    assert [event.position for event in told["large"]] == [0, 1]  # `running` goes before it once more
    assert queue.take() is running
    assert [event.position for event in told["large"]] == [0, 1, 0]
    queue.end(running, "done", 1.0)
    assert queue.take() is large
    assert len(told["large"]) == 3
    assert told["first"] == []  # it began at once


def test_a_small_request_passes_large_ones_at_the_next_turn() -> None:
    queue = opened(8)
    large = [admit(queue, size="1024x1024", steps=8, num_images=4) for _ in range(4)]
    assert queue.take() is large[0]
    small = admit(queue, steps=1)
    large[0].drawn += 1024 * 1024
    assert queue.take(large[0]) is small
    queue.end(small, "done", 1.0)
    assert queue.take() is large[0]


def test_owners_take_turns() -> None:
    """One with many requests delays only itself."""
    queue = opened(8)
    many = [queue.admit(request(), lambda _event: None, owner="a") for _ in range(3)]
    assert queue.take() is many[0]
    one = queue.admit(request(), lambda _event: None, owner="b")
    many[0].drawn += many[0].cost // 2
    assert queue.take(many[0]) is one
    queue.end(one, "done", 1.0)
    assert queue.take() is many[0]


def test_two_abreast_wait_half_as_long() -> None:
    waits = []
    for abreast in (1, 2):
        queue = AdmissionQueue(8)
        queue.open(lanes=abreast, abreast=abreast)
        first = admit(queue)
        queue.take()
        queue.end(first, "done", 100.0)
        for _ in range(abreast):
            admit(queue, num_images=4)
            queue.take()
        told: list[Progress] = []
        queue.admit(request(num_images=4), told.append)
        waits.append((told[0].expected_s, told[0].position))
    (alone, place), (beside, other_place) = waits
    assert (place, other_place) == (0, 0)
    assert alone == beside == pytest.approx(400.0), "one of 400 s before it, or two at once"


def test_lanes_take_different_tickets() -> None:
    queue = AdmissionQueue(4)
    queue.open(lanes=2)
    first, second, third = (admit(queue, seed=seed) for seed in (1, 2, 3))
    assert queue.take() is first
    assert queue.take() is second
    assert third.position == 0
    assert queue.take(second) is second
    queue.end(first, "done", 1.0)
    assert queue.take() is third


def in_the_background(call: Callable[[], object]) -> tuple[threading.Thread, SimpleQueue[object]]:
    results = SimpleQueue[object]()
    thread = threading.Thread(target=lambda: results.put(call()))
    thread.start()
    return thread, results


def test_a_lane_rests_while_another_draws_what_goes_first() -> None:
    queue = AdmissionQueue(4)
    queue.open(lanes=2, abreast=1)
    large, small = admit(queue, size="1024x1024"), admit(queue)
    assert queue.take() is small
    resting, taken = in_the_background(queue.take)
    small.drawn = 512 * 512
    assert queue.take(small) is small
    assert taken.empty()
    queue.end(small, "done", 1.0)
    resting.join(10)
    assert taken.get_nowait() is large


def test_a_shorter_ticket_begins_at_once_and_the_longer_one_rests_in_the_midst_of_its_turn() -> None:
    queue, told = AdmissionQueue(4), list[Progress]()
    queue.open(lanes=2, abreast=1)
    large = admit(queue, size="1024x1024")
    assert queue.take() is large
    queue.rest(large)  # nobody is there to rest for
    small = queue.admit(request(), told.append)
    assert queue.take() is small
    assert told == []  # it never waited
    resting, _ = in_the_background(lambda: queue.rest(large))
    small.drawn = 512 * 512
    assert queue.take(small) is small
    assert resting.is_alive()
    equal = admit(queue)
    queue.end(small, "done", 1.0)
    resting.join(10)  # the lane of the small one does not take another before it
    assert not resting.is_alive()
    assert queue.take() is equal


def test_who_has_rested_long_enough_goes_on_before_the_next_short_one() -> None:
    """By the fair order, however many short ones come."""
    queue = AdmissionQueue(64)
    queue.open(lanes=2, abreast=1)
    large = admit(queue, size="768x512", steps=4)
    assert queue.take() is large
    resting, served = None, 0
    while served < 10 and (resting is None or resting.is_alive()):
        small = admit(queue, steps=4)
        lane, taken = in_the_background(queue.take)
        lane.join(10 if resting is None else 0.5)  # at first nobody rests for whom it would
        if lane.is_alive():  # it rests for the large one
            break
        assert taken.get_nowait() is small
        if resting is None:
            resting, _ = in_the_background(lambda: queue.rest(large))
        small.drawn = small.cost
        queue.end(small, "done", 1.0)
        served += 1
        time.sleep(0.05)
    assert resting is not None
    resting.join(10)
    assert not resting.is_alive()
    assert 1 <= served < 10
    queue.end(large, "done", 1.0)
    lane.join(10)


def large_and_small_at_work() -> tuple[AdmissionQueue, Ticket, Ticket]:
    """A queue that lets one go before the others, and has two at their turn."""
    queue = AdmissionQueue(4)
    queue.open(lanes=3, abreast=1)
    large = admit(queue, size="1024x1024")
    assert queue.take() is large
    small = admit(queue)
    assert queue.take() is small
    return queue, large, small


def test_a_cancelled_ticket_does_not_rest_before_its_end() -> None:
    queue, large, _ = large_and_small_at_work()
    large.cancel()
    with pytest.raises(Cancelled):
        queue.rest(large)
    queue.end(large, "cancelled", 1.0)


def test_a_ticket_that_is_cancelled_at_rest_is_woken_by_whoever_rests_for_it() -> None:
    """Cancelling wakes nobody; else both would wait for each other until the next request came."""
    queue, large, small = large_and_small_at_work()

    def rest() -> None:
        with pytest.raises(Cancelled):  # what is left of its turn would be computed for nobody
            queue.rest(large)

    at_rest, _ = in_the_background(rest)
    at_rest.join(0.1)
    assert at_rest.is_alive()
    large.cancel()
    other, _ = in_the_background(lambda: queue.rest(small))
    at_rest.join(10)
    assert not at_rest.is_alive()
    assert other.is_alive()  # it rests until the cancelled one has ended
    queue.end(large, "cancelled", 1.0)
    other.join(10)
    assert not other.is_alive()


def test_a_cancelled_ticket_that_began_has_the_next_turn_to_end_it() -> None:
    queue = opened()
    large = admit(queue, size="1024x1024")
    assert queue.take() is large
    small = admit(queue)
    assert queue.take(large) is small
    large.cancel()
    assert queue.take(small) is large
    queue.end(large, "cancelled", 1.0)
    assert queue.take() is small


def test_a_drained_queue_is_worked_off() -> None:
    queue = opened()
    ticket = admit(queue)
    queue.drain()
    assert queue.take() is ticket
    queue.end(ticket, "done", 1.0)
    assert queue.take() is None


def test_a_queue_that_is_drained_while_the_model_loads_stays_so() -> None:
    queue = AdmissionQueue(4)
    queue.drain()
    queue.open()
    with pytest.raises(Busy, match="shutting down"):
        admit(queue)
    assert queue.take() is None


def test_what_is_given_up_ends_and_is_told() -> None:
    queue, told = opened(4), list[object]()
    running = queue.admit(request(), told.append)
    assert queue.take() is running
    queue.admit(request(), told.append)
    queue.drain()
    queue.give_up()
    assert [type(one) for one in told if isinstance(one, Exception)] == [Busy, Busy]
    assert running.cancelled()
    queue.end(running, "cancelled", 1.0)
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

    lanes = abreast = 2

    def draw(self, params: GenerationParams, cancelled: Any = lambda: False, previews: int = 0) -> Any:
        if params.prompt == "break":
            raise RuntimeError("the device is gone")
        for step in range(1, params.steps + 1):
            if cancelled():
                raise Cancelled("cancelled")
            yield Progress("denoise", 0, 1, step, params.steps)
        yield Progress("done", 0, 1, params.steps, params.steps)


class Filling:
    """An engine that runs out of memory with much of it in hand."""

    lanes = abreast = 1

    def __init__(self) -> None:
        self.held: list[weakref.ref[threading.Event]] = []

    def draw(self, params: GenerationParams, cancelled: Any = lambda: False, previews: int = 0) -> Any:
        yield Progress("encode", 0, 1, 0, params.steps)
        if params.prompt == "too large":
            activations = threading.Event()  # stands for tensors: something that can be watched
            self.held.append(weakref.ref(activations))
            raise MemoryError(f"no room beside {activations}")
        yield Progress("done", 0, 1, params.steps, params.steps)


def test_a_lost_device_ends_the_process_and_all_that_wait_are_told() -> None:
    class Lost:
        lanes = abreast = 1

        def draw(self, params: GenerationParams, cancelled: Any = lambda: False, previews: int = 0) -> Any:
            yield Progress("encode", 0, 1, 0, params.steps)
            raise DeviceLost("the device failed: an illegal memory access was encountered")

    ended, first, second = list[bool](), list[Any](), list[Any]()

    def end(worked: bool) -> bool:
        ended.append(worked)
        return True

    worker = Worker(AdmissionQueue(8), Lost, end_process=end)
    worker.engine = Lost()
    worker.queue.open()
    worker.queue.admit(request(), first.append)
    worker.queue.admit(request(), second.append)
    worker._lane()
    assert ended == [True]
    assert {type(events[-1]) for events in (first, second)} <= {DeviceLost, Busy}
    assert any(isinstance(events[-1], DeviceLost) for events in (first, second))
    with pytest.raises(Busy, match="the device was lost"):
        worker.queue.check()


@pytest.mark.parametrize("ends", [True, False])
def test_a_device_lost_while_loading_is_tried_again_or_told_for_good(ends: bool) -> None:
    def load() -> Any:
        raise DeviceLost("the device failed: an illegal memory access was encountered")

    told = list[bool]()

    def end(worked: bool) -> bool:
        told.append(worked)
        return ends

    worker = Worker(AdmissionQueue(8), load, end_process=end)
    worker._run()
    assert told == [False]
    assert not worker.ready
    with pytest.raises(Busy) as refused:
        worker.queue.check()
    assert (refused.value.retry_after_s is not None) == ends


def test_who_has_used_its_share_is_told_when_its_own_request_is_done() -> None:
    queue = AdmissionQueue(8)
    queue.open()
    queue.admit(request(), lambda _event: None, owner="b")
    short = queue.take()
    assert short is not None
    queue.end(short, "done", 0.1 * short.cost, None)  # ten of cost a second
    queue.admit(request(), lambda _event: None, owner="b")
    assert queue.take() is not None
    longs = [queue.admit(request(num_images=4), lambda _event: None, owner="a") for _ in range(6)]
    with pytest.raises(Busy) as refused:
        queue.admit(request(), lambda _event: None, owner="a")
    assert refused.value.retry_after_s is not None
    running = queue._at_work[0]
    first = 0.1 * (running.left + longs[0].cost)
    assert first <= refused.value.retry_after_s <= first + 1
    assert first < 0.1 * (running.left + sum(ticket.cost for ticket in longs)), "of its own first, not of its last"


def test_what_a_failed_request_held_is_free_before_the_next() -> None:
    engine = Filling()
    worker, events = Worker(AdmissionQueue(8), lambda: engine), list[Any]()
    worker.engine = engine
    worker.queue.open()
    worker.queue.admit(request(prompt="too large"), events.append)
    worker.queue.drain()
    gc.disable()
    try:
        worker._lane()
        assert isinstance(events[-1], MemoryError)
        assert engine.held[0]() is None
    finally:
        gc.enable()


def test_the_worker_draws_warms_up_and_survives_a_failure() -> None:
    queue, done = AdmissionQueue(8), threading.Event()
    events: dict[str, list[Any]] = {"broken": [], "left": [], "last": []}
    worker = Worker(queue, Instant)
    worker.start()
    while queue.refusal is not None:
        assert worker.failure is None
        done.wait(0.001)

    def publish(event: Progress) -> None:
        if event.stage != "queued":
            events["last"].append(event.stage)
        if event.stage == "done":
            done.set()

    broken = queue.admit(request(prompt="break"), events["broken"].append)
    left = queue.admit(request(), events["left"].append)
    left.cancel()
    last = queue.admit(request(steps=4), publish)
    assert done.wait(10)
    queue.drain()
    assert worker.join(10)
    assert broken.state == "failed"
    assert left.state in ("cancelled", "done")  # it may have been drawn before it was cancelled
    assert last.state == "done"
    assert isinstance(events["broken"][-1], RuntimeError)
    assert events["last"] == ["denoise"] * 4 + ["done"]


def test_a_model_that_cannot_be_loaded_is_told() -> None:
    def load() -> Instant:
        raise OSError("no such folder")

    worker = Worker(queue := AdmissionQueue(8), load)
    worker.start()
    assert worker.join(10)
    assert isinstance(worker.failure, OSError)
    with pytest.raises(Busy, match="could not be loaded") as caught:
        admit(queue)
    assert caught.value.retry_after_s is None  # it would be refused again


class Breathing:
    """An engine whose every turn takes breath, as a decoding does."""

    lanes, abreast = 4, 2

    def draw(self, params: GenerationParams, cancelled: Any = lambda: False, previews: int = 0) -> Any:
        for image in range(params.num_images):
            for step in range(params.steps + 1):
                if cancelled():
                    raise Cancelled("the request was cancelled")
                for _ in range(3):
                    breathe()
                    time.sleep(0.0002)
                yield Progress("denoise", image, params.num_images, step, params.steps)
            yield Progress("drawn", image, params.num_images, params.steps, params.steps)
        yield Progress("done", params.num_images - 1, params.num_images, params.steps, params.steps)


@pytest.mark.parametrize("seed", range(3))
def test_lanes_that_rest_for_each_other_end_all_tickets(seed: int) -> None:
    chance, queue = random.Random(seed), AdmissionQueue(64)
    worker = Worker(queue, Breathing)
    worker.start()
    while queue.refusal is not None:
        assert worker.failure is None
        time.sleep(0.001)
    tickets = []
    for _ in range(40):
        size, images = chance.choice(("512x512", "768x768", "1024x1024")), chance.randint(1, 3)
        params = request(size=size, num_images=images, steps=chance.randint(1, 4))
        tickets.append(queue.admit(params, lambda _event: None, owner=chance.choice("abc")))
        if chance.random() < 0.2:
            chance.choice(tickets).cancel()
        time.sleep(chance.random() * 0.002)
    queue.drain()
    assert worker.join(60)
    assert {ticket.state for ticket in tickets} <= {"done", "cancelled"}
    assert any(ticket.state == "done" for ticket in tickets)
    assert len(queue) == 0
