"""The data folder as a whole: its copies."""

import asyncio
import shutil
import threading
from pathlib import Path

import pytest

from zturbo.config import Config
from zturbo.storage import embedded
from zturbo.storage.embedded import back_up, open_storage


async def filled(folder: Path) -> Config:
    """A data folder with three pictures."""
    config = Config(data_dir=folder)
    storage = await open_storage(config)
    for _ in range(3):
        await storage.files.put(b"x", "png")
    await storage.close()
    return config


async def test_a_backup_that_is_cancelled_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, copy, copied = await filled(tmp_path / "data"), shutil.copy2, []
    begun, hold = threading.Event(), threading.Event()

    def slow(source: Path, target: Path) -> None:
        copied.append(source)
        begun.set()
        hold.wait(10)
        copy(source, target)

    monkeypatch.setattr(shutil, "copy2", slow)
    backing_up = asyncio.create_task(back_up(config, tmp_path / "copy"))
    await asyncio.to_thread(begun.wait, 10)
    backing_up.cancel()
    await asyncio.sleep(0)
    hold.set()
    with pytest.raises(asyncio.CancelledError):
        await backing_up
    await asyncio.get_running_loop().shutdown_default_executor()
    assert len(copied) == 1, "the copy ends with the picture that it was at"
    assert list(tmp_path.iterdir()) == [tmp_path / "data"]


async def test_a_backup_that_is_told_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, synced = await filled(tmp_path / "data"), []
    monkeypatch.setattr(embedded, "sync_folder", lambda folder: synced.append((folder, (tmp_path / "copy").is_dir())))
    assert await back_up(config, tmp_path / "copy") == 3
    assert synced == [(tmp_path, True)], "its name as well, once it has it"
