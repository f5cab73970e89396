"""The folder of pictures: its faults, its links, what a killed process leaves, who may use it."""

import asyncio
import errno
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from zturbo.errors import FileGone, NoSuchFile, StorageError
from zturbo.pictures import write_atomic
from zturbo.storage import local
from zturbo.storage.files import new_name
from zturbo.storage.local import LocalFiles

Limited = Callable[[int], AbstractContextManager[None]]


async def content(files: LocalFiles, name: str) -> bytes:
    with (await files.open(name)).stream as stream:
        return stream.read()


async def test_only_its_user_may_look_inside(tmp_path: Path) -> None:
    files = await LocalFiles.start(tmp_path / "a" / "files")
    name = await files.put(b"x", "png")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a" / "files").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a" / "files" / name).parent.stat().st_mode) == 0o700
    assert [path.name for path in (tmp_path / "a" / "files" / name).parent.iterdir()] == [name[9:]]
    await files.close()


async def test_pictures_outlive_the_server(tmp_path: Path) -> None:
    names = []
    for number in range(3):
        files = await LocalFiles.start(tmp_path)
        names.append(await files.put(bytes([number]), "jpeg"))
        assert [await content(files, name) for name in names] == [bytes([n]) for n in range(number + 1)]
        await files.close()
    with pytest.raises(StorageError, match="are closed"):
        await files.put(b"", "png")


async def test_one_server_only(tmp_path: Path) -> None:
    files = await LocalFiles.start(tmp_path)
    with pytest.raises(StorageError, match="another server uses"):
        await LocalFiles.start(tmp_path)
    await files.close()
    await (await LocalFiles.start(tmp_path)).close()


async def test_no_folder_grows_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "FOLDER_SIZE", 5)
    files = await LocalFiles.start(tmp_path)
    names = await asyncio.gather(*(files.put(b"x", "png") for _ in range(23)))
    assert len(await files.folders()) == 5
    assert max([len(await files.names(folder)) for folder in await files.folders()]) == 5
    assert len(set(names)) == 23
    await files.close()


async def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    files = await LocalFiles.start(tmp_path)
    name = await files.put(b"x", "png")
    await files.close()
    folder = (tmp_path / name).parent
    (folder / ".0123456789abcdef.part").write_bytes(b"half")
    (tmp_path / "keep.part").write_text("not ours")
    files = await LocalFiles.start(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [name[9:]]
    assert (tmp_path / "keep.part").exists()
    assert await content(files, name) == b"x"
    await files.close()


async def test_links_and_pipes_are_not_pictures(tmp_path: Path) -> None:
    root, secret = tmp_path / "files", tmp_path / "secret"
    secret.write_text("secret")
    files = await LocalFiles.start(root)
    name = await files.put(b"x", "png")
    folder = name[:8]
    link, pipe, directory = (new_name("png", folder) for _ in range(3))
    (root / link).symlink_to(secret)
    os.mkfifo(root / pipe)
    (root / directory).mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    beyond = new_name("png")
    (root / beyond[:8]).symlink_to(outside)
    (outside / beyond[9:]).write_text("secret")
    for odd in (link, pipe, directory, beyond):
        with pytest.raises(NoSuchFile):
            await files.open(odd)
    assert await files.folders() == (folder,)
    assert await files.names(folder) == (name,)
    assert await files.names(beyond[:8]) == ()
    assert not await files.delete(beyond)
    assert await files.sweep(2**60) == 1
    assert secret.exists()
    assert (outside / beyond[9:]).exists()
    await files.close()


async def test_gone_is_remembered_over_restarts(tmp_path: Path) -> None:
    files = await LocalFiles.start(tmp_path)
    first, second = await files.put(b"1", "png"), await files.put(b"2", "png")
    os.utime(tmp_path / first, (1, 1))
    assert await files.sweep(2000) == 1
    with (tmp_path / first).parent.joinpath("swept").open("ab") as file:
        file.write(b"killed while writi")
    await files.close()
    files = await LocalFiles.start(tmp_path)
    assert await files.sweep(2**60) == 1
    for name in (first, second):
        with pytest.raises(FileGone):
            await files.open(name)
    with pytest.raises(NoSuchFile):
        await files.open(new_name("png", first[:8]))
    await files.close()


async def test_killed_between_the_list_and_the_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is still there then, and the next sweep takes it."""
    files = await LocalFiles.start(tmp_path)
    name = await files.put(b"x", "png")
    with monkeypatch.context() as patch:
        patch.setattr(local, "_unlink", lambda *_: None)
        await files.sweep(2**60)
    assert await content(files, name) == b"x"
    assert await files.sweep(2**60) == 1
    with pytest.raises(FileGone):
        await files.open(name)
    await files.close()


async def test_a_full_disk_is_told_and_gets_well_by_itself(tmp_path: Path, file_size_limit: Limited) -> None:
    files = await LocalFiles.start(tmp_path)
    before = await files.put(b"x" * 5000, "png")
    with file_size_limit(1000):
        for _ in range(3):
            with pytest.raises(StorageError, match=r"cannot write .*\.png: File too large") as caught:
                await files.put(b"x" * 5000, "png")
        assert (caught.value.status, caught.value.code) == (503, "storage_unavailable")
        assert await content(files, before) == b"x" * 5000
    after = await files.put(b"y" * 5000, "png")
    assert await content(files, after) == b"y" * 5000
    assert await files.folders() == (before[:8],), "faults leave no empty folders"
    assert not list(tmp_path.rglob("*.part"))
    await files.close()


async def test_the_systems_word_for_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = await LocalFiles.start(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left on device") as caught:
            await files.put(b"x", "png")
    assert "disk is full" in caught.value.hint
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    await files.put(b"x", "png")
    await files.close()


async def test_sweeping_a_full_disk_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = await LocalFiles.start(tmp_path)
    name = await files.put(b"x", "png")
    note = local._note_swept

    def only_with_room(folder: Path, names: list[str]) -> None:
        if (tmp_path / name).exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        note(folder, names)

    monkeypatch.setattr(local, "_note_swept", only_with_room)
    assert await files.sweep(2**60) == 1
    with pytest.raises(FileGone):
        await files.open(name)
    await files.close()


async def test_a_folder_that_cannot_be_swept_keeps_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "FOLDER_SIZE", 1)
    files, unlink = await LocalFiles.start(tmp_path), local._unlink
    stuck, *others = sorted([await files.put(b"x", "png") for _ in range(3)])

    def refused(folder: Path, names: list[str]) -> None:
        if folder.name == stuck[:8]:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        unlink(folder, names)

    with monkeypatch.context() as patch:
        patch.setattr(local, "_unlink", refused)
        with pytest.raises(StorageError, match="Operation not permitted"):
            await files.sweep(2**60)
    assert await content(files, stuck) == b"x"
    for name in others:
        with pytest.raises(FileGone):
            await files.open(name)
    assert await files.sweep(2**60) == 1
    await files.close()


async def test_a_folder_that_is_gone_is_a_fault_and_not_an_absence(tmp_path: Path) -> None:
    files = await LocalFiles.start(tmp_path / "files")
    name = await files.put(b"x", "png")
    (tmp_path / "files").rename(tmp_path / "unmounted")
    with pytest.raises(StorageError, match="is gone"):
        await files.open(name)
    for call in (files.put(b"x", "png"), files.folders()):
        with pytest.raises(StorageError, match="No such file or directory"):
            await call
    (tmp_path / "unmounted").rename(tmp_path / "files")
    assert await content(files, name) == b"x"
    await files.put(b"x", "png")
    await files.close()


async def test_a_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    files = await LocalFiles.start(tmp_path)
    name = await files.put(b"x", "png")
    (tmp_path / name).unlink()
    (tmp_path / name[:8]).rmdir()
    with pytest.raises(NoSuchFile):
        await files.open(name)
    assert await content(files, await files.put(b"y", "png")) == b"y"
    await files.close()


async def test_a_cancelled_caller_leaves_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = await LocalFiles.start(tmp_path)
    begun, hold = threading.Event(), threading.Event()

    def slow(path: Path, data: bytes) -> None:
        begun.set()
        hold.wait(10)
        write_atomic(path, data)

    monkeypatch.setattr(local, "write_atomic", slow)
    putting = asyncio.create_task(files.put(b"x", "png"))
    await asyncio.to_thread(begun.wait, 10)
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    hold.set()
    await files.close()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


READ_ONLY = """
import asyncio, os, sys
from pathlib import Path
from zturbo.errors import StorageError
from zturbo.storage.database import shipped_migrations
from zturbo.storage.local import LocalFiles
from zturbo.storage.sqlite import open_sqlite

root = Path(sys.argv[1])
steps = shipped_migrations()  # now: Python itself may lie where only root can read
if os.geteuid() == 0:  # root may write everywhere
    os.chown(root, 65534, 65534)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)

async def refused(call):
    try:
        await call
    except StorageError as error:
        return str(error)
    raise AssertionError("nothing was refused")

async def story():
    files = await LocalFiles.start(root / "files")
    name = await files.put(b"x", "png")
    folder = (root / "files" / name).parent
    for one in (folder, root / "files"):
        one.chmod(0o500)
    assert "Permission denied" in await refused(files.put(b"y", "png"))
    assert "Permission denied" in await refused(files.sweep(2**60))
    (await files.open(name)).stream.close()
    root.chmod(0o500)
    assert "Permission denied" in await refused(open_sqlite(root / "records.db", migrations=steps))
    assert "Permission denied" in await refused(LocalFiles.start(root / "other"))
    for one in (root, root / "files", folder):
        one.chmod(0o700)
    await files.put(b"y", "png")
    await files.close()
    records = await open_sqlite(root / "records.db", migrations=steps)
    await records.close()

asyncio.run(story())
"""


def test_a_folder_without_permission_is_told_and_gets_well_by_itself() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run([sys.executable, "-c", READ_ONLY, folder], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
