"""How old a cached key can be, and that nothing else of it is remembered."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.contract.samples import key
from zturbo.errors import StorageError
from zturbo.storage.cached import FRESH_S, MAX_KEYS, CachedKeys
from zturbo.storage.memory import MemoryRecords
from zturbo.storage.records import Key, Keys


class Counting:
    """A clock that stands still, and keys whose reads are counted and may be held."""

    def __init__(self) -> None:
        self.keys: Keys = MemoryRecords().keys
        self.reads, self.now = 0, 0.0
        self.may_return = asyncio.Event()
        self.may_return.set()
        self.cached = CachedKeys(self, lambda: self.now)

    async def add(self, key: Key) -> bool:
        return await self.keys.add(key)

    async def get(self, prefix: str) -> Key | None:
        self.reads += 1
        found = await self.keys.get(prefix)
        await self.may_return.wait()
        return found

    async def list(self) -> tuple[Key, ...]:
        return await self.keys.list()

    async def update(self, prefix: str, change: Callable[[Key], Key]) -> Key | None:
        return await self.keys.update(prefix, change)

    async def delete(self, prefix: str) -> bool:
        return await self.keys.delete(prefix)


def disabled(old: Key) -> Key:
    return replace(old, enabled=False)


async def test_a_key_is_read_once_a_second() -> None:
    kept = Counting()
    await kept.cached.add(key())
    for _ in range(5):
        assert await kept.cached.get("0123abcd") == key()
    assert kept.reads == 1
    kept.now += FRESH_S
    assert await kept.cached.get("0123abcd") == key()
    assert kept.reads == 2


async def test_a_change_made_elsewhere_counts_within_a_second() -> None:
    kept = Counting()
    await kept.cached.add(key())
    assert await kept.cached.get("0123abcd") == key()
    await kept.keys.delete("0123abcd")
    kept.now += FRESH_S
    assert await kept.cached.get("0123abcd") is None


@pytest.mark.parametrize("deleted", [False, True])
async def test_a_change_made_here_counts_at_once(deleted: bool) -> None:
    kept = Counting()
    await kept.cached.add(key())
    assert await kept.cached.get("0123abcd") == key()
    changed = None if deleted else disabled(key())
    assert await (kept.cached.delete("0123abcd") if deleted else kept.cached.update("0123abcd", disabled))
    assert await kept.cached.get("0123abcd") == changed


async def test_a_read_that_a_change_overtook_is_not_kept() -> None:
    kept = Counting()
    await kept.cached.add(key())
    kept.may_return.clear()
    reading = asyncio.create_task(kept.cached.get("0123abcd"))
    await asyncio.sleep(0)
    await kept.cached.update("0123abcd", disabled)
    kept.may_return.set()
    assert await reading == key(), "it was read before the change"
    assert await kept.cached.get("0123abcd") == disabled(key())


async def test_a_change_that_failed_is_forgotten_as_well() -> None:
    kept = Counting()
    await kept.cached.add(key())
    await kept.cached.get("0123abcd")

    def broken(old: Key) -> Key:
        raise StorageError("cannot be written")

    with pytest.raises(StorageError):
        await kept.cached.update("0123abcd", broken)
    await kept.cached.get("0123abcd")
    assert kept.reads == 2, "who was told of a failure sees what is on the disk"


async def test_prefixes_that_nobody_has_are_not_kept() -> None:
    kept = Counting()
    for _ in range(2):
        assert await kept.cached.get("ffffffff") is None
    assert kept.reads == 2
    await kept.cached.add(key("ffffffff"))
    assert await kept.cached.get("ffffffff") == key("ffffffff")


async def test_what_is_kept_is_bounded() -> None:
    kept = Counting()
    for number in range(MAX_KEYS + 1):
        await kept.keys.add(key(f"{number:08x}"))
        await kept.cached.get(f"{number:08x}")
    assert len(kept.cached._read) <= MAX_KEYS
