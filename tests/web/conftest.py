"""The playground's server round an instant engine, on a loopback port, in a thread of this process."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette

from tests.api.instant import Instant
from zturbo.api.app import create_app
from zturbo.config import Config
from zturbo.engine.queue import AdmissionQueue
from zturbo.engine.worker import Worker
from zturbo.safety.checker import Safety
from zturbo.storage.embedded import Storage
from zturbo.storage.memory import MemoryFiles, MemoryRecords

KEY = "0123456789abcdef0123456789abcdef"


@dataclass
class Playground:
    """A running server: its address, and its inside."""

    url: str
    engine: Instant
    app: Starlette


@contextmanager
def serving(load_safety: Callable[[], Safety] = Safety, **settings: Any) -> Iterator[Playground]:
    """A server with these settings, ready to draw."""
    engine = Instant()
    engine.gate.set()
    worker = Worker(AdmissionQueue(limit=4), lambda: engine, load_safety)
    app = create_app(worker, open_storage, Config(api_key=KEY, shutdown_grace_s=5, **settings))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        wait_until_ready(url)
        yield Playground(url, engine, app)
    finally:
        engine.gate.set()
        server.should_exit = True
        thread.join(20)
        listener.close()


async def open_storage() -> Storage:
    return Storage(MemoryRecords(), MemoryFiles())


def wait_until_ready(url: str) -> None:
    pause = threading.Event()
    for _ in range(1000):
        try:
            if httpx2.get(f"{url}/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        pause.wait(0.01)
    raise AssertionError("the server did not get ready")


@pytest.fixture(scope="module")
def playground() -> Iterator[Playground]:
    with serving() as found:
        yield found
