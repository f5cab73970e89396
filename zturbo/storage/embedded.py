"""The embedded default: SQLite and a folder of pictures, in one data folder; nothing else to install or start."""

import asyncio
import os
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from zturbo.config import Config
from zturbo.errors import StorageError
from zturbo.pictures import sync_folder
from zturbo.storage.database import translated
from zturbo.storage.files import Files, remove_unknown
from zturbo.storage.local import LocalFiles, copy_pictures
from zturbo.storage.records import Records
from zturbo.storage.sqlite import SqliteRecords, open_sqlite


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
    storage = await _take(config)
    try:
        await remove_unknown(storage.files, storage.records.history, str(config.files_dir))
    except BaseException:
        await storage.close()
        raise
    return storage


async def try_storage(config: Config) -> None:
    """Find out whether `open_storage` will work, before a worker process depends on it.

    Raises:
        StorageError: as `open_storage`.
    """
    await (await _take(config)).close()


async def _take(config: Config) -> Storage:
    files = await LocalFiles.start(config.files_dir)
    try:
        return Storage(await open_sqlite(config.records_file, serve=True, now_ms=now_ms()), files)
    except BaseException:
        await files.close()
        raise


async def open_records(config: Config, *, make: bool) -> SqliteRecords:
    """The records alone, beside a server that may be using them.

    Args:
        make: make the data folder where there is none.

    Raises:
        StorageError: there are none, or they cannot be read or written.
    """
    with translated(config.records_file):
        if not make and not config.records_file.is_file():
            hint = "`zturbo serve` and `zturbo keys create` make them; ZTURBO_DATA_DIR names the folder"
            raise StorageError(f"there are no records in {config.records_file.parent}", hint)
    return await open_sqlite(config.records_file)


async def back_up(config: Config, target: Path, pictures: bool = True) -> int:
    """Copy the data folder to a new one, while a server uses it or not; the copy appears whole or not at all.

    The records first: a picture is on the disk before a row names it, so none that they name is missed. Pictures that
    are younger are copied as well; a server that starts on the copy treats them as `remove_unknown` says. Who is
    cancelled leaves nothing of the copy.

    Returns:
        How many pictures were copied.

    Raises:
        StorageError: there are no records, the target exists, or it cannot be written.
    """
    with translated(target):
        if target.exists():
            raise StorageError(f"{target} exists already", "name a folder that does not exist")
        temporary = target.with_name(f".{os.urandom(8).hex()}.part")
        records, stop = await open_records(config, make=False), threading.Event()
        copying = asyncio.ensure_future(_copy(config, records, temporary, pictures, stop))
        try:
            count = await asyncio.shield(copying)
            if sys.platform != "win32":
                await asyncio.to_thread(os.sync)  # once, where a sync of each file would take hours on a slow disk
            temporary.rename(target)
            sync_folder(target.parent)
            return count
        finally:
            stop.set()
            await asyncio.gather(copying, return_exceptions=True)  # its thread would write on into what is removed here
            shutil.rmtree(temporary, ignore_errors=True)
            await records.close()


async def _copy(config: Config, records: SqliteRecords, target: Path, pictures: bool, stop: threading.Event) -> int:
    target.mkdir(mode=0o700)
    await records.backup(target / config.records_file.name)
    if not pictures:
        return 0
    return await asyncio.to_thread(copy_pictures, config.files_dir, target / config.files_dir.name, stop)


def now_ms() -> int:
    """Milliseconds since 1970 in UTC."""
    return time.time_ns() // 1_000_000
