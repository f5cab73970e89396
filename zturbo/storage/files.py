"""The seam of the pictures: their names, `Files`, and the removal of those that no request knows.

A name is `<8 hex>/<21 characters>.<png|jpeg|webp>`, as published URLs end. The 21 are from a cryptographic source, 126
bits: whoever has the name may have the picture. The 8 only spread pictures over folders.
"""

import logging
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from zturbo.params import OUTPUT_FORMATS
from zturbo.storage.records import History
from zturbo.tokens import LENGTH, new_token

FOLDER_PATTERN = "[0-9a-f]{8}"
PICTURE_PATTERN = rf"[A-Za-z0-9_-]{{{LENGTH}}}\.({'|'.join(OUTPUT_FORMATS)})"
_NAME = re.compile(f"{FOLDER_PATTERN}/{PICTURE_PATTERN}")
_FOLDER = re.compile(FOLDER_PATTERN)
MAX_UNKNOWN = 100
"""More pictures without a row than one crash leaves: those that were stored, and not charged for yet."""
log = logging.getLogger("zturbo")


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A picture to read from; whoever has it closes `stream`. It stays whole when the picture is swept meanwhile."""

    stream: BinaryIO
    size_bytes: int
    content_type: str


Content = bytes | Callable[[], bytes]
"""A file's bytes, or what makes them; it may be called on another thread."""


class Files(Protocol):
    """The pictures. Every method may raise StorageError, and works again once the cause is gone."""

    async def put(self, content: Content, output_format: str) -> str:
        """Keep a picture, whole or not at all, and on the disk when this returns; returns its new name.

        Where the caller is cancelled while it waits, nothing is kept. What making the content raises is raised here.
        """

    async def open(self, name: str) -> OpenFile:
        """Open a picture.

        Raises:
            FileGone: it was swept.
            NoSuchFile: there never was one of that name, or the name is none.
        """

    async def delete(self, name: str) -> bool:
        """Remove a picture that was never told to anybody: from then on it never was. False where there is none."""

    async def folders(self) -> tuple[str, ...]:
        """The first parts of all names."""

    async def names(self, folder: str) -> tuple[str, ...]:
        """The names of all pictures in one folder, whole."""

    async def sweep(self, before_ms: int) -> int:
        """Remove what was put before a moment, and remember that it was there; returns how many.

        Where a part cannot be removed, the rest is, before the error is raised.
        """

    async def close(self) -> None:
        """Let go of the store. Calling it again does nothing."""


def new_name(output_format: str, folder: str | None = None) -> str:
    """An unguessable name, in a folder that exists or in a new one."""
    assert output_format in OUTPUT_FORMATS, output_format
    return f"{folder or new_folder()}/{new_token()}.{output_format}"


def new_folder() -> str:
    """The first part of a name."""
    return secrets.token_hex(4)


def is_name(text: str) -> bool:
    """Whether a text can be a picture's name; everything else is refused before it touches a disk."""
    return _NAME.fullmatch(text) is not None


def is_folder(text: str) -> bool:
    """Whether a text can be the first part of a name."""
    return _FOLDER.fullmatch(text) is not None


def content_type_of(name: str) -> str:
    """The media type that a name's suffix stands for."""
    return f"image/{name.rpartition('.')[2]}"


async def remove_unknown(files: Files, history: History, home: str) -> int:
    """Remove pictures that no delivered request refers to, as a killed server leaves them; returns how many.

    For the start of a server: a picture that is on its way to its row has none either. More than `MAX_UNKNOWN` are the
    sign of records that are older than the pictures, or of another folder: then all of them stay.

    Args:
        home: where the pictures are, for the log.
    """
    unknown: list[str] = []
    for folder in await files.folders():
        names = await files.names(folder)
        known = await history.known_files(names)
        unknown += (name for name in names if name not in known)
    if len(unknown) > MAX_UNKNOWN:
        log.warning(
            "%d pictures in %s are in no record, more than a crash leaves; none is removed. If the records are older"
            " than the pictures, stop the server and put back those that belong to them; else nothing need be done:"
            " the pictures are served, and retention, where it is on, removes them",
            len(unknown), home,
        )  # fmt: skip
        return 0
    removed = sum([await files.delete(name) for name in unknown])
    if removed:
        log.info("removed %d pictures in %s that are in no record, as a killed server leaves them", removed, home)
    return removed
