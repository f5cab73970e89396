"""A lock between processes that dies with its holder, for both homes on disk."""

import os
import sys
import time
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_POLL_S = 0.005


class Turn:
    """A lock between processes, and within one; the system frees it when its holder dies.

    Args:
        path: a folder, or a file that is made where there is none. Its content is not touched.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
        self._file = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o600)

    def take(self, timeout_s: float) -> bool:
        """Wait for the lock; whether it was had. Where the system has no such lock, it always was."""
        if sys.platform == "win32":
            return True
        end = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end:
                    return False
                time.sleep(_POLL_S)
            else:
                return True

    def release(self) -> None:
        """Let the next one have it."""
        if sys.platform != "win32":
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go for good."""
        os.close(self._file)
