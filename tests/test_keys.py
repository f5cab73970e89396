"""API keys: made, kept as a hash, checked."""

import asyncio
import hashlib
import hmac
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zturbo import keys
from zturbo.errors import InvalidInput, LastManager, NoSuchKey
from zturbo.storage.memory import MemoryRecords
from zturbo.storage.records import Key, KeyLimit, Keys
from zturbo.storage.sqlite import open_sqlite

NOW = 1_773_230_400_000
STORE = MemoryRecords().keys


def create(store: Keys | None = None, name: str = "Ada's", **given: object) -> tuple[Key, str]:
    return asyncio.run(keys.create(store or MemoryRecords().keys, name, NOW, **given))  # type: ignore[arg-type]


def check(store: Keys, text: str, now_ms: int = NOW) -> Key | keys.KeyRefusal:
    return asyncio.run(keys.check(store, text, now_ms))


def test_a_key_works() -> None:
    store = MemoryRecords().keys
    limit = KeyLimit("week", 10_500)
    key, text = create(store, scopes=["management"], expires_ms=NOW + 1, limit=limit)
    assert re.fullmatch("[0-9a-f]{32}", text)
    assert (key.prefix, key.name, key.created_ms, key.limit) == (text[:8], "Ada's", NOW, limit)
    assert check(store, text) == key
    assert keys.allows(key, "management")
    assert not keys.allows(key, "model:image")


def test_a_new_key_draws_and_may_leave_the_safety_checker_out() -> None:
    assert create()[0].scopes == {"model:image", "safety:off"}
    assert not keys.allows(create(scopes=["model:image"])[0], "safety:off")


def test_keys_are_all_different() -> None:
    store = MemoryRecords().keys
    assert len({create(store)[1] for _ in range(100)}) == 100


def test_only_a_hash_is_kept(tmp_path: Path) -> None:
    async def story() -> str:
        records = await open_sqlite(tmp_path / "records.db")
        key, text = await keys.create(records.keys, "Ada's", NOW)
        assert key.digest == hashlib.sha256(text.encode()).digest()
        await records.close()
        return text

    text = asyncio.run(story())
    data = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert text[:8].encode() in data
    assert text[8:].encode() not in data
    assert bytes.fromhex(text) not in data
    assert text[8:] not in repr(create())


@pytest.mark.parametrize(
    "text",
    ["", "0" * 31, "0" * 33, "A" * 32, "g" * 32, "0" * 32 + "\n", " " + "0" * 31, "٠" * 32, "\ud800" * 32, "x" * 10**6],  # noqa: RUF001
    ids=lambda text: ascii(text)[:12],
)  # fmt: skip
def test_malformed_keys(text: str) -> None:
    assert check(STORE, text) == "malformed"
    if text:
        with pytest.raises(InvalidInput, match="32 lower-case hex") as caught:
            create(text=text)
        assert text not in str(caught.value), "it may be a secret with a typing error"


def test_somebody_elses_prefix_reads_as_unknown() -> None:
    store = MemoryRecords().keys
    key, text = create(store)
    other = text[:8] + ("0" * 24 if text[8:] != "0" * 24 else "1" * 24)
    assert check(store, "0" * 32 if text[:8] != "0" * 8 else "1" * 32) == "unknown"
    for changed in (key, replace(key, enabled=False), replace(key, expires_ms=NOW)):
        asyncio.run(store.update(key.prefix, lambda _, changed=changed: changed))  # type: ignore[misc]
        assert check(store, other) == "unknown"


@given(st.integers(0, 31), st.sampled_from("0123456789abcdef"))
def test_one_wrong_character_is_enough(position: int, wrong: str) -> None:
    store = MemoryRecords().keys
    key, text = create(store, text="0123456789abcdef0123456789abcdef")
    changed = text[:position] + wrong + text[position + 1 :]
    assert check(store, changed) == (key if changed == text else "unknown")


def test_disabled_and_expired_keys() -> None:
    store = MemoryRecords().keys
    key, text = create(store, expires_ms=NOW + 5)
    assert check(store, text, NOW + 4) == key
    assert check(store, text, NOW + 5) == "expired"
    asyncio.run(store.update(key.prefix, lambda old: replace(old, enabled=False)))
    assert check(store, text) == "disabled"
    asyncio.run(store.update(key.prefix, lambda old: replace(old, enabled=True, expires_ms=None)))
    assert check(store, text, NOW + 10**12) == replace(key, expires_ms=None)
    asyncio.run(store.delete(key.prefix))
    assert check(store, text) == "unknown"


def test_digests_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a known prefix and for an unknown one."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    store = MemoryRecords().keys
    _, text = create(store)
    check(store, text)
    check(store, "0" * 32)
    assert [[len(side) for side in sides] for sides in compared] == [[32, 32]] * 2


def test_every_wrong_member_is_told_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        create(name="", scopes=["model:images", "root"], expires_ms=NOW, text="secret")
    problems = {problem.path: problem for problem in caught.value.problems}
    assert set(problems) == {("name",), ("scopes",), ("expires_at",), ("key",)}
    assert len(caught.value.problems) == 5
    assert "nearest valid value: model:image" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb", "\ud800", "\0"], ids=ascii)
def test_wrong_names(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"name: must be 1 to 100 printable"):
        create(name=name)


@pytest.mark.parametrize("expires_ms", [NOW, 0, 253_402_300_800_000, 10**40])
def test_wrong_expiries(expires_ms: int) -> None:
    with pytest.raises(InvalidInput, match="expires_at: must be in the future"):
        create(expires_ms=expires_ms)


def test_scopes_must_be_some() -> None:
    with pytest.raises(InvalidInput, match="scopes: must be some of model:image, safety:off, management; got none"):
        create(scopes=[])


def test_a_given_key_is_made_once() -> None:
    store = MemoryRecords().keys
    create(store, text="0" * 32)
    with pytest.raises(InvalidInput, match="prefix 00000000 exists already"):
        create(store, text="0" * 31 + "1")
    assert isinstance(check(store, "0" * 32), Key)


def test_a_taken_prefix_is_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryRecords().keys
    create(store, text="0" * 32)
    texts = iter(["0" * 31 + "1", "f" * 32])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(texts))
    assert create(store)[1] == "f" * 32


# Changed and revoked


def change(store: Keys, prefix: str, values: dict[str, object], now_ms: int = NOW) -> Key:
    return asyncio.run(keys.change(store, prefix, keys.read(values, now_ms), now_ms))


def test_what_is_given_changes_and_the_rest_stays() -> None:
    store = MemoryRecords().keys
    key, text = create(store, limit=KeyLimit("day", 1), expires_ms=NOW + 5)
    values: dict[str, object] = {"name": "b", "enabled": False, "limit": {"retention": "week", "threshold": "0.05"}}
    changed = change(store, key.prefix, values, NOW + 1)
    limit = KeyLimit("week", 100_000)
    assert changed == replace(key, name="b", enabled=False, limit=limit, updated_ms=NOW + 1)
    assert check(store, text) == "disabled"
    bare = change(store, key.prefix, {"limit": None, "expires_ms": None, "name": None, "scopes": None, "enabled": True})
    assert (bare.limit, bare.expires_ms, bare.name, bare.scopes) == (None, None, "b", key.scopes)
    assert check(store, text, NOW + 10**9) == bare


def test_nothing_given_changes_nothing() -> None:
    store = MemoryRecords().keys
    key, _ = create(store)
    assert change(store, key.prefix, {}) == key


def test_reading_tells_every_problem_by_the_callers_names() -> None:
    values = {"name": "", "scopes": ["draw"], "enabled": 1, "expires_ms": "1999-01-01", "limit": {"threshold": -1}}
    with pytest.raises(InvalidInput) as caught:
        keys.read(values, NOW, {"name": "--name", "expires_ms": "--expires"})
    assert [problem.path for problem in caught.value.problems] == [
        ("--name",), ("scopes",), ("enabled",), ("limit", "retention"), ("limit", "threshold"), ("--expires",),
    ]  # fmt: skip


def test_a_long_list_of_wrong_scopes_is_told_shortly() -> None:
    with pytest.raises(InvalidInput) as caught:
        keys.read({"scopes": [f"x{number}" for number in range(10_000)]}, NOW)
    assert len(caught.value.problems) == 8


@pytest.mark.parametrize("prefix", ["ffffffff", "", "\0"])
def test_a_key_that_is_not_there(prefix: str) -> None:
    store = MemoryRecords().keys
    create(store, scopes=["management"])
    for job in (
        keys.change(store, prefix, {}, NOW),
        keys.revoke(store, prefix),
        keys.keep_a_manager(store, prefix, None, NOW),
    ):
        with pytest.raises(NoSuchKey):
            asyncio.run(job)


def test_a_revoked_key_is_unknown() -> None:
    store = MemoryRecords().keys
    key, text = create(store)
    asyncio.run(keys.revoke(store, key.prefix))
    assert check(store, text) == "unknown"


def test_only_a_working_manager_counts() -> None:
    store = MemoryRecords().keys
    last, _ = create(store, scopes=["management"])
    create(store, scopes=["management"], enabled=False)
    create(store, scopes=["management"], expires_ms=NOW + 1)
    create(store)
    harmless = keys.read({"name": "b", "limit": None}, NOW)
    asyncio.run(keys.keep_a_manager(store, last.prefix, harmless, NOW))
    for facts in (None, keys.read({"enabled": False}, NOW), keys.read({"scopes": ["model:image"]}, NOW)):
        asyncio.run(keys.keep_a_manager(store, last.prefix, facts, NOW))  # the third has not expired yet
        with pytest.raises(LastManager, match=last.prefix):
            asyncio.run(keys.keep_a_manager(store, last.prefix, facts, NOW + 1))


def test_the_key_of_the_first_start_may_be_given_in_the_settings() -> None:
    store = MemoryRecords().keys
    made = asyncio.run(keys.first_key(store, "", NOW))
    assert made is not None
    assert asyncio.run(keys.first_key(store, made, NOW)) is None
    (only,) = asyncio.run(store.list())
    assert only.prefix == made[:8]


def test_a_given_key_that_was_disabled_stays_so_and_a_deleted_one_is_made_again() -> None:
    store = MemoryRecords().keys
    asyncio.run(keys.first_key(store, "0" * 32, NOW))
    manager, _ = create(store, scopes=keys.SCOPES)
    change(store, "0" * 8, {"enabled": False})
    asyncio.run(keys.first_key(store, "0" * 32, NOW))
    assert {key.prefix: key.enabled for key in asyncio.run(store.list())} == {"0" * 8: False, manager.prefix: True}
    asyncio.run(keys.revoke(store, "0" * 8))
    asyncio.run(keys.first_key(store, "0" * 32, NOW))
    assert {key.prefix: key.enabled for key in asyncio.run(store.list())} == {"0" * 8: True, manager.prefix: True}


def test_a_given_key_that_is_given_no_more_still_works_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryRecords().keys
    asyncio.run(keys.first_key(store, "0" * 32, NOW))
    assert asyncio.run(keys.first_key(store, "", NOW)) is None
    assert "gives no key any more; 00000000..., which it gave, still works" in caplog.text
    create(store, scopes=keys.SCOPES)
    change(store, "0" * 8, {"enabled": False})
    caplog.clear()
    asyncio.run(keys.first_key(store, "", NOW))
    assert caplog.text == ""


def test_a_key_given_before_ends_whatever_takes_its_place() -> None:
    store = MemoryRecords().keys
    asyncio.run(keys.first_key(store, "0" * 32, NOW))
    mine, text = create(store, scopes=keys.SCOPES)
    asyncio.run(keys.first_key(store, text, NOW))
    assert [key.prefix for key in asyncio.run(store.list())] == [mine.prefix]


def test_a_given_key_that_may_not_manage_takes_no_manager_away(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryRecords().keys
    asyncio.run(keys.first_key(store, "0" * 32, NOW))
    mine, text = create(store)
    asyncio.run(keys.first_key(store, text, NOW))
    assert {key.prefix for key in asyncio.run(store.list())} == {"0" * 8, mine.prefix}
    assert f"the given API key, {mine.prefix}..., may not manage keys" in caplog.text


def test_a_given_key_that_cannot_be_made_takes_no_other_away() -> None:
    store = MemoryRecords().keys
    asyncio.run(keys.first_key(store, "0" * 32, NOW))
    _, text = create(store)
    with pytest.raises(InvalidInput, match="exists already"):
        asyncio.run(keys.first_key(store, text[:8] + "f" * 24, NOW))
    assert len(asyncio.run(store.list())) == 2


def test_the_name_of_the_given_key_is_nobody_elses() -> None:
    store = MemoryRecords().keys
    asyncio.run(keys.first_key(store, "0" * 32, NOW))
    other, _ = create(store)
    with pytest.raises(InvalidInput, match="name: ZTURBO_API_KEY is the name of the key that the settings give"):
        create(store, name=keys.GIVEN_NAME)
    for prefix, name in (("0" * 8, "mine"), (other.prefix, keys.GIVEN_NAME)):
        with pytest.raises(InvalidInput, match="of no other"):
            change(store, prefix, {"name": name})
    assert asyncio.run(keys.first_key(store, "0" * 32, NOW)) is None, "the next start finds it"
