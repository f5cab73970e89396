"""Admission: who may draw, in which order, and what becomes of each request. Knows neither torch nor HTTP.

A request becomes a ticket. A ticket waits, takes turns with others, and ends exactly once: done, failed or cancelled.
What cannot be admitted is refused at the door, here and nowhere else, with an honest time to come back: the queue
knows the cost of all tickets in pixel-steps, and the rate at which the engine has been working it off.
"""

import math
import threading
from collections.abc import Callable, Mapping
from itertools import count
from types import MappingProxyType
from typing import Any, Literal

from zturbo.engine.fairness import FairOrder
from zturbo.engine.progress import Progress, preview_steps
from zturbo.errors import Busy, Cancelled
from zturbo.params import GenerationParams

State = Literal["waiting", "running", "done", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled")
UNKNOWN_WAIT_S = 5
RATE_MEMORY = 0.7
"""Share of the old measurements that survives one finished ticket."""


class Ticket:
    """One admitted request.

    Args:
        params: what to draw.
        publish: receives what becomes of it, from any thread: progress, or at last an exception.
        previews: how many previews of each picture are wanted.
        owner: whose it is; owners share the engine alike.
        number: in the order of admission.
        decoding: how many steps a decoding is worth.
    """

    def __init__(
        self,
        params: GenerationParams,
        publish: Callable[[Any], None],
        previews: int = 0,
        owner: str = "",
        number: int = 0,
        decoding: float = 0.0,
    ) -> None:
        self.params, self.publish, self.previews = params, publish, previews
        self.owner, self.number = owner, number
        self.state: State = "waiting"
        self.drawn = 0.0
        """Pixel-steps done; whoever has the turn writes it."""
        self._decoding, self._shown = decoding, preview_steps(params.steps, previews)
        self.decodings = 1 + len(self._shown)
        """Of each picture: its own, and those of its previews."""
        self.position: int | None = None
        """What its owner was last told; None where it never had to wait."""
        self._booked = 0.0
        self._cancelled = False

    @property
    def cost(self) -> float:
        """Pixel-steps: width * height * images * (steps, and what the decodings of it and its previews are worth)."""
        return self._pixel_steps(self.params.num_images, 0, 0)

    @property
    def left(self) -> float:
        """Pixel-steps still to do."""
        return self.cost - self.drawn

    def reached(self, progress: Progress) -> None:
        """Book what has been drawn."""
        if progress.stage in ("drawn", "done"):
            self.drawn = self._pixel_steps(progress.image + 1, 0, 0)
        else:
            shown = sum(step < progress.step for step in self._shown) + (progress.preview is not None)
            self.drawn = self._pixel_steps(progress.image, progress.step, shown)

    def _pixel_steps(self, images: int, steps: int, previews: int) -> float:
        """Of so many whole pictures, and so many steps and previews of the next."""
        params = self.params
        whole = params.steps + self.decodings * self._decoding
        return params.width * params.height * (images * whole + steps + previews * self._decoding)

    def news(self) -> float:
        """Pixel-steps done since the last time this was asked."""
        news, self._booked = self.drawn - self._booked, self.drawn
        return news

    def cancel(self) -> None:
        """Ask that the work end; a running ticket ends at its next step. May be called at any time, from any thread."""
        self._cancelled = True

    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled


SHARED = 8  # places from which on a queue keeps some for owners who have none yet
OWN_SHARE = 0.75  # of the places that others leave may be one owner's


class AdmissionQueue:
    """Turns in fair order (`FairOrder`), and never more than `limit` tickets without one.

    `admit` is called by the doors, `take`, `rest` and `end` by the engine's lanes; all are safe to call at once.
    Of the tickets at their turn, no more than `abreast` are worked on, those that go first; the others rest.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.lanes, self.abreast = limit, 1, 1
        self._waiting: list[Ticket] = []
        self._at_work: list[Ticket] = []
        self._fair, self._numbers = FairOrder(), count()
        self._rate: float | None = None  # pixel-steps a second, of one lane
        self._decoding = 1.0  # steps that a decoding is worth
        self._refusal: str | None = "the model is still loading"
        self._drained = self._broken = False
        self._changed = threading.Condition()

    def open(self, lanes: int = 1, abreast: int | None = None) -> None:
        """Begin to admit: the engine is ready for so many tickets at their turn, `abreast` (or all) at work at once.

        A queue that was drained meanwhile stays so.
        """
        with self._changed:
            self.lanes, self.abreast = lanes, abreast or lanes
            if not self._drained:
                self._refusal = None

    def drain(self, reason: str = "the server is shutting down", broken: bool = False) -> None:
        """Admit no more; what was admitted is still worked off, and `take` ends after it.

        broken: whoever asks again will be refused again.
        """
        with self._changed:
            self._refusal, self._drained, self._broken = reason, True, broken
            self._changed.notify_all()

    def give_up(self, reason: str = "the server is shutting down") -> None:
        """End what was admitted too: each owner is told, and what is at its turn ends at its next step."""
        with self._changed:
            for ticket in (*self._at_work, *self._waiting):
                ticket.cancel()
                ticket.publish(Busy(f"the request was given up: {reason}", UNKNOWN_WAIT_S))
            self._changed.notify_all()

    @property
    def refusal(self) -> str | None:
        """Why nothing is admitted, or None."""
        return self._refusal

    def check(self, owner: str = "", asking: Mapping[str, int] = MappingProxyType({})) -> None:
        """See whether a request would be taken now.

        asking: owner -> requests that were let in before and are not admitted yet.

        Raises:
            Busy: as `admit`.
        """
        with self._changed:
            self._check(owner, asking)

    def check_ready(self) -> None:
        """See whether requests are taken at all, however many wait.

        Raises:
            Busy: the model is loading or could not be loaded, or the server is shutting down.
        """
        if self._refusal is not None:
            raise Busy(f"no request is taken: {self._refusal}", None if self._broken else UNKNOWN_WAIT_S)

    def _check(self, owner: str, asking: Mapping[str, int] = MappingProxyType({})) -> None:
        self.check_ready()
        self._forget_cancelled()
        waiting = len(self._waiting) + sum(asking.values())
        if waiting >= self.limit:
            raise Busy(f"the queue is full: {waiting} requests are waiting", self._wait_s())
        own = sum(ticket.owner == owner for ticket in self._waiting) + asking.get(owner, 0)
        if self.limit >= SHARED and own and own + 1 > (self.limit - (waiting - own)) * OWN_SHARE:
            refusal = f"{own} requests of this key are waiting; the other places are for other keys"
            raise Busy(refusal, self._wait_s(owner))

    def admit(
        self, params: GenerationParams, publish: Callable[[Any], None], previews: int = 0, owner: str = ""
    ) -> Ticket:
        """Take a request in; `publish` is told its position whenever that changes, until it begins.

        Raises:
            Busy: nothing is admitted now, `limit` tickets wait already, or too many of them are this owner's; it says
                when to come back.
        """
        with self._changed:
            self._check(owner)
            ticket = Ticket(params, publish, previews, owner, next(self._numbers), self._decoding)
            self._fair.join(ticket, owner, ticket.cost)
            self._waiting.append(ticket)
            self._tell()
            self._changed.notify_all()
        return ticket

    def take(self, last: Ticket | None = None) -> Ticket | None:
        """Wait for the next turn; None when drained and nothing is left.

        Args:
            last: the ticket of the caller's last turn, unless it has ended; it may well be the next one again.
        """
        with self._changed:
            if last is not None:
                self._fair.work(last.news())
                self._at_work.remove(last)
                self._waiting.append(last)
            while True:
                self._forget_cancelled()
                if self._waiting and not self._gives_way(ticket := min(self._waiting, key=self._rank)):
                    self._begin(ticket)
                    if ticket is not last:
                        self._tell()
                        self._changed.notify_all()
                    return ticket
                if self._refusal is not None and not self._at_work:
                    return None
                if last is not None:  # who rested for it may go on
                    self._changed.notify_all()
                    last = None
                self._changed.wait()

    def rest(self, ticket: Ticket) -> None:
        """Wait, in the midst of a ticket's turn, until fewer than `abreast` others that go before it are at theirs.

        Raises:
            Cancelled: the ticket was cancelled; what is left of its turn would be for nobody.
        """
        if len(self._at_work) > self.abreast:  # a look without the lock; whoever comes now is seen next time
            with self._changed:
                if self._gives_way(ticket):
                    self._changed.notify_all()  # who goes before it may be at rest: a cancelled ticket wakes nobody
                while self._gives_way(ticket):
                    self._changed.wait()
            if ticket.cancelled():
                raise Cancelled("the request was cancelled")

    def end(
        self,
        ticket: Ticket,
        state: Literal["done", "failed", "cancelled"],
        seconds: float,
        decoding: float | None = None,
    ) -> None:
        """Book the end of a ticket at its turn.

        Args:
            seconds: of the engine's time that it took in all.
            decoding: how many of its steps took as long as one of its decodings, where that was measured.
        """
        with self._changed:
            assert ticket in self._at_work, "only a ticket at its turn can end"
            self._at_work.remove(ticket)
            if state == "done":
                ticket.drawn = ticket.cost
                self._learn(ticket.cost, seconds, decoding)
            self._fair.work(ticket.news())
            self._close(ticket, state)

    def __len__(self) -> int:
        """Tickets that wait for a turn, their first or another one."""
        return len(self._waiting)

    def _rank(self, ticket: Ticket) -> tuple[bool, float, int]:
        """The smallest goes first; the cancelled ones at once, because their turn is their end."""
        return not ticket.cancelled(), self._fair.rank(ticket), ticket.number

    def _gives_way(self, ticket: Ticket) -> bool:
        """Whether as many as can be worked on at once go before a ticket."""
        own = self._rank(ticket)
        return sum(self._rank(other) < own for other in self._at_work) >= self.abreast

    def _begin(self, ticket: Ticket) -> None:
        """Give a ticket a turn."""
        self._waiting.remove(ticket)
        self._at_work.append(ticket)
        ticket.state = "running"

    def _close(self, ticket: Ticket, state: Literal["done", "failed", "cancelled"]) -> None:
        assert ticket.state not in ENDED, "a ticket ends once"
        ticket.state = state
        if state == "done":
            self._fair.end(ticket)
        else:
            self._fair.leave(ticket)
        self._tell()
        self._changed.notify_all()

    def _forget_cancelled(self) -> None:
        """End what was cancelled before it began."""
        for ticket in [ticket for ticket in self._waiting if ticket.state == "waiting" and ticket.cancelled()]:
            self._waiting.remove(ticket)
            self._close(ticket, "cancelled")

    def _tell(self) -> None:
        """Tell each ticket that has not begun and cannot yet how many go before it, where that has changed."""
        waiting = sorted(self._waiting, key=self._rank)
        free = self.lanes - len(self._at_work)
        for position, ticket in enumerate(waiting):
            if ticket.state != "waiting" or ticket.position == position:
                continue
            before = [other for other in self._at_work if self._rank(other) < self._rank(ticket)] + waiting[:position]
            if position >= free or len(before) >= self.abreast:
                ticket.position = position
                ticket.publish(self._queued(ticket, position, sum(other.left for other in before)))

    def _queued(self, ticket: Ticket, position: int, ahead: float) -> Progress:
        expected_s = None if self._rate is None else ahead / self._rate / self.abreast
        images, steps = ticket.params.num_images, ticket.params.steps
        return Progress("queued", 0, images, 0, steps, position=position, expected_s=expected_s)

    def _learn(self, cost: float, seconds: float, decoding: float | None) -> None:
        if seconds > 0:
            rate = cost / seconds
            self._rate = rate if self._rate is None else _between(self._rate, rate)
        if decoding is not None:
            self._decoding = _between(self._decoding, decoding)

    def _wait_s(self, owner: str | None = None) -> int:
        """Seconds until a ticket, or one of this owner's that wait, has been worked off, at the measured rate."""
        if self._rate is None or not (self._at_work or self._waiting):
            return UNKNOWN_WAIT_S
        left = 0.0
        for ticket in sorted([*self._at_work, *self._waiting], key=self._rank):
            left += 0.0 if ticket.cancelled() else ticket.left  # it ends at its next turn
            if owner is None or (ticket.owner == owner and ticket in self._waiting):
                break
        return max(1, math.ceil(left / self._rate / (1 if owner is None else self.abreast)))


def _between(old: float, new: float) -> float:
    return RATE_MEMORY * old + (1 - RATE_MEMORY) * new
