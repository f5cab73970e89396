"""How often, and how many at once: the limits of each key's requests, counted in this process.

The counting is the `limits` package's, over a moving window of one minute. Knows neither HTTP nor torch.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import time

from zturbo.errors import RateLimited

CONCURRENCY_RETRY_S = 1


class KeyRates:
    """Counts the requests of each key.

    Args:
        per_minute: requests a minute, 0 for any number.
        at_once: requests at once, 0 for any number.
    """

    def __init__(self, per_minute: int = 0, at_once: int = 0) -> None:
        self._at_once = at_once
        self._running: Counter[str] = Counter()
        self._window = _Window(per_minute) if per_minute else None

    @contextmanager
    def taking(self, prefix: str) -> Iterator[None]:
        """Count one request of a key, for as long as the context lasts.

        Raises:
            RateLimited: it is one too many; it was not counted.
        """
        if self._at_once and self._running[prefix] >= self._at_once:
            raise RateLimited(f"{self._at_once} requests of this key run already", CONCURRENCY_RETRY_S)
        if self._window is not None:
            self._window.take(prefix)
        self._running[prefix] += 1
        try:
            yield
        finally:
            self._running[prefix] -= 1
            if not self._running[prefix]:
                del self._running[prefix]


class _Window:
    """At most `per_minute` requests in any sixty seconds."""

    def __init__(self, per_minute: int) -> None:
        from limits import RateLimitItemPerMinute
        from limits.storage import MemoryStorage
        from limits.strategies import MovingWindowRateLimiter

        self._limit, self._limiter = RateLimitItemPerMinute(per_minute), MovingWindowRateLimiter(MemoryStorage())
        self._per_minute = per_minute

    def take(self, prefix: str) -> None:
        if self._limiter.hit(self._limit, prefix):
            return
        reset_s = self._limiter.get_window_stats(self._limit, prefix).reset_time - time()
        wait_s = min(60, max(1, -int(-reset_s // 1)))
        raise RateLimited(f"this key may send {self._per_minute} requests a minute", wait_s)
