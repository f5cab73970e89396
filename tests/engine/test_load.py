"""The engine under load: the same bytes in any company, cancels and failures that touch nobody else, and a drain."""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from zturbo.engine.breath import breathe, may_rest, rested_s
from zturbo.engine.engine import Engine, LoadOptions
from zturbo.engine.lanes import Lanes, abreast, lane_count
from zturbo.engine.progress import Progress
from zturbo.engine.queue import ENDED, AdmissionQueue, Ticket
from zturbo.engine.worker import Worker, _Drawing
from zturbo.params import GenerationParams

PROMPTS = ("a cat", "a much longer prompt that takes two blocks of tokens", "a red balloon over the sea")
PATIENCE_S = 300
GIB = 2**30


def two_lanes(model: str, **options: Any) -> Engine:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        return Engine.load(model, LoadOptions(device="cpu", **options))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Engine:
    return two_lanes(str(tiny_folder), dtype="float32")


def request(**changes: object) -> GenerationParams:
    values = {"prompt": "a cat", "size": "512x512", "steps": 2, "seed": 7, "prompt_expansion": False}
    return GenerationParams.parse(values | changes)


class Client:
    """One request at the worker, and all it was told."""

    def __init__(self, params: GenerationParams) -> None:
        self.params = params
        self.events: list[Any] = []
        self.ended = threading.Event()
        self.ticket: Ticket | None = None

    def publish(self, event: Any) -> None:
        self.events.append(event)
        if isinstance(event, Exception) or event.stage == "done":
            self.ended.set()

    def stages(self) -> list[str]:
        """What was told from the begin on; consecutive ones once."""
        told = [event.stage for event in self.events if isinstance(event, Progress) and event.stage != "queued"]
        return [stage for index, stage in enumerate(told) if index == 0 or told[index - 1] != stage]


class Breaking:
    """An engine that fails in the second step of every request whose prompt is "break"."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.lanes, self.abreast = engine, engine.lanes, engine.abreast

    def draw(self, params: GenerationParams, cancelled: Callable[[], bool], previews: int) -> Iterator[Progress]:
        for progress in self.engine.draw(params, cancelled, previews):
            if params.prompt == "break" and progress.step == 2:
                raise RuntimeError("the device is gone")
            yield progress


class Opened(Worker):
    """A worker whose engine is there already: no warm-up, and nothing is drawn before `work`."""

    def __init__(self, engine: Any, limit: int = 64) -> None:
        super().__init__(AdmissionQueue(limit), lambda: engine)
        self.engine = engine
        self.queue.open(engine.lanes, engine.abreast)

    def work(self) -> None:
        """Work the queue off on all lanes."""
        self.queue.drain()
        lanes = [threading.Thread(target=self._lane) for _ in range(self.engine.lanes)]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join(PATIENCE_S)
            assert not lane.is_alive()


def admit(worker: Worker, client: Client, owner: str = "") -> Client:
    client.ticket = worker.queue.admit(client.params, client.publish, owner=owner)
    return client


def alone(engine: Engine, params: GenerationParams) -> list[bytes]:
    *_, last = engine.draw(params)
    return [picture.pixels.tobytes() for picture in last.pictures]


def mixed(chance: random.Random, count: int) -> list[GenerationParams]:
    return [
        request(
            prompt=chance.choice(PROMPTS),
            size=chance.choice(("512x512", "544x512")),
            steps=chance.randint(1, 2),
            num_images=chance.randint(1, 2),
            seed=chance.randint(1, 5),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(2))
def test_every_picture_is_what_its_request_draws_alone(engine: Engine, seed: int) -> None:
    chance = random.Random(seed)
    clients = [Client(params) for params in mixed(chance, 6)]
    worker = Opened(engine)
    for client in clients:
        admit(worker, client, chance.choice(("", "other")))
    worker.work()
    for client in clients:
        assert [picture.pixels.tobytes() for picture in client.events[-1].pictures] == alone(engine, client.params)
        images = client.params.num_images
        assert client.stages() == ["encode", *["denoise", "decode", "drawn"] * images, "done"]
    assert engine.lanes == 2


def test_nano_draws_the_same_in_company() -> None:
    engine = two_lanes("nano")
    sizes = ("512x512", "512x512", "544x512", "512x544")
    clients = [Client(request(size=size, seed=seed + 1)) for seed, size in enumerate(sizes)]
    clients += [Client(request(seed=9, steps=8, acceleration=level)) for level in ("high", "none", "high")]
    worker = Opened(engine)
    for client in clients:
        admit(worker, client)
    worker.work()
    for client in clients:
        assert [picture.pixels.tobytes() for picture in client.events[-1].pictures] == alone(engine, client.params)


@pytest.mark.parametrize("seed", range(2))
def test_cancels_and_failures_end_their_own_ticket_once_and_no_other(engine: Engine, seed: int) -> None:
    chance = random.Random(seed)
    worker = Opened(Breaking(engine))
    clients = [Client(request(prompt=chance.choice(["break", "a cat"]), steps=3, seed=n + 1)) for n in range(8)]
    leaving = chance.sample(clients, 3)
    for client in clients:
        admit(worker, client)
    for client in leaving:
        cancel_at(client, chance.randint(0, 3))
    worker.work()
    for client in clients:
        assert client.ticket is not None
        assert client.ticket.state in ENDED
        ends = [event for event in client.events if isinstance(event, Exception) or event.stage == "done"]
        assert len(ends) == (0 if client.ticket.state == "cancelled" else 1)
        if client not in leaving:
            assert client.ticket.state == ("failed" if client.params.prompt == "break" else "done")
        if client.ticket.state == "done":
            assert [picture.pixels.tobytes() for picture in ends[0].pictures] == alone(engine, client.params)
    assert worker._drawings == {}


def cancel_at(client: Client, step: int) -> None:
    """Cancel once a step is told; 0 cancels at once."""
    ticket, publish = client.ticket, client.publish
    assert ticket is not None
    if step == 0:
        ticket.cancel()

    def watching(event: Any) -> None:
        publish(event)
        if isinstance(event, Progress) and event.stage == "denoise" and event.step == step:
            ticket.cancel()

    ticket.publish = watching


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_cancelled_ticket_does_no_further_step(engine: Engine, after: int) -> None:
    worker = Opened(engine)
    leaving, staying = (admit(worker, Client(request(steps=4, seed=seed))) for seed in (1, 2))
    cancel_at(leaving, after)
    worker.work()
    assert leaving.ticket is not None
    assert leaving.ticket.state == "cancelled"
    assert max(event.step for event in leaving.events) == after
    assert staying.events[-1].stage == "done"


def test_a_preview_is_a_turn_of_its_own(engine: Engine) -> None:
    """Between a step and its preview another request may have its turn."""
    steps = [(p.step, p.preview is not None) for p in engine.draw(request(steps=3), previews=1) if p.stage == "denoise"]
    assert steps == [(0, False), (1, False), (2, False), (2, True), (3, False)]


class Told:
    """An engine that says how long its stages took."""

    lanes = abreast = 1

    def draw(self, params: GenerationParams, cancelled: Any = lambda: False, previews: int = 0) -> Iterator[Progress]:
        seconds = {"encode": 9.0, "denoise": 4.0, "decode": 6.0, "total": 19.0}
        yield Progress("done", 0, 1, params.steps, params.steps, timings=seconds)


@pytest.mark.parametrize(("previews", "worth"), [(0, 6.0), (1, 3.0), (3, 1.5)])
def test_a_decoding_is_measured_against_steps_alone(previews: int, worth: float) -> None:
    """Neither the prompt's encoding nor what a level takes to be made are steps."""
    worker = Opened(Told())
    client = Client(request(steps=4))
    ticket = client.ticket = worker.queue.admit(client.params, client.publish, previews=previews)
    drawing = _Drawing(worker.engine, ticket)
    drawing.advance()
    assert drawing.decoding == worth


def test_what_a_decoding_is_worth_is_learnt(engine: Engine) -> None:
    worker = Opened(engine)
    clients = [admit(worker, Client(request(seed=seed + 1))) for seed in range(2)]
    first, second = (client.ticket for client in clients)
    assert first is not None
    assert second is not None
    pixels = 512 * 512
    assert first.cost == second.cost == pixels * (2 + 1)
    last = None
    while not (first.state == second.state == "done"):
        ticket = worker.queue.take(last)
        assert ticket is not None
        last = worker._turn(ticket)
    assert first.drawn == first.cost
    later = admit(worker, Client(request()))
    assert later.ticket is not None
    assert later.ticket.cost / pixels - 2 not in (0, 1)


# --- lanes ---------------------------------------------------------------------------------------------------------


def lanes_of(threads: int) -> Lanes:
    lanes = Lanes(2)
    lanes.threads = threads
    return lanes


def test_a_part_alone_has_all_threads_and_is_computed_once() -> None:
    lanes, seen = lanes_of(2), list[int]()

    def part() -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return torch.zeros(1)

    before = torch.get_num_threads()
    lanes.compute("a shape", part)
    torch.set_num_threads(before)
    assert seen == [2]


def test_between_two_parts_there_is_one_thread_and_then_as_many_as_before() -> None:
    lanes, before = lanes_of(2), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with lanes.between():
            assert torch.get_num_threads() == 1
            assert int(lanes.compute("a shape", lambda: torch.tensor(torch.get_num_threads()))) == 2
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_lane_that_rests_leaves_the_threads_to_those_at_work() -> None:
    lanes, before = lanes_of(4), torch.get_num_threads()
    lanes.abreast = 1
    seen = list[int]()

    def beside() -> torch.Tensor:
        seen.append(int(lanes.compute("a shape", lambda: torch.tensor(torch.get_num_threads()))))
        return torch.zeros(1)

    lanes.compute("another shape", beside)
    torch.set_num_threads(before)
    assert seen == [4]


def test_one_lane_on_a_cpu_has_all_threads_for_its_parts_and_one_between_them() -> None:
    lanes, before = Lanes(1, cpu=True), torch.get_num_threads()
    lanes.threads = 3
    try:
        with lanes.between():
            assert torch.get_num_threads() == 1
            assert int(lanes.compute("a shape", lambda: torch.tensor(torch.get_num_threads()))) == 3
    finally:
        torch.set_num_threads(before)


def test_breath_is_taken_where_somebody_wants_to_know_and_its_seconds_are_counted() -> None:
    calls, before = list[int](), rested_s()
    breathe()
    with may_rest(lambda: calls.append(1)):
        breathe()
    breathe()
    assert calls == [1]
    assert rested_s() > before


def test_a_small_request_is_drawn_in_the_midst_of_a_large_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """And neither picture notices; what the large one rested is not in its timings."""
    engine = two_lanes("nano", build=True)
    if engine.abreast == engine.lanes:
        pytest.skip("no native kernels here")
    large, small = Client(request(size="1024x1024", steps=1)), Client(request(steps=1))
    expected = [alone(engine, client.params) for client in (large, small)]
    worker, rested = Opened(engine), list[float]()
    rest = worker.queue.rest

    def one_comes_at_the_first_breath(ticket: Ticket) -> None:
        if ticket is large.ticket and not rested:
            admit(worker, small)
            while not small.events:
                time.sleep(0.001)
            start = time.perf_counter()
            rest(ticket)
            rested.append(time.perf_counter() - start)
            assert small.ended.is_set()

    monkeypatch.setattr(worker.queue, "rest", one_comes_at_the_first_breath)
    lanes = [threading.Thread(target=worker._lane) for _ in range(engine.lanes)]
    start = time.perf_counter()
    admit(worker, large)
    for lane in lanes:
        lane.start()
    assert large.ended.wait(PATIENCE_S)
    seconds = time.perf_counter() - start
    worker.queue.drain()
    for lane in lanes:
        lane.join(PATIENCE_S)
    for client, pictures in zip((large, small), expected, strict=True):
        assert [picture.pixels.tobytes() for picture in client.events[-1].pictures] == pictures
    assert large.events[-1].timings["total"] <= seconds - rested[0]


@pytest.mark.parametrize(("exact", "later"), [(True, [1]), (False, [2])])
def test_a_share_of_the_threads_is_proven_once_for_each_shape(
    exact: bool, later: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """The part that is computed next to this one sees two at work: it is tried on one thread and on both."""
    lanes, seen, before = lanes_of(2), list[int](), torch.get_num_threads()

    def part() -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return torch.tensor(0 if exact else torch.get_num_threads())

    def beside() -> torch.Tensor:
        with caplog.at_level(logging.INFO, "zturbo"):
            results.append(lanes.compute("a shape", part))
            results.append(lanes.compute("a shape", part))
        return torch.zeros(1)

    results: list[torch.Tensor] = []
    lanes.compute("another shape", beside)
    torch.set_num_threads(before)
    assert seen == [1, 2, *later]
    assert {int(result) for result in results} == {0 if exact else 2}  # what it is alone
    (line,) = [record.getMessage() for record in caplog.records]
    assert ("the same bytes" in line) is exact


@pytest.mark.parametrize(
    ("device", "threads", "free", "expected"),
    [("cpu", 2, 16, 2), ("cpu", 1, 16, 1), ("cpu", 64, 64, 4), ("cpu", 2, 9, 1), ("cuda", 8, 64, 1), ("mps", 8, 64, 1)],
)
def test_lanes_need_threads_and_memory(device: str, threads: int, free: int, expected: int) -> None:
    assert lane_count(device, threads, free * GIB, 5 * GIB) == expected


@pytest.mark.parametrize(
    ("lanes", "native", "expected"), [(2, True, 1), (4, True, 1), (1, True, 1), (1, False, 1), (4, False, 4)]
)
def test_native_kernels_give_one_picture_all_threads_and_leave_the_other_lanes_for_who_comes_meanwhile(
    lanes: int, native: bool, expected: int
) -> None:
    assert abreast(lanes, native) == expected
