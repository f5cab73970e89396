"""What every `Files` does."""

import asyncio
import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.conftest import Store
from tests.contract.samples import NOW, done, request
from zturbo.errors import FileGone, NoSuchFile
from zturbo.params import OUTPUT_FORMATS
from zturbo.storage.files import Files, is_name, new_name, remove_unknown
from zturbo.storage.memory import MemoryRecords

ODD_NAMES = [
    "", "/", "..", "../../../etc/passwd", "0a84de46", "0a84de46/", "0a84de46/..", "/0a84de46/GTZfn0tOOQzXlC2Wvpzz9.png",
    "0a84de46/../0a84de46/GTZfn0tOOQzXlC2Wvpzz9.png", "0a84de46//GTZfn0tOOQzXlC2Wvpzz9.png",
    "0A84DE46/GTZfn0tOOQzXlC2Wvpzz9.png", "0a84de46/GTZfn0tOOQzXlC2Wvpzz9.PNG", "0a84de46/GTZfn0tOOQzXlC2Wvpzz9.gif",
    "0a84de46/GTZfn0tOOQzXlC2Wvpzz9.png\n", "0a84de46/GTZfn0tOOQzXlC2Wvpzz9.png\0", "0a84de46/GTZfn0tOOQzXlC2Wvpzz.png",
    "0a84de46/GTZfn0tOOQzXlC2Wvpzz99.png", "0a84de46\\GTZfn0tOOQzXlC2Wvpzz9.png", "0a84de46/GTZfn0tOOQzXlC2Wvpz%2e.png",
    "\u0660a84de46/GTZfn0tOOQzXlC2Wvpzz9.png", "\ud800", "0a84de46/swept", "x" * 100_000,
]  # fmt: skip


async def content(files: Files, name: str) -> bytes:
    found = await files.open(name)
    with found.stream as stream:
        data = stream.read()
    assert len(data) == found.size_bytes
    return data


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
async def test_a_picture_comes_back_as_it_was_put(store: Store, output_format: str) -> None:
    name = await store.files.put(b"\0\xffpicture", output_format)
    assert re.fullmatch(rf"[0-9a-f]{{8}}/[A-Za-z0-9_-]{{21}}\.{output_format}", name)
    found = await store.files.open(name)
    with found.stream as stream:
        assert stream.read() == b"\0\xffpicture"
        stream.seek(2)
        assert stream.read(3) == b"pic"
    assert (found.size_bytes, found.content_type) == (9, f"image/{output_format}")


async def test_names_are_all_different(store: Store) -> None:
    names = await asyncio.gather(*(store.files.put(bytes([number]), "png") for number in range(30)))
    assert len(set(names)) == 30
    assert [await content(store.files, name) for name in names] == [bytes([number]) for number in range(30)]
    listed = [name for folder in await store.files.folders() for name in await store.files.names(folder)]
    assert sorted(listed) == sorted(names)


@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: ascii(name)[:40])
async def test_odd_names_never_were(store: Store, name: str) -> None:
    assert not is_name(name)
    with pytest.raises(NoSuchFile):
        await store.files.open(name)
    assert not await store.files.delete(name)
    assert await store.files.names(name) == ()


async def test_what_never_was_is_not_gone(store: Store) -> None:
    known = await store.files.put(b"x", "png")
    for name in (new_name("png"), new_name("png", known[:8])):
        with pytest.raises(NoSuchFile) as caught:
            await store.files.open(name)
        assert caught.value.status == 404


async def test_sweeping_tells_gone_from_never(store: Store) -> None:
    old, older, young = [await store.files.put(data, "webp") for data in (b"old", b"older", b"young")]
    store.age(old, NOW - 1)
    store.age(older, NOW - 1000)
    assert await store.files.sweep(NOW - 1) == 1
    assert await content(store.files, old) == b"old", "that moment itself is kept"
    assert await store.files.sweep(NOW) == 1
    assert await store.files.sweep(NOW) == 0
    for name in (old, older):
        with pytest.raises(FileGone) as caught:
            await store.files.open(name)
        assert caught.value.status == 410
        assert not await store.files.delete(name)
    assert await content(store.files, young) == b"young"
    listed = [name for folder in await store.files.folders() for name in await store.files.names(folder)]
    assert listed == [young]


async def test_an_open_picture_stays_whole_while_it_is_swept(store: Store) -> None:
    name = await store.files.put(b"picture", "png")
    store.age(name, 0)
    found = await store.files.open(name)
    await store.files.sweep(NOW)
    with found.stream as stream:
        assert stream.read() == b"picture"


async def test_a_deleted_picture_never_was(store: Store) -> None:
    name = await store.files.put(b"x", "png")
    assert await store.files.delete(name)
    assert not await store.files.delete(name)
    with pytest.raises(NoSuchFile):
        await store.files.open(name)


async def test_pictures_that_no_request_knows_are_removed(store: Store) -> None:
    records = MemoryRecords()
    known, unknown = [await store.files.put(data, "png") for data in (b"known", b"unknown")]
    row = request()
    await records.ledger.start(row, 1, None)
    await records.ledger.finish(row.request_id, done(1, files=(known,)))
    assert await remove_unknown(store.files, records.history, "here") == 1
    assert await content(store.files, known) == b"known"
    with pytest.raises(NoSuchFile):
        await store.files.open(unknown)


async def test_more_unknown_pictures_than_a_crash_leaves_all_stay(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """So that records of an older backup cost no picture."""
    monkeypatch.setattr("zturbo.storage.files.MAX_UNKNOWN", 2)
    history, names = MemoryRecords().history, [await store.files.put(b"x", "png") for _ in range(3)]
    with caplog.at_level(logging.INFO, "zturbo"):
        assert await remove_unknown(store.files, history, "/the/folder") == 0
        assert [await content(store.files, name) for name in names] == [b"x"] * 3
        await store.files.delete(names[0])
        assert await remove_unknown(store.files, history, "/the/folder") == 2
        assert await remove_unknown(store.files, history, "/the/folder") == 0
    kept, removed = caplog.records
    assert (kept.levelname, removed.levelname) == ("WARNING", "INFO")
    assert kept.getMessage().startswith("3 pictures in /the/folder are in no record")
    assert "put back those that belong to them" in kept.getMessage()
    assert removed.getMessage().startswith("removed 2 pictures in /the/folder")


async def test_closing_twice(store: Store) -> None:
    await store.files.close()
    await store.files.close()


@given(st.text(max_size=60))
def test_only_names_are_names(text: str) -> None:
    assert is_name(text) == bool(re.fullmatch(r"[0-9a-f]{8}/[A-Za-z0-9_-]{21}\.(png|jpeg|webp)", text))


@given(st.sampled_from(OUTPUT_FORMATS))
def test_new_names_are_names(output_format: str) -> None:
    assert is_name(new_name(output_format))


async def test_content_may_be_made_by_the_store(store: Store) -> None:
    name = await store.files.put(lambda: b"made", "png")
    assert await content(store.files, name) == b"made"


async def test_content_that_cannot_be_made_is_the_callers_error_and_nothing_is_kept(store: Store) -> None:
    def broken() -> bytes:
        raise OSError("the encoder broke")

    with pytest.raises(OSError, match="the encoder broke"):
        await store.files.put(broken, "png")
    assert not [name for folder in await store.files.folders() for name in await store.files.names(folder)]
