"""The device's thread: it loads the engine, warms it up, and draws one ticket after another."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from zturbo.engine.queue import AdmissionQueue, Ticket
from zturbo.errors import Cancelled, ZTurboError
from zturbo.params import GenerationParams
from zturbo.safety.checker import Safety

log = logging.getLogger("zturbo")

WARM_UP = {"prompt": "a red balloon", "size": "square", "seed": 1}


class Draws(Protocol):
    """What the worker needs of an engine."""

    def draw(self, params: GenerationParams, cancelled: Callable[[], bool] = ..., previews: int = ...) -> Any:
        """Yield progress; the last one carries the pictures."""


class Worker:
    """Runs an engine on a thread of its own, so that no door ever waits for the device.

    Args:
        queue: where tickets come from; it is opened after a warm-up picture.
        load: makes the engine, on the worker's thread.
        load_safety: makes what judges pictures, on the same thread and before: without it nothing is drawn.
    """

    def __init__(
        self, queue: AdmissionQueue, load: Callable[[], Draws], load_safety: Callable[[], Safety] = Safety
    ) -> None:
        self.queue = queue
        self.engine: Any = None
        self.safety = Safety()
        self.failure: BaseException | None = None
        self._load, self._load_safety = load, load_safety
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
        except BaseException as error:  # told to whoever asks, by `failure` and by the queue's refusal
            self.failure = error
            log.critical("the model could not be loaded: %s", error, exc_info=not isinstance(error, ZTurboError))
            self.queue.drain(f"the model or its safety checker could not be loaded: {error}")
            return
        self.queue.open()
        while (ticket := self.queue.take()) is not None:
            self._draw(ticket)

    def _draw(self, ticket: Ticket) -> None:
        start = time.perf_counter()
        try:
            for progress in self.engine.draw(ticket.params, ticket.cancelled, ticket.previews):
                ticket.publish(progress)
        except Cancelled:
            self.queue.end(ticket, "cancelled", time.perf_counter() - start)
        except Exception as error:  # the request fails, the server goes on
            self.queue.end(ticket, "failed", time.perf_counter() - start)
            ticket.publish(error)
        else:
            self.queue.end(ticket, "done", time.perf_counter() - start)
