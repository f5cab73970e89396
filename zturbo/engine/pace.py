"""How far the host may run ahead of a device that computes later, as GPUs do.

Launching a step takes a hundredth of its time. A host that never waits has launched a whole picture before its first
step is done: progress would be told of what has not happened, a cancel would save nothing, and another request's first
step would queue behind all of these. One step ahead is as far as keeps the device busy.
"""

from collections.abc import Callable
from typing import Protocol, Self

import torch


class Mark(Protocol):
    """A place in the device's work (`torch.Event`)."""

    def synchronize(self) -> None:
        """Wait until the device has come to it."""


class Pace:
    """Keeps the host at most one step ahead.

    Args:
        mark: marks where the device's work stands now; None where the host computes itself.
    """

    def __init__(self, mark: Callable[[], Mark] | None) -> None:
        self._mark = mark
        self._last: Mark | None = None

    @classmethod
    def on(cls, device: torch.device) -> Self:
        """For the work of the calling thread on a device."""

        def mark() -> torch.Event:
            event = torch.Event(device)
            event.record(torch.accelerator.current_stream(device))
            return event

        return cls(None if device.type == "cpu" else mark)

    def keep(self) -> None:
        """A step has been launched: wait for the one before."""
        if self._mark is None:
            return
        last, self._last = self._last, self._mark()
        if last is not None:
            last.synchronize()
