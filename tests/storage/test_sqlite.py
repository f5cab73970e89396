"""The database on disk: its schema, its faults, its copies, and who may use it at once."""

import asyncio
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from tests.contract.samples import NOW, done, key, request
from zturbo.errors import StorageError
from zturbo.storage import database
from zturbo.storage.database import Database, Migration, migrate, migrations_in, shipped_migrations
from zturbo.storage.disk import Turn
from zturbo.storage.records import Answer, KeyLimit
from zturbo.storage.sqlite import SqliteRecords, open_sqlite

Limited = Callable[[int], AbstractContextManager[None]]


def ask(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def schema(path: Path) -> list[tuple[object, ...]]:
    return ask(path, "SELECT type, name, sql FROM sqlite_schema ORDER BY 1, 2")


def change(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


async def delivered(records: SqliteRecords, credits: int = 1) -> str:
    row = request()
    assert await records.ledger.start(row, credits, None) is None
    assert await records.ledger.finish(row.request_id, done(credits))
    return row.request_id


async def test_what_was_written_is_there_after_reopening(tmp_path: Path) -> None:
    records = await open_sqlite(tmp_path / "new" / "folder" / "records.db")
    await records.keys.add(key(limit=KeyLimit("month", 7)))
    request_id = await delivered(records)
    await records.close()
    await records.close()
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir() if "-" in path.name] == [], "no log is left"
    again = await open_sqlite(tmp_path / "new" / "folder" / "records.db")
    assert await again.keys.get("0123abcd") == key(limit=KeyLimit("month", 7))
    assert (await again.ledger.spending("0123abcd", "month", NOW)).spent == 1
    assert await again.ledger.get(request_id) is not None
    await again.close()


async def test_only_its_user_may_read_it(tmp_path: Path) -> None:
    records = await open_sqlite(tmp_path / "data" / "records.db")
    await delivered(records)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data").iterdir()}
    assert set(modes) == {"records.db", "records.db-wal", "records.db-shm", "records.db.lock"}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    await records.close()


async def test_the_connections_are_as_promised(tmp_path: Path) -> None:
    opened = await asyncio.to_thread(Database.open, tmp_path / "r.db", serve=False)

    def settings(connection: sqlite3.Connection) -> dict[str, object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "trusted_schema", "busy_timeout", "query_only",
                 "wal_autocheckpoint", "mmap_size")  # fmt: skip
        found = {name: connection.execute(f"PRAGMA {name}").fetchone() for name in names}
        return {name: value[0] if value else None for name, value in found.items()}

    writer, reader = await opened.write(settings), await opened.read(settings)
    both = {"journal_mode": "wal", "foreign_keys": 1, "trusted_schema": 0, "busy_timeout": 5000, "mmap_size": 0}
    assert writer == both | {"synchronous": 2, "query_only": 0, "wal_autocheckpoint": 1000}
    assert reader == both | {"synchronous": 2, "query_only": 1, "wal_autocheckpoint": 0}
    with pytest.raises(StorageError, match="readonly"):
        await opened.read(lambda connection: connection.execute("DELETE FROM keys"))
    threads = {await opened.write(lambda _: threading.current_thread().name) for _ in range(5)}
    assert threads == {"zturbo-write"}
    await opened.close()


async def test_a_mistake_of_ours_stays_itself_and_spoils_nobody_elses_write(tmp_path: Path) -> None:
    opened = await asyncio.to_thread(Database.open, tmp_path / "r.db", serve=False)

    def insert(name: str) -> Callable[[sqlite3.Connection], object]:
        query = "INSERT INTO charges VALUES (?, 1, 1)"
        return lambda connection: connection.execute(query, (name,))

    def broken(connection: sqlite3.Connection) -> None:
        insert("broken")(connection)
        raise RuntimeError("ours")

    jobs = [insert("a"), broken, insert("b"), insert("a"), lambda connection: connection.execute("SELECT nonsense")]
    results = await asyncio.gather(*map(opened.write, jobs), return_exceptions=True)
    kinds = [type(result) for result in results]
    assert kinds == [sqlite3.Cursor, RuntimeError, sqlite3.Cursor, sqlite3.IntegrityError, sqlite3.OperationalError]
    found = await opened.read(lambda connection: connection.execute("SELECT key FROM charges").fetchall())
    assert found == [("a",), ("b",)]
    await opened.close()


async def test_a_commit_that_fails_fails_all_of_its_jobs(tmp_path: Path) -> None:
    opened = await asyncio.to_thread(Database.open, tmp_path / "r.db", serve=False)

    def unfounded(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA defer_foreign_keys = ON")
        connection.execute("INSERT INTO pictures VALUES ('p', 'nobody', 0)")

    begun, hold = threading.Event(), threading.Event()

    def slow(_: object) -> bool:
        begun.set()
        return hold.wait(10)

    first = asyncio.create_task(opened.write(slow))  # the others wait together behind it
    await asyncio.to_thread(begun.wait, 10)
    batch = [
        asyncio.create_task(opened.write(job))
        for job in (lambda connection: connection.execute("INSERT INTO charges VALUES ('a', 1, 1)"), unfounded)
    ]
    await asyncio.sleep(0)
    hold.set()
    await first
    for result in await asyncio.gather(*batch, return_exceptions=True):
        assert isinstance(result, sqlite3.IntegrityError)
    count = "SELECT (SELECT count(*) FROM charges) + (SELECT count(*) FROM pictures)"
    assert await opened.write(lambda connection: connection.execute(count).fetchone()) == (0,)
    await opened.close()


async def test_a_cancelled_caller_has_written_all_the_same(tmp_path: Path) -> None:
    opened = await asyncio.to_thread(Database.open, tmp_path / "r.db", serve=False)
    hold = threading.Event()
    first = asyncio.create_task(opened.write(lambda _: hold.wait(10)))
    second = asyncio.create_task(
        opened.write(lambda connection: connection.execute("INSERT INTO charges VALUES ('a', 1, 1)"))
    )
    await asyncio.sleep(0)
    second.cancel()
    hold.set()
    with pytest.raises(asyncio.CancelledError):
        await second
    await first
    await opened.write(lambda _: None)
    rows = await opened.read(lambda connection: connection.execute("SELECT key FROM charges").fetchall())
    assert rows == [("a",)]
    await opened.close()


async def test_the_event_loop_runs_on_while_a_write_waits(tmp_path: Path) -> None:
    opened = await asyncio.to_thread(Database.open, tmp_path / "r.db", serve=False)
    hold = threading.Event()
    waiting = asyncio.create_task(opened.write(lambda _: hold.wait(10)))
    for _ in range(3):
        await opened.read(lambda connection: connection.execute("SELECT 1").fetchone())
    assert not waiting.done()
    hold.set()
    assert await waiting
    await opened.close()


async def test_a_key_is_found_while_all_of_the_usage_is_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, connect = tmp_path / "r.db", database._connect
    records = await open_sqlite(path)
    await records.keys.add(key())
    await records.close()
    change(path, """WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000)
        INSERT INTO generations (request_id, inference_id, created_ms, origin, status, held, credits, seconds)
        SELECT i, i, i, 'api', 'done', 0, 0, '{}' FROM n""")  # fmt: skip
    begun, hold = threading.Event(), threading.Event()

    def wait() -> bool:
        begun.set()
        return not hold.wait(60)

    def held_where_long(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
        connection = connect(path, read_only=read_only)
        connection.set_progress_handler(wait, 10_000)  # instructions: a key takes some tens, a sum many per row
        return connection

    monkeypatch.setattr(database, "_connect", held_where_long)
    records = await open_sqlite(path)
    scans = [asyncio.create_task(call) for _ in range(3) for call in
             (records.history.usage(0, NOW), records.history.logs(3000))]  # fmt: skip
    try:
        await asyncio.to_thread(begun.wait, 10)
        async with asyncio.timeout(30):
            assert await records.keys.get("0123abcd") == key()
            assert await records.keys.list() == (key(),), "else nobody could revoke one"
            await records.ledger.spending("0123abcd", "month", NOW)
            await records.ledger.account()
            assert await records.ledger.get("nobody") is None
        assert not any(scan.done() for scan in scans)
    finally:
        hold.set()
        await asyncio.gather(*scans)
        await records.close()


async def test_closing_finishes_what_waits_and_refuses_what_comes(tmp_path: Path) -> None:
    records = await open_sqlite(tmp_path / "r.db")
    waiting = [asyncio.create_task(delivered_row(records)) for _ in range(100)]
    await asyncio.sleep(0)
    await records.close()
    assert await asyncio.gather(*waiting) == [None] * 100
    assert ask(tmp_path / "r.db", "SELECT count(*) FROM generations") == [(100,)]
    for call in (records.keys.get("0123abcd"), records.keys.delete("0123abcd")):
        with pytest.raises(StorageError, match="is closed"):
            await call


async def delivered_row(records: SqliteRecords) -> object:
    return await records.ledger.start(request(), 1, None)


# Schema


NEWEST = len(shipped_migrations())


def test_migrations_are_numbered() -> None:
    assert [step.version for step in shipped_migrations()] == [1, 2, 3, 4]
    with pytest.raises(AssertionError, match="without a gap"):
        migrations_in([("0001_a.sql", ""), ("0003_b.sql", "")])


async def test_an_older_database_is_brought_up_to_date(tmp_path: Path) -> None:
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    shipped = shipped_migrations()
    records = await open_sqlite(old, migrations=shipped[:1])
    request_id = await delivered(records)
    await records.close()
    assert ask(old, "PRAGMA user_version") == [(1,)]
    await (await open_sqlite(new)).close()
    for _ in range(2):
        records = await open_sqlite(old)
        assert await records.ledger.get(request_id) is not None
        assert (await records.idempotency.reserve("o", request_id, b"d", NOW, NOW + 1)).state in ("new", "running")
        await records.close()
        assert ask(old, "PRAGMA user_version") == [(NEWEST,)]
        assert schema(old) == schema(new)


async def test_opening_what_is_up_to_date_writes_nothing(tmp_path: Path) -> None:
    """On a full disk records must still be read."""
    path = tmp_path / "r.db"
    await (await open_sqlite(path)).close()
    before = path.read_bytes()
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    migrate(connection, shipped_migrations(), path)
    connection.close()
    assert path.read_bytes() == before


async def test_keys_of_an_older_database_may_still_leave_the_safety_checker_out(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    await (await open_sqlite(path, migrations=shipped_migrations()[:2])).close()
    for prefix, scopes in (("00000000", "model:image"), ("11111111", "management model:image"),
                           ("22222222", "management")):  # fmt: skip
        columns = "(prefix, digest, name, created_ms, scopes, enabled)"
        change(path, f"INSERT INTO keys {columns} VALUES ('{prefix}', x'00', 'a', 0, '{scopes}', 1)")
    records = await open_sqlite(path)
    assert [one.scopes for one in await records.keys.list()] == [
        {"model:image", "safety:off"}, {"model:image", "management", "safety:off"}, {"management"},
    ]  # fmt: skip
    await records.close()


async def test_a_step_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    await (await open_sqlite(path)).close()
    before = schema(path)
    broken = Migration(NEWEST + 1, "more", "CREATE TABLE a (b);\nINSERT INTO nowhere\nVALUES (1);\n")
    with pytest.raises(sqlite3.OperationalError, match="no such table: nowhere"):
        await open_sqlite(path, migrations=[*shipped_migrations(), broken])
    assert schema(path) == before
    await (await open_sqlite(path)).close()


async def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    await (await open_sqlite(path)).close()
    change(path, "PRAGMA user_version = 7")
    told = rf"written by a newer zturbo: its schema has version 7, this one knows {NEWEST}"
    with pytest.raises(StorageError, match=told):
        await open_sqlite(path)
    assert ask(path, "PRAGMA user_version") == [(7,)]


async def test_somebody_elses_database_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "browser.db"
    change(path, "CREATE TABLE bookmarks (url)")
    before = path.read_bytes()
    with pytest.raises(StorageError, match="database of another program"):
        await open_sqlite(path)
    assert path.read_bytes() == before


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    path.write_bytes(b"not a database at all, but long enough to look at" * 100)
    with pytest.raises(StorageError, match="file is not a database"):
        await open_sqlite(path)
    with pytest.raises(StorageError, match="cannot use"):
        await open_sqlite(tmp_path)
    with pytest.raises(StorageError, match="cannot use"):
        await open_sqlite(path / "below" / "r.db")


# Several at once


async def test_one_server_only(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    server = await open_sqlite(path, serve=True)
    with pytest.raises(StorageError, match="another server uses"):
        await open_sqlite(path, serve=True)
    visitor = await open_sqlite(path)
    request_id = await delivered(visitor)
    assert await server.ledger.get(request_id) is not None
    await visitor.close()
    await delivered(server)
    await server.close()
    await (await open_sqlite(path, serve=True)).close()


async def test_two_writers_take_turns(tmp_path: Path) -> None:
    both = [await open_sqlite(tmp_path / "r.db") for _ in range(2)]
    limit = KeyLimit("no_reset", 10)
    starts = (records.ledger.start(request(), 1, limit) for _ in range(15) for records in both)
    refused = await asyncio.gather(*starts)
    assert refused.count(None) == 10
    for records in both:
        await records.close()
    assert ask(tmp_path / "r.db", "PRAGMA integrity_check") == [("ok",)]


async def test_who_waits_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    records = await open_sqlite(tmp_path / "r.db")
    with closing(sqlite3.connect(tmp_path / "r.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="database is locked") as caught:
            await delivered(records)
        assert (caught.value.status, caught.value.hint) == (503, "another program keeps the database locked")
        other.execute("ROLLBACK")
    turn = Turn(tmp_path / "r.db.lock")
    assert turn.take(0)
    with pytest.raises(StorageError, match="database is locked"):
        await delivered(records)
    turn.close()
    await delivered(records)
    await records.close()


async def test_what_a_killed_server_left_running_ends_as_failed(tmp_path: Path) -> None:
    path, row = tmp_path / "r.db", request()
    records = await open_sqlite(path)
    await records.ledger.set_account(100, 0, NOW)
    await records.ledger.start(row, 60, KeyLimit("day", 60))
    for name in ("running", "finished"):
        await records.idempotency.reserve("o", name, b"d", NOW, NOW + 9)
    await records.idempotency.finish(Answer("o", "finished", b"{}"))
    await records.close()

    visitor = await open_sqlite(path)
    assert (await visitor.ledger.account()).held == 60, "a command beside the server ends nothing"
    await visitor.close()

    server = await open_sqlite(path, serve=True, now_ms=NOW + 5)
    ended = await server.ledger.get(row.request_id)
    assert ended is not None
    assert (ended.status, ended.error, ended.ended_ms, ended.held) == ("failed", "server_stopped", NOW + 5, 0)
    account = await server.ledger.account()
    assert (account.balance, account.held) == (100, 0)
    assert not await server.ledger.finish(row.request_id, done(60))
    states = [
        (await server.idempotency.reserve("o", name, b"d", NOW, NOW + 9)).state for name in ("running", "finished")
    ]
    assert states == ["new", "finished"]
    await server.close()


# Faults


async def test_a_full_disk_is_told_and_gets_well_by_itself(tmp_path: Path, file_size_limit: Limited) -> None:
    records = await open_sqlite(tmp_path / "r.db")
    before = await delivered(records)
    await records.idempotency.reserve("o", "k", b"d", NOW, NOW + 1)
    size, row = (tmp_path / "r.db-wal").stat().st_size, request()
    with file_size_limit(size + 5000):
        with pytest.raises(
            StorageError, match=r"cannot use .*r\.db: (disk I/O error|database or disk is full)"
        ) as caught:
            await records.idempotency.finish(Answer("o", "k", bytes(100_000)))
        assert caught.value.hint
        with pytest.raises(StorageError):
            await records.ledger.start(row, 1, None)
        assert await records.ledger.get(before) is not None, "reading goes on"
        assert await records.ledger.get(row.request_id) is None
    await delivered(records)
    assert await records.idempotency.finish(Answer("o", "k", bytes(100_000)))
    await records.close()
    assert ask(tmp_path / "r.db", "PRAGMA integrity_check") == [("ok",)]


async def test_sqlites_own_word_for_full(tmp_path: Path) -> None:
    opened = await asyncio.to_thread(Database.open, tmp_path / "r.db", serve=False)
    records = SqliteRecords(opened)
    pages = await opened.write(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
    await opened.write(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone())
    await records.idempotency.reserve("o", "k", b"d", NOW, NOW + 1)
    with pytest.raises(StorageError, match="database or disk is full") as caught:
        await records.idempotency.finish(Answer("o", "k", bytes(100_000)))
    assert caught.value.hint == "make room on the disk; nothing else need be done"
    await opened.write(lambda connection: connection.execute("PRAGMA max_page_count = 100000").fetchone())
    assert await records.idempotency.finish(Answer("o", "k", bytes(100_000)))
    await records.close()


async def test_a_damaged_page_is_told(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    await (await open_sqlite(path)).close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    records = await open_sqlite(path)
    with pytest.raises(StorageError, match="malformed") as caught:
        await records.keys.list()
    assert "replace the whole data folder" in caught.value.hint, "the old -wal would be read into a new file"
    with pytest.raises(StorageError, match="malformed"):
        await delivered(records)
    await records.close()


# Copies


async def test_a_backup_while_writing_is_one_moment(tmp_path: Path) -> None:
    records = await open_sqlite(tmp_path / "r.db", serve=True)
    await records.ledger.set_account(1_000_000, 0, NOW)
    stop = False

    async def write() -> int:
        count = 0
        while not stop:
            await delivered(records, 7)
            count += 1
        return count

    writers = [asyncio.create_task(write()) for _ in range(4)]
    copies = [tmp_path / f"copy{number}.db" for number in range(3)]
    for copy in copies:
        await records.backup(copy)
    stop = True
    written = sum(await asyncio.gather(*writers))
    await records.close()

    counts = []
    for copy in copies:
        assert ask(copy, "PRAGMA integrity_check") == [("ok",)]
        ((done_rows, credits),) = ask(copy, "SELECT count(*), coalesce(sum(credits), 0) FROM generations WHERE credits")
        ((balance,),) = ask(copy, "SELECT balance FROM account")
        assert 1_000_000 - credits == balance, "row and charge belong together"  # type: ignore[operator]
        counts.append(done_rows)
        restored = await open_sqlite(copy, serve=True, now_ms=NOW)
        await delivered(restored)
        await restored.close()
    assert counts == sorted(counts)  # type: ignore[type-var]
    assert counts[-1] <= written  # type: ignore[operator]
    assert not list(tmp_path.glob(".*.part*"))


async def test_a_backup_overwrites_nothing_and_leaves_nothing(tmp_path: Path, file_size_limit: Limited) -> None:
    records = await open_sqlite(tmp_path / "r.db")
    await delivered(records)
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(StorageError, match="exists already"):
        await records.backup(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"
    with pytest.raises(StorageError):
        await records.backup(tmp_path / "nowhere" / "copy.db")
    with file_size_limit(10_000), pytest.raises(StorageError):
        await records.backup(tmp_path / "copy.db")
    assert not list(tmp_path.glob("*copy*"))
    assert not list(tmp_path.glob(".*.part*"))
    await records.backup(tmp_path / "copy.db")
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600
    await records.close()


def test_importing_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, zturbo.storage.sqlite, zturbo.storage.local, zturbo.storage.memory, zturbo.keys\n"
    code += "sys.exit(bool({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
