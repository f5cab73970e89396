"""The whole server round an instant engine: every route is real, only the drawing is a gradient."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import pytest

from tests.api.instant import Instant as Instant  # also for the tests that import it from here
from zturbo.api.app import create_app
from zturbo.config import Config
from zturbo.engine.queue import AdmissionQueue
from zturbo.engine.worker import Worker
from zturbo.safety.checker import Safety
from zturbo.service import Service
from zturbo.storage.embedded import Storage
from zturbo.storage.memory import MemoryFiles, MemoryRecords

KEY = "0123456789abcdef0123456789abcdef"
UNCHECKED = Safety()
OpenStorage = Callable[[], Awaitable[Storage]]


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
    safety: Safety = UNCHECKED,
    **settings: Any,
) -> AsyncIterator[Server]:
    """The server with these settings, ready to draw."""
    worker = Worker(AdmissionQueue(limit=4), lambda: engine, lambda: safety)
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
