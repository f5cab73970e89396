"""The whole story of one request, for every door: read `Service.generate` first.

ticket = queue.admit(...)        refused here, or nowhere
progress from the engine         on the event loop, from the device's thread
files.put(encode(...))           in worker threads
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from zturbo.engine.progress import Picture, Progress
from zturbo.engine.queue import Ticket
from zturbo.engine.worker import Worker
from zturbo.params import GenerationParams
from zturbo.pictures import Settings, encode
from zturbo.storage.files import Files


@dataclass(frozen=True, slots=True)
class Delivery:
    """One picture as it is handed over: the file's bytes, and its name in the store where it was put there."""

    data: bytes
    seed: int
    name: str | None


@dataclass(frozen=True, slots=True)
class Delivered:
    """The end of a request: its pictures, and seconds by stage."""

    pictures: tuple[Delivery, ...]
    timings: dict[str, float]


class Service:
    """Queue, engine and files, put together once.

    Args:
        worker: the engine's thread and its queue.
        files: where pictures are kept.
        write_prompts: whether prompt and settings are written into the pictures.
    """

    def __init__(self, worker: Worker, files: Files, write_prompts: bool = True) -> None:
        self.worker, self.files, self.write_prompts = worker, files, write_prompts

    async def generate(
        self, params: GenerationParams, *, store: bool, previews: int = 0
    ) -> AsyncGenerator[Progress | Delivered, None]:
        """Draw one request.

        Args:
            params: validated.
            store: put the pictures into the file store; else only their bytes are handed over.
            previews: how many previews of each picture the progress shall carry.

        Yields:
            progress while it is drawn, then the delivery. Closing the iterator cancels the work within a step.

        Raises:
            Busy: not admitted.
            ZTurboError: what the engine or the store raised.
        """
        start, events = time.perf_counter(), _Events()
        ticket = self.worker.queue.admit(params, events.publish, previews)
        try:
            progress = None
            while progress is None or progress.stage != "done":
                progress = await events.next()
                yield progress
            queued = time.perf_counter() - start - progress.timings["total"]
            storing = time.perf_counter()
            pictures = await asyncio.gather(*(self._deliver(picture, params, store) for picture in progress.pictures))
            end = time.perf_counter()
            engine = {name: seconds for name, seconds in progress.timings.items() if name != "total"}
            yield Delivered(
                tuple(pictures), {"queue": max(0.0, queued), **engine, "store": end - storing, "total": end - start}
            )
        finally:
            _leave(ticket)

    async def _deliver(self, picture: Picture, params: GenerationParams, store: bool) -> Delivery:
        model = self.worker.engine.model
        written = Settings.of(params, picture.seed, model.name, model.version) if self.write_prompts else None
        data = await asyncio.to_thread(encode, picture.pixels, params.output_format, written)
        name = await self.files.put(data, params.output_format) if store else None
        return Delivery(data, picture.seed, name)


def _leave(ticket: Ticket) -> None:
    """Whoever stops listening stops the work; after the end it changes nothing."""
    ticket.cancel()


class _Events:
    """What the engine's thread publishes, brought to the event loop that asked."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def publish(self, event: Any) -> None:
        """Called on the engine's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def next(self) -> Progress:
        """The next progress; an exception of the engine is raised here."""
        event = await self._queue.get()
        if isinstance(event, BaseException):
            raise event
        assert isinstance(event, Progress)
        return event
