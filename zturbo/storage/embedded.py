"""The embedded default: SQLite and a folder of pictures, in one data folder; nothing else to install or start."""

import time
from dataclasses import dataclass

from zturbo.config import Config
from zturbo.storage.files import Files, remove_unknown
from zturbo.storage.local import LocalFiles
from zturbo.storage.records import Records
from zturbo.storage.sqlite import open_sqlite


@dataclass(frozen=True, slots=True)
class Storage:
    """Everything a server keeps."""

    records: Records
    files: Files

    async def close(self) -> None:
        """Let go of both. Calling it again does nothing."""
        await self.files.close()
        await self.records.close()


async def open_storage(config: Config) -> Storage:
    """Take the data folder as its only server, and clear away what a killed one left unfinished.

    Raises:
        StorageError: it cannot be made, read or written, or another server has it.
    """
    files = await LocalFiles.start(config.files_dir)
    try:
        records = await open_sqlite(config.records_file, serve=True, now_ms=now_ms())
    except BaseException:
        await files.close()
        raise
    storage = Storage(records, files)
    try:
        await remove_unknown(files, records.history)
    except BaseException:
        await storage.close()
        raise
    return storage


def now_ms() -> int:
    """Milliseconds since 1970 in UTC."""
    return time.time_ns() // 1_000_000
