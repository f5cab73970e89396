"""The whole server round an instant engine: every route is real, only the drawing is a gradient."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
import numpy as np
import pytest

from zturbo.api.app import create_app
from zturbo.config import Config
from zturbo.engine.progress import Picture, Progress
from zturbo.engine.queue import AdmissionQueue
from zturbo.engine.worker import Worker
from zturbo.errors import Cancelled
from zturbo.params import GenerationParams
from zturbo.service import Service
from zturbo.storage.embedded import Storage
from zturbo.storage.memory import MemoryFiles, MemoryRecords

KEY = "0123456789abcdef0123456789abcdef"
OpenStorage = Callable[[], Awaitable[Storage]]


@dataclass
class Model:
    name: str = "instant"
    version: str = "instant@0"
    description: str = "a gradient by seed"
    is_nano: bool = False


@dataclass
class Instant:
    """Draws gradients; a closed `gate` holds it between two steps, and the prompt "break" breaks it."""

    model: Model = field(default_factory=Model)
    gate: threading.Event = field(default_factory=threading.Event)
    draws: int = 0
    steps_drawn: int = 0

    def draw(
        self, params: GenerationParams, cancelled: Callable[[], bool] = lambda: False, previews: int = 0
    ) -> Iterator[Progress]:
        images, steps = params.num_images, params.steps
        self.draws += 1
        yield Progress("encode", 0, images, 0, steps)
        for step in range(1, steps + 1):
            self.gate.wait(10)
            if cancelled():
                raise Cancelled("cancelled")
            if params.prompt == "break":
                raise RuntimeError("secret of the inside")
            self.steps_drawn += 1
            preview = self.pixels(params, params.seed) if step <= previews else None
            yield Progress("denoise", 0, images, step, steps, preview)
        pictures = tuple(Picture(self.pixels(params, params.seed + i), params.seed + i) for i in range(images))
        timings = {"encode": 0.0, "denoise": 0.0, "decode": 0.0, "total": 0.0}
        yield Progress("done", images - 1, images, steps, steps, None, pictures, timings)

    @staticmethod
    def pixels(params: GenerationParams, seed: int) -> Any:
        row = (np.arange(params.width) + seed) % 256
        return np.broadcast_to(row[None, :, None], (params.height, params.width, 3)).astype(np.uint8)


@dataclass
class Server:
    """What a test sees: a client with the key, and the inside."""

    client: httpx2.AsyncClient
    engine: Instant
    service: Service


@pytest.fixture
def engine() -> Instant:
    instant = Instant()
    instant.gate.set()
    return instant


async def open_storage() -> Storage:
    return Storage(MemoryRecords(), MemoryFiles())


@asynccontextmanager
async def serving(
    engine: Instant,
    open_storage: OpenStorage = open_storage,
    show_key: Callable[[str], None] = lambda _text: None,
    **settings: Any,
) -> AsyncIterator[Server]:
    """The server with these settings, ready to draw."""
    worker = Worker(AdmissionQueue(limit=4), lambda: engine)
    app = create_app(worker, open_storage, replace(Config(api_key=KEY, shutdown_grace_s=10), **settings), show_key)
    async with app.router.lifespan_context(app):
        deadline = time.monotonic() + 10
        while worker.queue.refusal is not None and time.monotonic() < deadline:
            await asyncio.sleep(0.001)
        transport = httpx2.ASGITransport(app)
        headers = {"authorization": f"Bearer {KEY}"}
        async with httpx2.AsyncClient(transport=transport, base_url="http://testserver", headers=headers) as client:
            yield Server(client, engine, app.state.service)


@pytest.fixture
async def server(engine: Instant) -> AsyncIterator[Server]:
    async with serving(engine) as server:
        yield server


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
