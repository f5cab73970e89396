"""The device's threads: they load the engine, warm it up, and draw the tickets by turns.

A turn is one stretch of `Engine.draw`: a prompt, a step, or a decoding. Between two turns anybody may come or go; in
the midst of a long one, where the engine takes breath, the lane rests while others go first.
"""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol

from zturbo.engine.breath import may_rest, rested_s
from zturbo.engine.progress import Progress
from zturbo.engine.queue import AdmissionQueue, Ticket
from zturbo.errors import Cancelled, DeviceLost, ZTurboError
from zturbo.params import GenerationParams
from zturbo.safety.checker import Safety

log = logging.getLogger("zturbo")

WARM_UP = {"prompt": "a red balloon", "size": "square", "seed": 1}


class Draws(Protocol):
    """What the worker needs of an engine."""

    @property
    def lanes(self) -> int:
        """How many requests are under way at a time, each on a thread of its own."""

    @property
    def abreast(self) -> int:
        """How many of them are computed at once."""

    def draw(
        self, params: GenerationParams, cancelled: Callable[[], bool] = ..., previews: int = ...
    ) -> Iterator[Progress]:
        """Yield progress after each stretch of work; the last one has the stage "done" and carries the pictures."""


class Worker:
    """Runs an engine on threads of its own, so that no door ever waits for the device.

    Args:
        queue: where tickets come from; it is opened after a warm-up picture.
        load: makes the engine, on the worker's thread.
        load_safety: makes what judges pictures, on the same thread and before: without it nothing is drawn.
        end_process: called where the device is lost, which only another process can use again, with whether anything
            had been drawn; it returns whether this process ends.
    """

    def __init__(
        self,
        queue: AdmissionQueue,
        load: Callable[[], Draws],
        load_safety: Callable[[], Safety] = Safety,
        end_process: Callable[[bool], bool] = lambda _worked: False,
    ) -> None:
        self.queue = queue
        self.engine: Any = None
        self.safety = Safety()
        self.failure: BaseException | None = None
        self._load, self._load_safety, self._end_process = load, load_safety, end_process
        self.ready = False
        """Whether the queue has been opened: until then nothing can have been admitted."""
        self._drawings: dict[Ticket, _Drawing] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to load; returns at once."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait until the drained queue is worked off; False if it was not within the time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.safety = self._load_safety()
            self.engine = self._load()
            for _progress in self.engine.draw(GenerationParams.parse(WARM_UP)):
                pass
            lanes, abreast = self.engine.lanes, self.engine.abreast
        except BaseException as error:  # told to whoever asks, by `failure` and by the queue's refusal
            self.failure = error
            reason = "the model or its safety checker could not be loaded"
            log.critical("%s: %s", reason, error, exc_info=not isinstance(error, ZTurboError))
            if isinstance(error, DeviceLost) and self._end_process(False):
                self.queue.drain("the device was lost while the model was loading; it is tried again")
                return
            self.queue.drain(reason, broken=True)  # without the error, whose paths are nobody's business but the log's
            return
        self.ready = True
        self.queue.open(lanes, abreast)
        others = [threading.Thread(target=self._lane, name="engine", daemon=True) for _ in range(lanes - 1)]
        for thread in others:
            thread.start()
        self._lane()
        for thread in others:
            thread.join()

    def _lane(self) -> None:
        """Turn after turn, each for the ticket that is first then, until the queue is drained."""
        ticket = None
        while (ticket := self.queue.take(ticket)) is not None:
            ticket = self._turn(ticket)

    def _turn(self, ticket: Ticket) -> Ticket | None:
        """One stretch of a ticket's drawing; returns the ticket unless that was its end."""
        if ticket not in self._drawings:
            self._drawings[ticket] = _Drawing(self.engine, ticket)
        try:
            with may_rest(lambda: self.queue.rest(ticket)):
                progress = self._drawings[ticket].advance()
        except Cancelled:
            self._end(ticket, "cancelled")
        except Exception as error:  # the request fails, the server goes on
            self._end(ticket, "failed")
            traceback.clear_frames(error.__traceback__)  # they hold activations, and the next request needs the memory
            ticket.publish(error)
            if isinstance(error, DeviceLost):
                self._abandon(error)
        else:
            if progress.stage != "done":
                ticket.publish(progress)
                return ticket
            self._end(ticket, "done")
            ticket.publish(progress)
        return None

    def _abandon(self, error: DeviceLost) -> None:
        """Nothing can be drawn here any more: tell whoever waits, and let the process end."""
        log.critical("%s; this process ends", error)
        self.queue.drain("the device was lost")
        self.queue.give_up("the device was lost")
        self._end_process(True)

    def _end(self, ticket: Ticket, state: Literal["done", "failed", "cancelled"]) -> None:
        drawing = self._drawings.pop(ticket)
        drawing.walk.close()
        self.queue.end(ticket, state, drawing.seconds, drawing.decoding)


class _Drawing:
    """A ticket's way through the engine, one stretch at a time."""

    def __init__(self, engine: Draws, ticket: Ticket) -> None:
        self.ticket = ticket
        self.walk: Any = engine.draw(ticket.params, ticket.cancelled, ticket.previews)
        self.seconds = 0.0
        """Of the engine's time so far."""
        self.decoding: float | None = None
        """How many steps took as long as a decoding; known when all is drawn."""

    def advance(self) -> Progress:
        """The next progress.

        Raises:
            Cancelled: the ticket was cancelled.
        """
        if self.ticket.cancelled():
            raise Cancelled("the request was cancelled")
        start = time.perf_counter() - rested_s()
        try:
            progress: Progress = next(self.walk)
        finally:
            self.seconds += time.perf_counter() - rested_s() - start
        self.ticket.reached(progress)
        if progress.stage == "done":
            self.decoding = self._worth(progress.timings)
        return progress

    def _worth(self, seconds: Mapping[str, float]) -> float | None:
        """A decoding in steps, by the engine's seconds of both; None where it tells none."""
        if not seconds.get("denoise") or "decode" not in seconds:
            return None
        return (seconds["decode"] / self.ticket.decodings) / (seconds["denoise"] / self.ticket.params.steps)
