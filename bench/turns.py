"""Several ways to do one work take turns (A B C A B C ...), so that a drift of the machine's speed meets all alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median

Seconds = dict[str, list[float]]


def take_turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> Seconds:
    """Seconds of each way by round, after one warm-up of each that is not counted."""
    for work in ways.values():
        work()
    seconds: Seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def times_as_fast(seconds: Seconds, name: str, base: str) -> float:
    """The median of the ratios round by round, which holds when the speed drifts."""
    return median(slow / fast for slow, fast in zip(seconds[base], seconds[name], strict=True))


def spread(seconds: Seconds, name: str) -> float:
    """The slowest round over the fastest: far from 1, other work shared the machine, and the row says little."""
    return max(seconds[name]) / min(seconds[name])
