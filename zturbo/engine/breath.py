"""Pauses in the midst of long work: who computes takes breath, and whoever hands out the turns may use it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_rest = threading.local()


@contextmanager
def may_rest(rest: Callable[[], None]) -> Iterator[None]:
    """Have `breathe` call `rest` in here, on the calling thread."""
    _rest.call = rest
    try:
        yield
    finally:
        _rest.call = None


def breathe() -> None:
    """Called in the midst of long work that holds no lock: others may go first now."""
    if (rest := getattr(_rest, "call", None)) is not None:
        start = time.perf_counter()
        try:
            rest()
        finally:
            _rest.seconds = rested_s() + time.perf_counter() - start


def rested_s() -> float:
    """Seconds that the calling thread has spent in `breathe` so far."""
    seconds: float = getattr(_rest, "seconds", 0.0)
    return seconds
