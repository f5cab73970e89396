"""Records in one SQLite file. The connections are database.py's; here is the SQL, one class per seam."""

import asyncio
import json
import sqlite3
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from zturbo.storage.cached import CachedKeys
from zturbo.storage.database import Database, Migration
from zturbo.storage.records import (
    DAY_MS,
    Account,
    Answer,
    Ending,
    Generation,
    GroupBy,
    Key,
    KeyLimit,
    Keys,
    LogPage,
    Refusal,
    Request,
    Reservation,
    Retention,
    Screening,
    Spending,
    Status,
    Unchanged,
    UsageRow,
    assert_credits,
    changed_amounts,
    refusal,
    unasked,
    window_start_ms,
)


def _insert(table: str, columns: Sequence[str]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({_marks(len(columns))})"


def _marks(count: int) -> str:
    return ", ".join("?" * count)


_REQUEST = (
    "request_id", "inference_id", "created_ms", "origin", "key", "client_request_id", "model", "width", "height",
    "steps", "images",
)  # fmt: skip
_ROW = (*_REQUEST, "status", "held", "credits", "ended_ms", "error", "seconds")
_READ = (*_ROW, "safety", "files")
_KEY = (
    "prefix", "digest", "name", "created_ms", "updated_ms", "scopes", "enabled", "expires_ms", "retention", "threshold",
)  # fmt: skip
_SELECT_ROWS = f"""SELECT {", ".join(_ROW)}, safety, (
    SELECT json_group_array(name) FROM (
        SELECT name FROM pictures WHERE pictures.request_id = generations.request_id ORDER BY position
    )
) FROM generations"""
_INSERT_ROW = f"{_insert('generations', _ROW)} ON CONFLICT (request_id) DO NOTHING"
_INSERT_PICTURE = _insert("pictures", ("name", "request_id", "position"))
_ADD_CHARGE = f"{_insert('charges', ('key', 'day', 'credits'))} ON CONFLICT DO UPDATE SET credits = credits + ?"
_SELECT_KEYS = f"SELECT {', '.join(_KEY)} FROM keys"
_INTERRUPTED = "server_stopped"
_NAMES_PER_QUERY = 500
_LARGEST = 2**63 - 1


class SqliteRecords:
    """All seams of one database file. Made by `open_sqlite`."""

    def __init__(self, database: Database) -> None:
        self.keys: Keys = SqliteKeys(database)
        self.ledger = SqliteLedger(database)
        self.history = SqliteHistory(database)
        self.idempotency = SqliteIdempotency(database)
        self._database = database

    async def backup(self, target: Path) -> None:
        """Copy the database to a new file while it is used; back up the pictures afterwards, so that none is missing.

        Raises:
            StorageError: the target exists, or cannot be written.
        """
        await self._database.backup(target)

    async def close(self) -> None:
        """Finish what was asked for, then let go. Calling it again does nothing."""
        await self._database.close()


async def open_sqlite(
    path: Path, *, serve: bool = False, now_ms: int = 0, migrations: Sequence[Migration] | None = None
) -> SqliteRecords:
    """Open or make a database.

    Args:
        path: the file.
        serve: be its only server. Requests that a killed server left running end as failed, with error
            `server_stopped`, and their holds and idempotency keys are free again. Keys are kept at hand for a second.
        now_ms: when they ended, if serving.
        migrations: as `Database.open`.

    Raises:
        StorageError: as `Database.open`.
    """
    database = await asyncio.to_thread(Database.open, path, serve=serve, migrations=migrations)
    records = SqliteRecords(database)
    if serve:
        records.keys = CachedKeys(records.keys)
        try:
            await database.write(lambda connection: _end_interrupted(connection, now_ms))
        except BaseException:
            await database.close()
            raise
    return records


class SqliteKeys:
    """Implements `Keys`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, key: Key) -> bool:
        def job(connection: sqlite3.Connection) -> bool:
            added = (
                connection.execute(f"{_insert('keys', _KEY)} ON CONFLICT DO NOTHING", _key_values(key)).rowcount == 1
            )
            if added:  # what an earlier key of this prefix spent is not this one's
                connection.execute("DELETE FROM charges WHERE key = ?", (key.prefix,))
            return added

        return await self._database.write(job)

    async def get(self, prefix: str) -> Key | None:
        return await self._database.read(lambda connection: _get_key(connection, prefix))

    async def list(self) -> tuple[Key, ...]:
        query = f"{_SELECT_KEYS} ORDER BY created_ms, prefix"
        return await self._database.read(lambda connection: tuple(map(_key, connection.execute(query))))

    async def update(self, prefix: str, change: Callable[[Key], Key]) -> Key | None:
        def job(connection: sqlite3.Connection) -> Key | None:
            key = _get_key(connection, prefix)
            if key is None:
                return None
            changed = change(key)
            assert (changed.prefix, changed.digest) == (key.prefix, key.digest), "prefix and digest stay"
            columns = ", ".join(f"{column} = ?" for column in _KEY)
            connection.execute(f"UPDATE keys SET {columns} WHERE prefix = ?", (*_key_values(changed), prefix))
            return changed

        return await self._database.write(job)

    async def delete(self, prefix: str) -> bool:
        query = "DELETE FROM keys WHERE prefix = ?"
        return await self._database.write(lambda connection: connection.execute(query, (prefix,)).rowcount == 1)


class SqliteLedger:
    """Implements `Ledger`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def start(self, request: Request, credits: int, limit: KeyLimit | None) -> Refusal | None:
        assert_credits(credits)
        return await self._database.write(lambda connection: _start(connection, request, credits, limit))

    async def finish(self, request_id: str, ending: Ending) -> bool:
        return await self._database.write(lambda connection: _finish(connection, request_id, ending))

    async def reject(self, request: Request, ending: Ending) -> None:
        assert ending.status != "done", "what never began was not delivered"
        values = (ending.status, 0, 0, ending.ended_ms, ending.error, _seconds(ending))
        await self._database.write(lambda connection: _insert_row(connection, request, values))

    async def get(self, request_id: str) -> Generation | None:
        query = f"{_SELECT_ROWS} WHERE request_id = ?"

        def job(connection: sqlite3.Connection) -> Generation | None:
            row = connection.execute(query, (request_id,)).fetchone()
            return _generation(row) if row else None

        return await self._database.read(job)

    async def spending(self, key: str, retention: Retention, now_ms: int) -> Spending:
        return await self._database.read(lambda connection: _spending(connection, key, retention, now_ms))

    async def account(self) -> Account:
        return await self._database.read(_account)

    async def set_account(self, balance: int | Unchanged | None, low_threshold: int | Unchanged, now_ms: int) -> None:
        changes = changed_amounts(balance, low_threshold) | {"updated_ms": now_ms}
        query = f"UPDATE account SET {', '.join(f'{column} = ?' for column in changes)}"
        await self._database.write(lambda connection: connection.execute(query, tuple(changes.values())))

    async def top_up(self, credits: int, now_ms: int) -> Account:
        assert_credits(credits)

        def job(connection: sqlite3.Connection) -> Account:
            connection.execute("UPDATE account SET balance = balance + ?, updated_ms = ?", (credits, now_ms))
            return _account(connection)

        return await self._database.write(job)


class SqliteHistory:
    """Implements `History`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def usage(
        self, start_ms: int, end_ms: int, group_by: GroupBy = "day", key: str | None = None
    ) -> tuple[UsageRow, ...]:
        day = f"date(created_ms / {DAY_MS} * 86400, 'unixepoch')" if "day" in group_by else "NULL"
        model = "model" if "model" in group_by else "NULL"
        where, values = _where(key, start_ms, end_ms)
        query = f"""SELECT {day}, {model}, count(*), sum(status = 'done'), sum(status NOT IN ('done', 'running')),
                sum(CASE status WHEN 'done' THEN coalesce(images, 0) ELSE 0 END), sum(credits)
            FROM generations {where} GROUP BY 1, 2 ORDER BY 1, 2"""
        return await self._database.scan(
            lambda connection: tuple(UsageRow(**_named(UsageRow, row)) for row in connection.execute(query, values))
        )

    async def logs(
        self,
        limit: int,
        offset: int = 0,
        key: str | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        *,
        model: str | None = None,
        statuses: Collection[Status] | None = None,
    ) -> LogPage:
        assert limit >= 0, f"negative limit {limit}"
        assert offset >= 0, f"negative offset {offset}"
        where, values = _where(key, start_ms, end_ms, model, statuses)
        query = f"{_SELECT_ROWS} {where} ORDER BY created_ms DESC, number DESC LIMIT ? OFFSET ?"

        def job(connection: sqlite3.Connection) -> LogPage:
            (total,) = connection.execute(f"SELECT count(*) FROM generations {where}", values).fetchone()
            rows = connection.execute(query, (*values, _storable(limit), _storable(offset)))
            return LogPage(tuple(map(_generation, rows)), total, offset)

        return await self._database.scan(lambda connection: _at_one_moment(connection, job))

    async def known_files(self, names: Sequence[str]) -> frozenset[str]:
        def job(connection: sqlite3.Connection) -> frozenset[str]:
            known: set[str] = set()
            for first in range(0, len(names), _NAMES_PER_QUERY):
                some = names[first : first + _NAMES_PER_QUERY]
                query = f"SELECT name FROM pictures WHERE name IN ({_marks(len(some))})"
                known.update(name for (name,) in connection.execute(query, some))
            return frozenset(known)

        return await self._database.scan(job)


_EXPIRED = "FROM idempotency WHERE expires_ms <= ? AND answer IS NOT NULL"


class SqliteIdempotency:
    """Implements `Idempotency`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def reserve(self, owner: str, key: str, digest: bytes, now_ms: int, expires_ms: int) -> Reservation:
        def job(connection: sqlite3.Connection) -> Reservation:
            where = "WHERE owner = ? AND key = ?"
            over = f"SELECT expires_ms FROM idempotency {where} AND expires_ms <= ? AND answer IS NOT NULL"
            for (ended_ms,) in connection.execute(over, (owner, key, now_ms)).fetchall():
                aside = f"UPDATE idempotency SET key = ? {where}"
                connection.execute(aside, (unasked(key, ended_ms), owner, key))
            row = connection.execute(f"SELECT digest, answer FROM idempotency {where}", (owner, key)).fetchone()
            if row is None:
                columns = ("owner", "key", "digest", "expires_ms")
                connection.execute(_insert("idempotency", columns), (owner, key, digest, expires_ms))
                return Reservation("new")
            if row[0] != digest:
                return Reservation("other_body")
            return Reservation("running") if row[1] is None else Reservation("finished", row[1])

        return await self._database.write(job)

    async def finish(self, answer: Answer) -> bool:
        return await self._database.write(lambda connection: _keep_answer(connection, answer))

    async def release(self, owner: str, key: str) -> None:
        query = "DELETE FROM idempotency WHERE owner = ? AND key = ? AND answer IS NULL"
        await self._database.write(lambda connection: connection.execute(query, (owner, key)))

    async def expired(self, now_ms: int) -> tuple[bytes, ...]:
        query = f"SELECT answer {_EXPIRED}"
        return await self._database.scan(
            lambda connection: tuple(answer for (answer,) in connection.execute(query, (now_ms,)))
        )

    async def forget(self, now_ms: int) -> None:
        await self._database.write(lambda connection: connection.execute(f"DELETE {_EXPIRED}", (now_ms,)))


def _start(connection: sqlite3.Connection, request: Request, credits: int, limit: KeyLimit | None) -> Refusal | None:
    refused = _refusal(connection, request, credits, limit)
    if refused is None:
        _insert_row(connection, request, ("running", credits, 0, None, None, "{}"))
    else:
        _insert_row(connection, request, ("rejected", 0, 0, request.created_ms, refused, "{}"))
    return refused


def _refusal(connection: sqlite3.Connection, request: Request, credits: int, limit: KeyLimit | None) -> Refusal | None:
    account = _account(connection)
    spending = None
    if limit is not None:
        assert request.key is not None, "a limit without a key"
        spending = _spending(connection, request.key, limit.retention, request.created_ms)
    return refusal(
        credits,
        threshold=limit.threshold if limit else None,
        spent=spending.spent if spending else 0,
        held=spending.held if spending else 0,
        balance=account.balance,
        held_by_all=account.held,
    )


def _finish(connection: sqlite3.Connection, request_id: str, ending: Ending) -> bool:
    query = "SELECT key, held, created_ms FROM generations WHERE request_id = ? AND status = 'running'"
    row = connection.execute(query, (request_id,)).fetchone()
    if row is None:
        return False
    key, held, created_ms = row
    assert ending.credits <= held, f"{ending.credits} credits charged where {held} were held"
    ended_ms = max(ending.ended_ms, created_ms)  # a clock that was set back must not charge a window that is past
    found = (json.dumps(asdict(ending.safety)),) if ending.safety is not None else ()
    connection.execute(
        "UPDATE generations SET status = ?, held = 0, credits = ?, ended_ms = ?, error = ?, seconds = ?"
        f"{', safety = ?' if found else ''} WHERE request_id = ?",
        (ending.status, ending.credits, ended_ms, ending.error, _seconds(ending), *found, request_id),
    )
    if ending.credits:
        _charge(connection, key, ending.credits, ended_ms)
    files = [(name, request_id, position) for position, name in enumerate(ending.files)]
    connection.executemany(_INSERT_PICTURE, files)
    if ending.answer is not None:
        _keep_answer(connection, ending.answer)
    return True


def _charge(connection: sqlite3.Connection, key: str | None, credits: int, ended_ms: int) -> None:
    connection.execute("UPDATE account SET balance = max(0, balance - ?), updated_ms = ?", (credits, ended_ms))
    if key is not None:
        connection.execute(_ADD_CHARGE, (key, ended_ms // DAY_MS, credits, credits))


def _end_interrupted(connection: sqlite3.Connection, now_ms: int) -> None:
    connection.execute(
        "UPDATE generations SET status = 'failed', held = 0, ended_ms = max(?, created_ms), error = ?"
        " WHERE status = 'running'",
        (now_ms, _INTERRUPTED),
    )
    connection.execute("DELETE FROM idempotency WHERE answer IS NULL")


def _keep_answer(connection: sqlite3.Connection, answer: Answer) -> bool:
    query = "UPDATE idempotency SET answer = ? WHERE owner = ? AND key = ? AND answer IS NULL"
    return connection.execute(query, (answer.body, answer.owner, answer.key)).rowcount == 1


def _insert_row(connection: sqlite3.Connection, request: Request, rest: tuple[object, ...]) -> None:
    """Args: rest: the values of the columns that `Request` does not have."""
    values = (*(getattr(request, name) for name in _REQUEST), *rest)
    added = connection.execute(_INSERT_ROW, values).rowcount
    assert added == 1, f"request id {request.request_id!r} was used before"


def _account(connection: sqlite3.Connection) -> Account:
    query = """SELECT balance, low_threshold, updated_ms,
        (SELECT coalesce(sum(held), 0) FROM generations WHERE status = 'running') FROM account"""
    balance, low_threshold, updated_ms, held = connection.execute(query).fetchone()
    return Account(balance=balance, low_threshold=low_threshold, held=held, updated_ms=updated_ms)


def _spending(connection: sqlite3.Connection, key: str, retention: Retention, now_ms: int) -> Spending:
    start_ms = window_start_ms(retention, now_ms)
    query = """SELECT (SELECT coalesce(sum(credits), 0) FROM charges WHERE key = ? AND day >= ?),
        (SELECT coalesce(sum(held), 0) FROM generations WHERE key = ? AND status = 'running')"""
    spent, held = connection.execute(query, (key, start_ms // DAY_MS, key)).fetchone()
    return Spending(window_start_ms=start_ms, spent=spent, held=held)


def _get_key(connection: sqlite3.Connection, prefix: str) -> Key | None:
    row = connection.execute(f"{_SELECT_KEYS} WHERE prefix = ?", (prefix,)).fetchone()
    return _key(row) if row else None


def _key(row: tuple[Any, ...]) -> Key:
    *values, scopes, enabled, expires_ms, retention, threshold = row
    return Key(
        **dict(zip(_KEY, values, strict=False)),
        scopes=frozenset(scopes.split()),
        enabled=bool(enabled),
        expires_ms=expires_ms,
        limit=KeyLimit(retention, threshold) if retention else None,
    )


def _key_values(key: Key) -> tuple[object, ...]:
    limit = (key.limit.retention, key.limit.threshold) if key.limit else (None, None)
    scopes = " ".join(sorted(key.scopes))
    moments = key.created_ms, key.updated_ms
    return key.prefix, key.digest, key.name, *moments, scopes, key.enabled, key.expires_ms, *limit


def _generation(row: tuple[Any, ...]) -> Generation:
    values = dict(zip(_READ, row, strict=True))
    request = Request(**{name: values.pop(name) for name in _REQUEST})
    seconds, files = json.loads(values.pop("seconds")), tuple(json.loads(values.pop("files")))
    safety = _screening(values.pop("safety"))
    return Generation(request=request, seconds=seconds, files=files, safety=safety, **values)


def _seconds(ending: Ending) -> str:
    return json.dumps(dict(ending.seconds))


def _screening(text: str | None) -> Screening | None:
    if text is None:
        return None
    facts = json.loads(text)
    return Screening(**facts | {"scores": tuple(facts["scores"]), "flagged": tuple(facts["flagged"])})


def _where(
    key: str | None,
    start_ms: int | None,
    end_ms: int | None,
    model: str | None = None,
    statuses: Collection[Status] | None = None,
) -> tuple[str, tuple[object, ...]]:
    """A WHERE clause and its values; None leaves a condition out."""
    conditions: dict[str, str | int | None] = {
        "key = ?": key, "created_ms >= ?": start_ms, "created_ms < ?": end_ms, "model = ?": model,
    }  # fmt: skip
    given: dict[str, tuple[object, ...]] = {
        condition: (_storable(value),) for condition, value in conditions.items() if value is not None
    }
    if statuses is not None:
        given[f"status IN ({_marks(len(statuses))})"] = tuple(statuses)
    return (f"WHERE {' AND '.join(given)}" if given else ""), tuple(chain.from_iterable(given.values()))


def _storable(value: str | int) -> str | int:
    """An integer that SQLite can hold, so that a page or a period far away is empty and not an error."""
    return max(-_LARGEST, min(value, _LARGEST)) if isinstance(value, int) else value


def _at_one_moment(connection: sqlite3.Connection, job: Callable[[sqlite3.Connection], LogPage]) -> LogPage:
    """Run several reads on the same state of the database."""
    connection.execute("BEGIN")
    try:
        return job(connection)
    finally:
        connection.execute("ROLLBACK")


def _named(row_type: type[UsageRow], row: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(row_type.__slots__, row, strict=True))
