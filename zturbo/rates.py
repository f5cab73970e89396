"""How often, and how many at once: the limits of each key's requests, counted in this process.

Over a moving window of one minute. Knows neither HTTP nor torch.
"""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from zturbo.errors import RateLimited

CONCURRENCY_RETRY_S = 1
WINDOW_S = 60.0


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
    """At most `per_minute` requests in any sixty seconds, whatever the wall clock does."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._taken: defaultdict[str, deque[float]] = defaultdict(deque)

    def take(self, prefix: str) -> None:
        now, taken = monotonic(), self._taken[prefix]
        while taken and taken[0] <= now - WINDOW_S:
            taken.popleft()
        if len(taken) >= self._per_minute:
            wait_s = max(1, math.ceil(taken[0] + WINDOW_S - now))
            raise RateLimited(f"this key may send {self._per_minute} requests a minute", wait_s)
        taken.append(now)
