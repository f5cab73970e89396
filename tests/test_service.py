"""What the service does on the side."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from zturbo.errors import StorageError
from zturbo.service import Service
from zturbo.storage.embedded import Storage
from zturbo.storage.memory import MemoryFiles, MemoryIdempotency, MemoryRecords
from zturbo.storage.records import DAY_MS


def test_a_key_that_was_freed_late_is_freed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freed a second time it would be the next request's, which could then be drawn and charged twice."""

    async def story() -> None:
        records, broken, turn = MemoryRecords(), True, asyncio.Event()
        keys, release = records.idempotency, MemoryIdempotency.release

        async def failing(self: MemoryIdempotency, owner: str, key: str) -> None:
            if broken:
                raise StorageError("the disk is full")
            if keys_in_order[0] == (owner, key):
                await turn.wait()
            await release(self, owner, key)

        async def reserve(key: str) -> str:
            return (await keys.reserve("o", key, b"digest", 0, DAY_MS)).state

        monkeypatch.setattr(MemoryIdempotency, "release", failing)
        worker: Any = SimpleNamespace()
        service = Service(worker, Storage(records, MemoryFiles()))
        for key in ("a", "b"):
            await reserve(key)
            await service.release("o", key)
        keys_in_order, broken = list(service._unreleased), False
        last = keys_in_order[1][1]
        first = asyncio.create_task(service.settle())  # waits with the first key, and has the other before it
        await asyncio.sleep(0)
        second = asyncio.create_task(service.settle())
        while await reserve(last) != "new":
            await asyncio.sleep(0)
        turn.set()
        await first
        await second
        assert await reserve(last) == "running"

    asyncio.run(story())
