"""Admission: who may draw next, and what becomes of each request. Knows neither torch nor HTTP.

A request becomes a ticket. A ticket waits, runs, and ends exactly once: done, failed or cancelled. What cannot be
admitted is refused at the door, here and nowhere else, with an honest time to come back: the queue knows the cost of
what waits in pixel-steps, and the rate at which the engine has been working it off.
"""

import math
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from zturbo.errors import Busy
from zturbo.params import GenerationParams

State = Literal["waiting", "running", "done", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled")
UNKNOWN_WAIT_S = 5
RATE_MEMORY = 0.7
"""Share of the old rate that survives one finished ticket."""


class Ticket:
    """One admitted request.

    Args:
        params: what to draw.
        publish: receives what the engine tells about it, on the engine's thread: progress, or at last an exception.
        previews: how many previews of each picture are wanted.
    """

    def __init__(self, params: GenerationParams, publish: Callable[[Any], None], previews: int = 0) -> None:
        self.params = params
        self.previews = previews
        self.publish = publish
        self.state: State = "waiting"
        self._cancelled = threading.Event()

    @property
    def cost(self) -> int:
        """Pixel-steps: width * height * steps * images."""
        params = self.params
        return params.width * params.height * params.steps * params.num_images

    def cancel(self) -> None:
        """Ask that the work end; a running ticket ends at its next step. May be called at any time, from any thread."""
        self._cancelled.set()

    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()


class AdmissionQueue:
    """First come, first served, and never more than `limit` tickets waiting.

    `admit` is called by the doors, `take` and `end` by the engine's thread; all of them are safe to call at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._waiting: deque[Ticket] = deque()
        self._running: Ticket | None = None
        self._rate: float | None = None  # pixel-steps a second
        self._refusal: str | None = "the model is still loading"
        self._changed = threading.Condition()

    def open(self) -> None:
        """Begin to admit: the engine is ready."""
        with self._changed:
            self._refusal = None

    def drain(self, reason: str = "the server is shutting down") -> None:
        """Admit no more; what was admitted is still worked off, and `take` ends after it."""
        with self._changed:
            self._refusal = reason
            self._changed.notify_all()

    @property
    def refusal(self) -> str | None:
        """Why nothing is admitted, or None."""
        return self._refusal

    def admit(self, params: GenerationParams, publish: Callable[[Any], None], previews: int = 0) -> Ticket:
        """Take a request in.

        Raises:
            Busy: nothing is admitted now, or `limit` tickets wait already; it says when to come back.
        """
        ticket = Ticket(params, publish, previews)
        with self._changed:
            if self._refusal is not None:
                raise Busy(f"no request is taken: {self._refusal}", UNKNOWN_WAIT_S)
            self._forget_cancelled()
            if len(self._waiting) >= self.limit:
                raise Busy(f"the queue is full: {len(self._waiting)} requests are waiting", self._wait_s())
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def take(self) -> Ticket | None:
        """Wait for the next ticket and mark it running; None when drained and empty."""
        with self._changed:
            while True:
                self._forget_cancelled()
                if self._waiting:
                    self._running = ticket = self._waiting.popleft()
                    ticket.state = "running"
                    return ticket
                if self._refusal is not None:
                    return None
                self._changed.wait()

    def end(self, ticket: Ticket, state: Literal["done", "failed", "cancelled"], seconds: float) -> None:
        """Book the end of a running ticket, which took `seconds` of the engine's time."""
        with self._changed:
            assert ticket is self._running, "only the running ticket can end"
            assert ticket.state not in ENDED, "a ticket ends once"
            ticket.state, self._running = state, None
            if state == "done" and seconds > 0:
                rate = ticket.cost / seconds
                self._rate = rate if self._rate is None else RATE_MEMORY * self._rate + (1 - RATE_MEMORY) * rate

    def position(self, ticket: Ticket) -> int:
        """Tickets that will be drawn before this one; 0 when it is next, or no longer waiting."""
        with self._changed:
            return self._waiting.index(ticket) if ticket in self._waiting else 0

    def __len__(self) -> int:
        """Tickets that wait."""
        return len(self._waiting)

    def _forget_cancelled(self) -> None:
        for ticket in [ticket for ticket in self._waiting if ticket.cancelled()]:
            self._waiting.remove(ticket)
            ticket.state = "cancelled"

    def _wait_s(self) -> int:
        """Seconds until the ticket in front has been worked off, at the measured rate."""
        ahead = self._running or self._waiting[0]
        return UNKNOWN_WAIT_S if self._rate is None else max(1, math.ceil(ahead.cost / self._rate))
