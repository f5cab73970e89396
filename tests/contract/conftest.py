"""Every implementation of every seam, as a fixture: a suite that takes one runs on each."""

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from zturbo.storage.files import Files
from zturbo.storage.local import LocalFiles
from zturbo.storage.memory import MemoryFiles, MemoryRecords
from zturbo.storage.records import Records
from zturbo.storage.sqlite import open_sqlite


@pytest.fixture(params=["sqlite", "serving", "memory"])
def records(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Records]:
    """`serving` is what a server has: SQLite with keys at hand."""
    opened: Records = MemoryRecords()
    if request.param != "memory":
        opened = asyncio.run(open_sqlite(tmp_path / "r.db", serve=request.param == "serving"))
    yield opened
    asyncio.run(opened.close())


@dataclass
class Store:
    """A file store, and how to make one of its pictures look older."""

    files: Files
    age: Callable[[str, int], None]
    """(name, milliseconds since 1970)."""


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        memory = MemoryFiles()

        def age_memory(name: str, now_ms: int) -> None:
            memory._pictures[name] = (memory._pictures[name][0], now_ms)

        yield Store(memory, age_memory)
    else:
        local = asyncio.run(LocalFiles.start(tmp_path / "files"))
        yield Store(local, lambda name, now_ms: os.utime(tmp_path / "files" / name, (now_ms / 1000, now_ms / 1000)))
        asyncio.run(local.close())
