"""Random names that nobody can guess, from the system's source, many at a time.

Each read of that source lets another thread have the interpreter, and to get it back can take milliseconds; so a few
hundred names are read at once. Every byte is used for one name only, in one process only.
"""

import base64
import os
from collections import deque

LENGTH = 21
"""Characters of A-Z, a-z, 0-9, - and _: 126 bits."""
_BYTES = 16
"""22 characters hold them; the last one holds only 2 bits, and is left out."""
_AT_ONCE = 256

_read: deque[str] = deque()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_read.clear)  # two processes must not use the same ones


def new_token() -> str:
    """A new name of `LENGTH` characters; may be called on any thread."""
    while True:
        try:
            return _read.popleft()
        except IndexError:
            source = os.urandom(_BYTES * _AT_ONCE)
            pieces = (source[start : start + _BYTES] for start in range(0, len(source), _BYTES))
            _read.extend(base64.urlsafe_b64encode(piece)[:LENGTH].decode() for piece in pieces)
