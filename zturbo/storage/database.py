"""One SQLite file: its one writer, its readers, its migrations and its backup. No table is named here.

All writes go through one connection on one thread. Jobs that wait together share a transaction, because a commit costs
a sync of the disk and a job does not; where one of them raises, all are run again, each in a savepoint of its own. An
acknowledged write is on the disk (synchronous=FULL).

SQLite up to 3.51.2 can damage a WAL when two connections write or checkpoint at the same instant
(https://sqlite.org/wal.html#walresetbug). So readers cannot write, only the writer checkpoints, inside its commit, and
writers of several processes (`zturbo keys` beside a server) take turns by a lock file. No memory map: a full disk must
be an error and not a signal.
"""

import asyncio
import contextlib
import errno
import os
import queue
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Self, TypeVar

from zturbo.errors import StorageError
from zturbo.pictures import sync_folder
from zturbo.storage.disk import Turn

Result = TypeVar("Result")
Job = Callable[[sqlite3.Connection], Result]

APPLICATION_ID = 0x7A747262
"""In the file's header: tells our databases from others. "ztrb"."""
BUSY_TIMEOUT_S = 5.0
"""How long a write waits for another process before it is given up."""
SCANNERS = 2
"""Threads for reads that grow with the database."""
MAX_BATCH = 64
"""Jobs of one transaction."""
WAL_LIMIT_BYTES = 64 * 2**20
"""A write-ahead log that grew past it is cut when it starts anew."""
_RESTORE = (
    "stop the server and replace the whole data folder by a backup; a -wal file that is left beside this one would be"
    " read into its replacement"
)
_HINTS = {
    "full": "make room on the disk; nothing else need be done",
    "disk I/O": "look at the disk: full, over a quota, or failing",
    "readonly": "let the server write to the file and its folder",
    "unable to open": "let the server read and write the file and its folder",
    "locked": "another program keeps the database locked",
    "malformed": _RESTORE,
    "not a database": f"choose another file; or {_RESTORE}",
}
_OS_HINTS = {
    errno.EACCES: "run this as the user that the server runs as, or let this one read and write there",
    errno.ENOENT: "make the folder above it first",
    errno.ENOTDIR: "a part of that path is a file",
    errno.ENOSPC: _HINTS["full"],
    errno.EROFS: "mount it so that it can be written to",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema."""

    version: int
    name: str
    script: str


class Database:
    """An open database. Made by `Database.open`; its methods block nobody but the caller's await."""

    def __init__(self, path: Path, writer: sqlite3.Connection, turn: Turn, serving: Turn | None) -> None:
        self.path = path
        self._writer = writer
        self._turn = turn
        self._serving = serving
        self._jobs: queue.SimpleQueue[tuple[Job[Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="zturbo-read")
        self._scanners = ThreadPoolExecutor(SCANNERS, thread_name_prefix="zturbo-scan")
        self._reading = threading.local()
        self._read_connections: list[sqlite3.Connection] = []
        self._closed = False
        self._gate = threading.Lock()
        self._thread = threading.Thread(target=self._write_all, name="zturbo-write", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: Path, *, serve: bool, migrations: Sequence[Migration] | None = None) -> Self:
        """Open or make a database and bring its schema up to date. Blocks.

        Args:
            path: the file; its folder is made where there is none.
            serve: be the only server of this database, for as long as it is open.
            migrations: all steps of the schema; those that ship with zturbo by default.

        Raises:
            StorageError: it cannot be opened or written, another server has it, it is no database of ours, or it
                was written by a newer version.
        """
        migrations = shipped_migrations() if migrations is None else migrations
        with translated(path), contextlib.ExitStack() as undo:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite would make it readable for everybody
            turn = Turn(path.with_name(path.name + ".lock"))
            undo.callback(turn.close)
            serving = None
            if serve:
                serving = Turn(path.with_name(path.name + ".server"))
                undo.callback(serving.close)
                if not serving.take(0.0):
                    raise StorageError(f"another server uses {path}", "stop it, or give this one another data folder")
            with _held(turn):
                writer = _connect(path)
                undo.callback(writer.close)
                _version(writer, path)  # before anything is changed
                writer.execute("PRAGMA journal_mode = WAL").fetchall()
                migrate(writer, migrations, path)
            sync_folder(path.parent)
            undo.pop_all()
            return cls(path, writer, turn, serving)

    async def write(self, job: Job[Result]) -> Result:
        """Run a job inside a transaction and return once it is on the disk.

        A job may be run twice, the first time undone: it changes nothing but the database. A caller
        that is cancelled while it waits stops waiting: the job is done all the same.

        Raises:
            StorageError: nothing of the job was written.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        with self._gate:
            if self._closed:
                raise StorageError(f"{self.path} is closed", "the server is shutting down")
            self._jobs.put((job, future))
        with translated(self.path):
            return await future

    async def read(self, job: Job[Result]) -> Result:
        """Run a short job on a connection that cannot write. No `scan` holds it up: a request's key is read so.

        Raises:
            StorageError: it cannot be read.
        """
        return await self._read_on(self._reader, job)

    async def scan(self, job: Job[Result]) -> Result:
        """As `read`, for a job that takes the longer the more there is."""
        return await self._read_on(self._scanners, job)

    async def _read_on(self, pool: ThreadPoolExecutor, job: Job[Result]) -> Result:
        with self._gate:
            if self._closed:
                raise StorageError(f"{self.path} is closed", "the server is shutting down")
            future = pool.submit(lambda: job(self._read_connection()))
        with translated(self.path):
            return await asyncio.wrap_future(future)

    async def backup(self, target: Path) -> None:
        """Copy the database as it is at one moment, while it is being written; the file appears whole or not at all.

        Raises:
            StorageError: the target exists, or cannot be written.
        """
        await asyncio.to_thread(self._backup, target)

    async def close(self) -> None:
        """Finish the jobs that wait, write the log back into the file and let go."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
        self._thread.join()
        self._reader.shutdown()
        self._scanners.shutdown()
        for connection in self._read_connections:
            connection.close()
        self._turn.take(BUSY_TIMEOUT_S)  # the last connection of all writes the log back; who never gets a turn is not
        self._writer.close()
        self._turn.close()
        if self._serving is not None:
            self._serving.close()

    def _read_connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._reading, "connection", None)
        if connection is None:
            connection = _connect(self.path, read_only=True)
            self._reading.connection = connection
            self._read_connections.append(connection)
        return connection

    def _write_all(self) -> None:
        """The writer's thread: batch after batch, until the None that `close` sends."""
        for batch in iter(self._next_batch, []):
            try:
                results = self._commit(batch)
            except BaseException as error:  # whoever waits must hear of it, whatever it is
                results = [error] * len(batch)
            _tell([future for _, future in batch], results)

    def _next_batch(self) -> list[tuple[Job[Any], asyncio.Future[Any]]]:
        batch = []
        item = self._jobs.get()
        while item is not None:
            batch.append(item)
            if len(batch) == MAX_BATCH or self._jobs.empty():
                return batch
            item = self._jobs.get()
        if batch:
            self._jobs.put(None)  # after this batch; nothing is put behind it once the gate is closed
        return batch

    def _commit(self, batch: list[tuple[Job[Any], asyncio.Future[Any]]]) -> list[Any]:
        """Run the jobs of one transaction; each result is what the job returned or raised."""
        with _held(self._turn):
            try:
                return self._transact(batch, self._run)
            except Exception:
                if len(batch) == 1:
                    raise
                return self._transact(batch, self._attempt)  # once more, to tell whose fault it was

    def _transact(self, batch: list[tuple[Job[Any], asyncio.Future[Any]]], run: Callable[[Job[Any]], Any]) -> list[Any]:
        """All jobs of a batch in one transaction, each by `run`; nothing of them stays if one raises."""
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            results = [run(job) for job, _ in batch]
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise
        return results

    def _run(self, job: Job[Any]) -> Any:
        return job(self._writer)

    def _attempt(self, job: Job[Any]) -> Any:
        """What a job returned, or what it raised after its own changes were undone."""
        self._writer.execute("SAVEPOINT job")
        try:
            result = job(self._writer)
        except Exception as error:
            if not self._writer.in_transaction:  # SQLite itself rolled everything back, as it may for a full disk
                raise
            self._writer.execute("ROLLBACK TO job")
            result = error
        self._writer.execute("RELEASE job")
        return result

    def _backup(self, target: Path) -> None:
        temporary = target.with_name(f".{os.urandom(8).hex()}.part")
        with translated(target):
            if target.exists():
                raise StorageError(f"{target} exists already", "name a file that does not exist")
            source = _connect(self.path, read_only=True)
            try:
                os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
                with contextlib.closing(sqlite3.connect(temporary)) as copy:
                    source.backup(copy)  # in one step, so that it is one moment
                    _check_whole(copy, self.path)
                    copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                temporary.replace(target)
                sync_folder(target.parent)
            finally:
                source.close()
                for rest in ("", "-journal", "-wal", "-shm"):
                    temporary.with_name(temporary.name + rest).unlink(missing_ok=True)


def _check_whole(copy: sqlite3.Connection, path: Path) -> None:
    """Refuse the copy of a damaged database: it would be kept in a sound one's place.

    Raises:
        StorageError: pages or indexes are damaged.
    """
    with translated(path):
        (found,) = copy.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise StorageError(f"{path} is damaged: {found}", _RESTORE)


def shipped_migrations() -> list[Migration]:
    """The steps of the schema in this version of zturbo, in order."""
    return migrations_in([(file.name, file.read_text("utf-8")) for file in _scripts()])


def migrations_in(scripts: Sequence[tuple[str, str]]) -> list[Migration]:
    """Migrations from (file name, script); names are NNNN_words.sql, counted from 1 without a gap."""
    steps = [Migration(int(name[:4]), name, script) for name, script in sorted(scripts)]
    assert [step.version for step in steps] == list(range(1, len(steps) + 1)), "migrations are numbered without a gap"
    return steps


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration], path: Path) -> None:
    """Bring a schema up to date, in one transaction: it ends at the newest version or stays what it was.

    Raises:
        StorageError: the database is not ours, or from a newer version.
    """
    newest = len(migrations)
    if _version(connection, path) == newest:  # nothing is written: reading must work on a full disk
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection, path)
        if version > newest:
            raise StorageError(
                f"{path} was written by a newer zturbo: its schema has version {version}, this one knows {newest}",
                "update zturbo, or restore a backup of the older version",
            )
        for step in migrations[version:]:
            for statement in _statements(step.script):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {newest}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite and the system raise into StorageError; our own mistakes (a wrong statement) stay themselves."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            raise
        if re.search(r"syntax error|no such (table|column)|has no column", str(error)):
            raise
        hint = next((hint for words, hint in _HINTS.items() if words in str(error)), "")
        raise StorageError(f"cannot use {path}: {error}", hint) from error
    except OSError as error:
        raise StorageError(
            f"cannot use {path}: {error.strerror or error}", _OS_HINTS.get(error.errno or 0, "")
        ) from error


def _tell(futures: list[asyncio.Future[Any]], results: list[Any]) -> None:
    """Bring results from the writer's thread to those who wait, waking each event loop once for all of them."""
    ended: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for future, result in zip(futures, results, strict=True):
        ended.setdefault(future.get_loop(), []).append((future, result))
    for loop, some in ended.items():
        with contextlib.suppress(RuntimeError):  # a loop that is closed: nobody waits on it any more
            loop.call_soon_threadsafe(_settle, some)


def _settle(ended: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in ended:
        if future.done():  # its caller was cancelled
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)


@contextlib.contextmanager
def _held(turn: Turn) -> Iterator[None]:
    """The turn to write, waited for as long as SQLite would wait for its own lock."""
    if not turn.take(BUSY_TIMEOUT_S):
        raise sqlite3.OperationalError("database is locked")
    try:
        yield
    finally:
        turn.release()


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode, used by one thread at a time."""
    uri = path.absolute().as_uri() + ("?mode=ro" if read_only else "?mode=rw")
    connection = sqlite3.connect(
        uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    pragmas = ["trusted_schema = OFF", "foreign_keys = ON", "mmap_size = 0"]
    if read_only:
        pragmas += ["query_only = ON", "wal_autocheckpoint = 0"]
    else:
        pragmas += ["synchronous = FULL", f"journal_size_limit = {WAL_LIMIT_BYTES}"]
    try:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """The schema's version; 0 for an empty file."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID and (application or version or tables):
        raise StorageError(f"{path} is a database of another program", "choose another file")
    return int(version)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script. (sqlite3's executescript would commit before the first.)"""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    assert not statement.strip(), f"a migration ends within a statement: {statement!r}"


def _scripts() -> Iterator[Any]:
    folder = files("zturbo.storage") / "migrations"
    return (file for file in folder.iterdir() if file.name.endswith(".sql"))
