"""Keys that were read a moment ago, so that a request costs neither a thread nor a read of the disk to be recognised.

A change made through this object counts from the moment that it is acknowledged. One made elsewhere (`zturbo keys
revoke` beside a server) counts within `FRESH_S`, for a key is never older than that. An expiry counts to the
millisecond, since what is kept is the key and not the verdict on it.
"""

import time
from collections.abc import Callable

from zturbo.storage.records import Key, Keys

FRESH_S = 1.0
"""How long a key that was read may be used."""
MAX_KEYS = 10_000
"""Kept at once, about 5 MB."""


class CachedKeys:
    """Implements `Keys` in front of another one.

    Args:
        keys: where they are kept.
        clock: seconds that never go back.
    """

    def __init__(self, keys: Keys, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys, self._clock = keys, clock
        self._read: dict[str, tuple[Key, float]] = {}
        """Prefix -> the key, and when it is too old."""
        self._changes = 0

    async def add(self, key: Key) -> bool:
        return await self._keys.add(key)

    async def get(self, prefix: str) -> Key | None:
        key, end = self._read.get(prefix, (None, 0.0))
        return key if self._clock() < end else await self._fetch(prefix)

    async def list(self) -> tuple[Key, ...]:
        return await self._keys.list()

    async def update(self, prefix: str, change: Callable[[Key], Key]) -> Key | None:
        try:
            return await self._keys.update(prefix, change)
        finally:
            self._forget(prefix)

    async def delete(self, prefix: str) -> bool:
        try:
            return await self._keys.delete(prefix)
        finally:
            self._forget(prefix)

    async def _fetch(self, prefix: str) -> Key | None:
        """Read a key; it is kept unless one was changed meanwhile, for then the reader may have seen it as it was.

        Prefixes that nobody has are not kept: a stranger could send millions of them.
        """
        end, changes = self._clock() + FRESH_S, self._changes  # its age counts from before the read
        key = await self._keys.get(prefix)
        if key is None:
            self._read.pop(prefix, None)
        elif changes == self._changes:
            if len(self._read) >= MAX_KEYS:
                self._read.clear()
            self._read[prefix] = key, end
        return key

    def _forget(self, prefix: str) -> None:
        self._changes += 1
        self._read.pop(prefix, None)
