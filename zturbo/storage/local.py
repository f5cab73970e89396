"""Pictures in a folder of this machine.

    ROOT/0a84de46/GTZfn0tOOQzXlC2Wvpzz9.png     at most 1000 to a folder; every server start begins a new one
    ROOT/0a84de46/swept                         the names that retention removed, a line each: they answer 410, not 404

One server per root. The root is for its user alone: nobody else can put a link where a picture is expected, and links
are not followed either.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

from zturbo.errors import FileGone, NoSuchFile, StorageError, ZTurboError
from zturbo.pictures import sync_folder, write_atomic
from zturbo.storage.disk import Turn
from zturbo.storage.files import (
    Content,
    OpenFile,
    content_type_of,
    is_folder,
    is_name,
    new_folder,
    new_name,
)

Result = TypeVar("Result")

FOLDER_SIZE = 1000
"""Pictures of one folder, so that no listing is long."""
THREADS = 4
"""A write waits for the disk more than for the processor, encoding included."""
_SWEPT = "swept"
_READ = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
"""No link is followed, and no pipe is waited for."""
_HINTS = {
    errno.ENOSPC: "make room on the disk; nothing else need be done",
    errno.EROFS: "mount it so that it can be written to",
    errno.EACCES: "let the server read and write it",
    errno.EPERM: "let the server read and write it",
}


class LocalFiles:
    """Implements `Files`. Made by `LocalFiles.start`."""

    def __init__(self, root: Path, turn: Turn) -> None:
        self._root = root
        self._turn = turn
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="zturbo-files")
        self._folder, self._room = "", 0
        self._gate = threading.Lock()
        self._sweeping = threading.Lock()
        self._closed = False

    @classmethod
    async def start(cls, root: Path) -> Self:
        """Take a folder, making it where there is none, and remove what a killed process left half written.

        Raises:
            StorageError: it cannot be made or read, or another server has it.
        """
        return await asyncio.to_thread(cls._start, root)

    @classmethod
    def _start(cls, root: Path) -> Self:
        with _translated(root):
            for folder in (root.parent, root):  # parents of its own, mkdir would make for all to read
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            turn = Turn(root)
            try:
                if not turn.take(0.0):
                    raise StorageError(f"another server uses {root}", "stop it, or give this one another folder")
                _remove_temporaries(root)
            except BaseException:
                turn.close()
                raise
            return cls(root, turn)

    async def put(self, content: Content, output_format: str) -> str:
        def job() -> str:
            data = content if isinstance(content, bytes) else content()  # its errors are none of this store's
            with _translated(self._root):
                name = new_name(output_format, self._next_folder())
                write_atomic(self._root / name, data)
                return name

        return await self._visit(job, undo=lambda name: (self._root / name).unlink(missing_ok=True))

    async def open(self, name: str) -> OpenFile:
        if not is_name(name):
            raise NoSuchFile(name)
        return await self._run(lambda: self._open(name), undo=lambda found: found.stream.close())

    async def delete(self, name: str) -> bool:
        if not is_name(name):
            return False

        def job() -> bool:
            path = self._root / name
            if not _is_folder(path.parent):
                return False
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                return True
            return False

        return await self._run(job)

    async def folders(self) -> tuple[str, ...]:
        return await self._run(lambda: tuple(folder.name for folder in _folders(self._root)))

    async def names(self, folder: str) -> tuple[str, ...]:
        if not is_folder(folder):
            return ()
        return await self._run(lambda: tuple(f"{folder}/{name}" for name, _ in _pictures(self._root / folder)))

    async def sweep(self, before_ms: int) -> int:
        def job() -> int:
            with self._sweeping:
                return _sweep_folders(_folders(self._root), before_ms)

        return await self._run(job)

    async def close(self) -> None:
        """Finish what was asked for, then let go of the folder. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._pool.shutdown)
        self._turn.close()

    async def _run(self, job: Callable[[], Result], undo: Callable[[Result], object] | None = None) -> Result:
        """Run a job on a thread, its errors turned into StorageError; `undo` as in `_visit`."""

        def translated() -> Result:
            with _translated(self._root):
                return job()

        return await self._visit(translated, undo)

    async def _visit(self, job: Callable[[], Result], undo: Callable[[Result], object] | None = None) -> Result:
        """Run a job on a thread.

        Args:
            undo: given the result of a job whose caller was cancelled meanwhile, so that nobody has it.
        """
        if self._closed:
            raise StorageError(f"the files in {self._root} are closed", "the server is shutting down")
        future = self._pool.submit(job)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:  # a job that has not begun is cancelled as well
            if undo is not None:
                future.add_done_callback(lambda ended: ended.cancelled() or ended.exception() or undo(ended.result()))
            raise

    def _next_folder(self) -> str:
        """The folder of the next picture; made where it is not there."""
        with self._gate:
            if self._room == 0 or not _is_folder(self._root / self._folder):
                folder = new_folder()
                (self._root / folder).mkdir(mode=0o700)
                sync_folder(self._root)
                self._folder, self._room = folder, FOLDER_SIZE
            self._room -= 1
            return self._folder

    def _open(self, name: str) -> OpenFile:
        path = self._root / name
        try:
            if not _is_folder(path.parent):
                raise FileNotFoundError
            descriptor = os.open(path, _READ)
        except FileNotFoundError:
            raise self._absence(name) from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise NoSuchFile(name) from None
            raise
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            os.close(descriptor)
            raise NoSuchFile(name)
        stream = os.fdopen(descriptor, "rb")
        return OpenFile(stream, facts.st_size, content_type_of(name))

    def _absence(self, name: str) -> ZTurboError:
        """Why there is no picture of a name."""
        if not self._root.is_dir():
            return StorageError(f"the folder {self._root} is gone", "put it back, or mount it")
        folder, _, file = name.partition("/")
        return FileGone(name) if file in _swept_names(self._root / folder) else NoSuchFile(name)


def copy_pictures(root: Path, target: Path, stop: threading.Event) -> int:
    """Copy every picture to a new folder, with its time, which retention counts from; returns how many. Blocks.

    A picture that is swept meanwhile is left out, and in the list of those that were.

    Args:
        stop: looked at before each file; once it is set, the copy ends where it is.

    Raises:
        StorageError: one of the folders cannot be read or written.
    """
    count = 0
    with _translated(target):
        target.mkdir(mode=0o700)
        for folder in _folders(root) if root.is_dir() else ():
            copy = target / folder.name
            copy.mkdir(mode=0o700)
            for name in (*(name for name, _ in _pictures(folder)), _SWEPT):  # the list last
                if stop.is_set():
                    return count
                with contextlib.suppress(FileNotFoundError):
                    shutil.copy2(folder / name, copy / name)
                    count += name != _SWEPT
    return count


def _sweep_folders(folders: list[Path], before_ms: int) -> int:
    """Sweep each of them; the first error is raised once all had their turn, so that none keeps the later ones."""
    count, errors = 0, []
    for folder in folders:
        try:
            count += _sweep_folder(folder, before_ms)
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return count


def _sweep_folder(folder: Path, before_ms: int) -> int:
    old = [name for name, modified_ms in _pictures(folder) if modified_ms < before_ms]
    if not old:
        return 0
    try:
        _note_swept(folder, old)
        _unlink(folder, old)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        _unlink(folder, old)  # a full disk: room comes first
        _note_swept(folder, old)
    return len(old)


def _note_swept(folder: Path, names: list[str]) -> None:
    """Add names to a folder's list; the first line break ends what a killed process may have left unfinished."""
    descriptor = os.open(folder / _SWEPT, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write("".join(["\n", *(f"{name}\n" for name in names)]).encode("ascii"))
        file.flush()
        os.fsync(file.fileno())


def _swept_names(folder: Path) -> frozenset[str]:
    if not _is_folder(folder):
        return frozenset()
    with contextlib.suppress(FileNotFoundError):
        return frozenset((folder / _SWEPT).read_text("ascii", "replace").splitlines())
    return frozenset()


def _unlink(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _folders(root: Path) -> list[Path]:
    return sorted(
        root / entry.name for entry in os.scandir(root) if is_folder(entry.name) and _is_folder(root / entry.name)
    )


def _pictures(folder: Path) -> list[tuple[str, int]]:
    """File name and time of the last change in milliseconds, sorted."""
    if not _is_folder(folder):
        return []
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_name(f"{folder.name}/{entry.name}"):
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    facts = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(facts.st_mode):
                        found.append((entry.name, facts.st_mtime_ns // 1_000_000))
    return sorted(found)


def _is_folder(path: Path) -> bool:
    """Whether it is a folder and no link to one."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return stat.S_ISDIR(path.lstat().st_mode)
    return False


def _remove_temporaries(root: Path) -> None:
    """What `write_atomic` had not renamed when its process was killed."""
    for folder in _folders(root):
        for path in folder.glob(".*.part"):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _translated(root: Path) -> Iterator[None]:
    """Turn the system's errors into StorageError, those that `write_atomic` has put into words as well."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot use {root}: {error.strerror or error}", _HINTS.get(error.errno or 0, "")) from error
    except ZTurboError as error:
        if type(error) is not ZTurboError:
            raise
        raise StorageError(error.message, error.hint) from error
