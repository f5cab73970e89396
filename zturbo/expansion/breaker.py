"""A circuit breaker: what failed several times in a row is left in peace for a while, then tried once.

Source: M. Nygard, Release It!, "Circuit Breaker". Written here because it is thirty lines and async: the libraries
that are kept up are made for threads.
"""

import time
from collections.abc import Callable


class CircuitBreaker:
    """Counts failures in a row; not safe for several threads at once.

    Args:
        failures: how many in a row open it.
        rest_s: seconds that it stays open before one call may try again.
        clock: seconds.
    """

    def __init__(self, failures: int = 3, rest_s: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.rest_s = failures, rest_s
        self._clock = clock
        self._failures = 0
        self._closed_at = 0.0

    def allows(self) -> bool:
        """Whether a call may be made now. After the rest one may; the next ones only when it has succeeded."""
        if self._failures < self.limit:
            return True
        if self._clock() < self._closed_at:
            return False
        self._closed_at = self._clock() + self.rest_s
        return True

    def succeeded(self) -> None:
        """A call was answered."""
        self._failures = 0

    def failed(self) -> None:
        """A call was not answered."""
        self._failures += 1
        self._closed_at = self._clock() + self.rest_s
