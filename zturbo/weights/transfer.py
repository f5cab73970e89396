"""One large file of the hub, continued where an earlier attempt stopped, be it of this run or of another.

The hub's client continues a broken connection but starts a file again after its process ended, and the largest
file of the published model has 9.3 GB. So weights are fetched here, into the place where the client looks for
them; all else is left to the client. A file gets its name once its size and its contents have been checked.

The names taken from `huggingface_hub.utils` are documented there, but not marked for type checkers.
"""

import time
from collections.abc import Callable
from pathlib import Path

PIECE_BYTES = 1 << 20
ATTEMPTS = 5
"""Attempts in a row that may bring nothing before the error is passed on."""


def download(url: str, blob: Path, size_bytes: int, label: str, check: Callable[[Path], object]) -> bool:
    """Bring `url` to the file `blob`, which appears only when it is complete and right.

    Args:
        check: called with the file before it gets its name; what it raises leaves the next attempt to start anew.

    Returns: whether it was brought and checked now.

    Raises:
        OSError, or the HTTP library's error: the server refuses, or brings nothing any more.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    if blob.exists():
        return False
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.zturbo-part")
    with WeakFileLock(part.with_name(f"{part.name}.lock")):
        if blob.exists():  # another run brought it while this one waited
            return False
        if _size(part) > size_bytes:
            part.unlink()
        _complete(url, part, size_bytes, label)
        try:
            check(part)
        except Exception:  # an interruption is none: then the file has only to be checked again
            part.unlink()
            raise
        part.replace(blob)
        return True


def _complete(url: str, part: Path, size_bytes: int, label: str) -> None:
    """Append to the part until it has all its bytes."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    broken = HfHubHTTPError.__mro__[1]  # the base error of the HTTP library, which differs between client versions
    fruitless = 0
    part.touch()
    settings = {"total": size_bytes, "initial": _size(part), "unit": "B", "unit_scale": True, "desc": label}
    with tqdm(**settings) as bar:  # type: ignore[no-untyped-call]
        while (before := _size(part)) < size_bytes:
            try:
                _append(url, part, before, bar.update)
                error: Exception = OSError(f"{url} ended after {_size(part)} of {size_bytes} bytes")
            except HfHubHTTPError:
                raise  # an answer, and no: asking again will not change it
            except broken as cause:  # type: ignore[misc]
                error = cause
            fruitless = 0 if _size(part) > before else fruitless + 1
            if fruitless == ATTEMPTS:
                raise error
            if _size(part) < size_bytes:
                time.sleep(fruitless)


def _append(url: str, part: Path, begin: int, count: Callable[[int], object]) -> None:
    """Append what the server sends from byte `begin` on; `count` is told the size of each piece."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    headers = build_hf_headers() | {"Range": f"bytes={begin}-", "Accept-Encoding": "identity"}
    patience = constants.HF_HUB_DOWNLOAD_TIMEOUT  # seconds without a byte; the client's own is for ever
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=patience) as response:
        hf_raise_for_status(response)
        whole = response.status_code == 200  # the server does not know ranges and starts at the beginning
        with part.open("wb" if whole else "ab") as file:
            for piece in response.iter_bytes(PIECE_BYTES):
                file.write(piece)
                count(len(piece))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
