"""kill -9 at random moments under load, many times on the same database and folder, and nothing that was said is lost.

What is proven: the process may die anywhere. What is not: that the disk keeps its word when the power fails; that rests
on fsync and on synchronous=FULL.
"""

import asyncio
import hashlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.storage import busy_server
from zturbo.storage.files import remove_unknown
from zturbo.storage.local import LocalFiles
from zturbo.storage.sqlite import open_sqlite

MOMENTS = int(os.environ.get("KILL_MOMENTS", random.randrange(2**32)))
"""Seed of the moments of the kills; a failure shows it, and the environment may give it again."""
KILLS = 20
"""While it serves."""
EARLY_KILLS = 4
"""While it starts: migrations, the end of what ran before, the removal of temporary files."""
BALANCE = 10**12


@dataclass
class Acknowledged:
    """What clients were told before the server died."""

    status: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)


def kill_one(folder: Path, run: int, told: Acknowledged, delay_s: float, *, early: bool = False) -> None:
    """Let a server work until some time after its first answer, or after its start, kill it, and note what it said."""
    command = [sys.executable, busy_server.__file__, str(folder), str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        first = b"" if early else server.stdout.readline()
        time.sleep(delay_s)
        server.kill()
        lines = (first + server.stdout.read()).splitlines(keepends=True)
    assert server.returncode == -9, "it ended by itself"
    for line in lines:
        if line.endswith(b"\n"):
            answer = json.loads(line)
            told.status[answer["request_id"]] = answer["status"]
            told.files[answer["request_id"]] = answer["files"]


def ask(path: Path, query: str) -> list[tuple[str | int, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def judge_database(path: Path, told: Acknowledged) -> None:
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    assert ask(path, "PRAGMA foreign_key_check") == []
    rows = {str(row): (status, credits) for row, status, credits in
            ask(path, "SELECT request_id, status, credits FROM generations")}  # fmt: skip
    assert {row: status for row, status in told.status.items() if rows.get(row, ("lost",))[0] != status} == {}
    assert {
        row for row, (status, credits) in rows.items() if credits != (busy_server.PRICE if status == "done" else 0)
    } == set()
    delivered = [row for row, (status, _) in rows.items() if status == "done"]
    assert not [row for row, (status, _) in rows.items() if status == "running"], "the restart ends what was running"
    charged = len(delivered) * busy_server.PRICE
    assert ask(path, "SELECT balance FROM account") == [(BALANCE - charged,)]
    assert ask(path, "SELECT sum(credits) FROM charges") == [(charged,)]
    answers = {row for (row,) in ask(path, "SELECT key FROM idempotency WHERE answer IS NOT NULL")}
    assert answers == set(delivered), "an answer is kept with its charge"


async def judge_pictures(folder: Path) -> None:
    """After a restart: as many pictures as rows that name them, and each of them whole."""
    records = await open_sqlite(folder / "records.db", serve=True, now_ms=busy_server.now_ms())
    files = await LocalFiles.start(folder / "files")
    try:
        assert not list((folder / "files").rglob("*.part")), "temporary files of the dead are removed"
        named = {name for (name,) in ask(folder / "records.db", "SELECT name FROM pictures")}
        stored = {name for one in await files.folders() for name in await files.names(one)}
        assert named <= stored, "no row without its picture"
        assert await remove_unknown(files, records.history, str(folder)) == len(stored - named)
        assert {name for one in await files.folders() for name in await files.names(one)} == named
        for name in stored & named:
            with (await files.open(str(name))).stream as stream:
                data = stream.read()
            assert hashlib.sha256(data[:-32]).digest() == data[-32:], f"{name} is half a file"
    finally:
        await files.close()
        await records.close()


def test_killed_twenty_times_and_nothing_is_lost(tmp_path: Path) -> None:
    async def prepare() -> None:
        records = await open_sqlite(tmp_path / "records.db")
        await records.ledger.set_account(BALANCE, 0, 0)
        await records.close()

    asyncio.run(prepare())
    print(f"KILL_MOMENTS={MOMENTS}")
    told, moments = Acknowledged(), random.Random(MOMENTS)
    for run in range(KILLS):
        seen = len(told.status)
        kill_one(tmp_path, run, told, moments.uniform(0, 0.08))
        if run < EARLY_KILLS:
            kill_one(tmp_path, KILLS + run, told, moments.uniform(0.05, 0.3), early=True)
        assert len(told.status) > seen, "it was killed before it had said anything"
        asyncio.run(judge_pictures(tmp_path))
        judge_database(tmp_path / "records.db", told)
    assert {"done", "failed"} == set(told.status.values())


def test_the_judge_sees_what_is_missing(tmp_path: Path) -> None:
    """The test above would fail for a lost row, a lost file, half a file and a wrong charge."""

    async def prepare() -> None:
        records = await open_sqlite(tmp_path / "records.db")
        await records.ledger.set_account(BALANCE, 0, 0)
        await records.close()

    asyncio.run(prepare())
    told = Acknowledged()
    while "done" not in told.status.values():
        kill_one(tmp_path, len(told.status), told, 0.02)
    asyncio.run(judge_pictures(tmp_path))
    judge_database(tmp_path / "records.db", told)
    with pytest.raises(AssertionError):
        judge_database(tmp_path / "records.db", Acknowledged(told.status | {"never": "done"}))
    delivered = [name for names in told.files.values() for name in names]
    picture = tmp_path / "files" / delivered[0]
    whole = picture.read_bytes()
    picture.write_bytes(whole[:-1])
    with pytest.raises(AssertionError, match="half a file"):
        asyncio.run(judge_pictures(tmp_path))
    picture.unlink()
    with pytest.raises(AssertionError, match="without its picture"):
        asyncio.run(judge_pictures(tmp_path))
    with closing(sqlite3.connect(tmp_path / "records.db")) as connection, connection:
        connection.execute("UPDATE account SET balance = balance - 1")
    with pytest.raises(AssertionError):
        judge_database(tmp_path / "records.db", told)
