"""What every `Keys` does."""

import asyncio
from dataclasses import replace

import pytest

from tests.contract.samples import NOW, done, key, request
from zturbo.storage.records import Key, KeyLimit, Records


async def test_a_key_comes_back_as_it_was_put(records: Records) -> None:
    full = key(
        scopes=frozenset({"model:image", "management"}),
        enabled=False,
        expires_ms=NOW + 5,
        limit=KeyLimit("week", 10_500),
        updated_ms=NOW + 1,
    )
    assert await records.keys.add(full)
    assert await records.keys.add(key("00000000", created_ms=NOW - 1))
    assert await records.keys.get(full.prefix) == full
    assert await records.keys.get("ffffffff") is None
    assert [one.prefix for one in await records.keys.list()] == ["00000000", full.prefix]


async def test_a_prefix_is_taken_once(records: Records) -> None:
    first = key()
    assert await records.keys.add(first)
    assert not await records.keys.add(replace(first, digest=b"x" * 32))
    assert await records.keys.get(first.prefix) == first


async def test_changes_at_once_are_all_kept(records: Records) -> None:
    await records.keys.add(key(name=""))

    def longer(old: Key) -> Key:
        return replace(old, name=old.name + "x")

    await asyncio.gather(*(records.keys.update("0123abcd", longer) for _ in range(20)))
    stored = await records.keys.get("0123abcd")
    assert stored is not None
    assert stored.name == "x" * 20


async def test_limit_and_expiry_can_be_taken_away(records: Records) -> None:
    await records.keys.add(key(expires_ms=5, limit=KeyLimit("day", 1)))
    plain = await records.keys.update("0123abcd", lambda old: replace(old, expires_ms=None, limit=None))
    assert plain == key() == await records.keys.get("0123abcd")
    assert await records.keys.update("ffffffff", lambda old: old) is None


async def test_who_a_key_is_never_changes(records: Records) -> None:
    await records.keys.add(key())
    with pytest.raises(AssertionError, match="prefix and digest stay"):
        await records.keys.update("0123abcd", lambda old: replace(old, prefix="00000000"))
    assert [one.prefix for one in await records.keys.list()] == ["0123abcd"]


async def test_a_deleted_key_leaves_its_requests(records: Records) -> None:
    await records.keys.add(key())
    row = request()
    await records.ledger.start(row, 10, None)
    assert await records.ledger.finish(row.request_id, done(10))
    assert await records.keys.delete("0123abcd")
    assert not await records.keys.delete("0123abcd")
    assert await records.keys.get("0123abcd") is None
    assert (await records.history.logs(10)).rows[0].request == row
    await records.keys.add(key())
    spending = await records.ledger.spending("0123abcd", "no_reset", NOW)
    assert spending.spent == 0, "another key of the same prefix begins at nothing"


async def test_a_digest_is_not_printed() -> None:
    assert "digest" not in repr(key())
