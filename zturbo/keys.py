"""API keys: made, shown once, checked, changed and revoked.

A key is 32 lower-case hex characters; the first 8 are its public prefix. Only the SHA-256 of the whole is kept. A slow
hash (scrypt, Argon2) guards what people can guess; nobody guesses 128 random bits, and it would cost each request
milliseconds of a processor that draws. Imports neither torch nor a web framework.
"""

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Iterable, Mapping, Sized
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, TypedDict, cast, get_args

from zturbo.errors import InvalidInput, LastManager, NoSuchKey, Problem
from zturbo.params import closest, shown
from zturbo.quantities import MAX_MS, Reader, iso, read_each, read_moment, read_usd
from zturbo.storage.records import Key, KeyLimit, Keys, Retention

log = logging.getLogger("zturbo")

SCOPES = ("model:image", "safety:off", "management")
"""What a key may do: draw, draw without the safety checker where a request asks for that, manage keys."""
DRAWING = ("model:image", "safety:off")
"""What a new key may do unless its maker says otherwise; without the second the checker is on for all its requests."""
PREFIX_LENGTH = 8
GIVEN_NAME = "ZTURBO_API_KEY"
"""What the key that the settings give is called."""
MAX_NAME = 100
"""Code points."""
NAME_PATTERN = f"[^\\u0000-\\u001f\\u007f-\\u009f\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069]{{1,{MAX_NAME}}}"
"""No control characters, and none that turn the direction of writing: a name is shown on terminals and in logs."""
NAMES: Mapping[str, str] = MappingProxyType({"expires_ms": "expires_at"})
"""Our name of a fact -> the wire's, where they differ."""
KeyRefusal = Literal["malformed", "unknown", "disabled", "expired"]
_TEXT = re.compile(r"[0-9a-f]{32}", re.ASCII)
_NAME = re.compile(rf"(?!.*[\ud800-\udfff]){NAME_PATTERN}")
_NOBODY = bytes(32)
_ATTEMPTS = 8
_MAX_TOLD = 8
"""Wrong scopes of one list that are told."""


class Facts(TypedDict, total=False):
    """What the owner of a key decides of it; an absent one stays as it is."""

    name: str
    scopes: frozenset[str]
    enabled: bool
    expires_ms: int | None
    limit: KeyLimit | None


async def create(
    keys: Keys,
    name: str,
    now_ms: int,
    *,
    scopes: Iterable[str] = DRAWING,
    enabled: bool = True,
    expires_ms: int | None = None,
    limit: KeyLimit | None = None,
    text: str | None = None,
) -> tuple[Key, str]:
    """Make a key and keep it.

    Args:
        keys: where it is kept.
        name: for people, 1 to 100 characters.
        now_ms: milliseconds since 1970 in UTC.
        scopes: some of `SCOPES`.
        expires_ms: the first moment at which it no longer works; None is never.
        text: a key that somebody else made at random; None makes one.

    Returns:
        The key and its text, which is kept nowhere: this is the only time to show it.

    Raises:
        InvalidInput: name, scopes, expiry or text are wrong, or a key with that text's prefix exists.
        StorageError: it cannot be kept.
    """
    scopes = frozenset(scopes)
    _, problems = read_each({"name": name, "scopes": scopes}, _READERS, NAMES)
    if problems := [*problems, *_expiry_problems(expires_ms, now_ms), *_text_problems(text)]:
        raise InvalidInput(problems)
    if name == GIVEN_NAME and text is None:
        raise _reserved(name, "name")
    for _ in range(_ATTEMPTS):  # one of 2^32 prefixes may be taken
        whole = text or secrets.token_hex(16)
        key = Key(
            prefix=whole[:PREFIX_LENGTH],
            digest=digest(whole),
            name=name,
            created_ms=now_ms,
            scopes=scopes,
            enabled=enabled,
            expires_ms=expires_ms,
            limit=limit,
        )
        if await keys.add(key):
            return key, whole
        if text is not None:
            raise InvalidInput([Problem(("key",), f"a key with prefix {key.prefix} exists already", key.prefix)])
    raise AssertionError(f"{_ATTEMPTS} random prefixes were all taken")


async def first_key(keys: Keys, given: str, now_ms: int) -> str | None:
    """Make sure that a server has a key with every scope.

    Args:
        given: the operator's own, or "" for none. A given one takes the place of the one given before, which stays
            where this one may not manage keys; one that this server made, such as the one it showed at its first start,
            stays what it is.

    Returns:
        The text of a key made now, to be shown once; None where there is one.

    Raises:
        InvalidInput: another key has the given one's prefix.
        StorageError: the keys cannot be read or written.
    """
    known = await keys.list()
    if not given:
        for key in known:
            if key.name == GIVEN_NAME and _refusal(key, now_ms) is None:
                log.warning("%s gives no key any more; %s..., which it gave, still works", GIVEN_NAME, key.prefix)
        if known:
            return None
        _, text = await create(keys, "first start", now_ms, scopes=SCOPES)
        return text
    same = [key for key in known if hmac.compare_digest(key.digest, digest(given))]
    if not same:
        same = [(await create(keys, GIVEN_NAME, now_ms, scopes=SCOPES, text=given))[0]]
    before = [key for key in known if key not in same and key.name == GIVEN_NAME]
    if not _manages(same[0], now_ms):
        log.warning("the given API key, %s..., may not manage keys: it stays as it was made", same[0].prefix)
        return None
    for key in before:
        await keys.delete(key.prefix)
    return None


async def check(keys: Keys, text: str, now_ms: int) -> Key | KeyRefusal:
    """The key that a text is, or why it is none that works now.

    A disabled or expired key is told so only to who has the whole of it; somebody else's prefix reads as unknown.

    Raises:
        StorageError: the keys cannot be read.
    """
    if not _TEXT.fullmatch(text):
        return "malformed"
    key = await keys.get(text[:PREFIX_LENGTH])
    known = hmac.compare_digest(digest(text), key.digest if key else _NOBODY)
    if key is None or not known:
        return "unknown"
    return _refusal(key, now_ms) or key


def read(values: Mapping[str, object], now_ms: int, names: Mapping[str, str] = NAMES) -> Facts:
    """What the owner of a key decides of it, from loose values.

    Args:
        values: by the names of `Facts`; `expires_ms` is an ISO 8601 time, and `limit` has `retention` and `threshold`,
            which is in US dollars. None takes a limit or an expiry away; elsewhere it counts as absent.
        names: our name -> the caller's, as the problems shall say it.

    Raises:
        InvalidInput: with every problem found.
    """
    found, problems = read_each(values, _READERS, names)
    if problems := [*problems, *_expiry_problems(found.get("expires_ms"), now_ms, names)]:
        raise InvalidInput(problems)
    taken_away = {name: None for name in ("expires_ms", "limit") if name in values}
    return cast(Facts, taken_away | found)


async def change(keys: Keys, prefix: str, facts: Facts, now_ms: int, names: Mapping[str, str] = NAMES) -> Key:
    """Change a key; its next request meets the change, or within a second where another process serves it.

    Args:
        facts: from `read`.
        names: our name -> the caller's, as the problems shall say it.

    Returns:
        The key as it is now.

    Raises:
        NoSuchKey: there is none.
        InvalidInput: it would take or lose the name of the key that the settings give.
        StorageError: it cannot be kept.
    """

    def changed(key: Key) -> Key:
        if "name" in facts and (facts["name"] == GIVEN_NAME) != (key.name == GIVEN_NAME):
            raise _reserved(facts["name"], names.get("name", "name"))
        return replace(key, **facts, updated_ms=now_ms) if facts else key

    key = await keys.update(prefix, changed)
    if key is None:
        raise NoSuchKey(prefix)
    return key


async def revoke(keys: Keys, prefix: str) -> None:
    """Delete a key for good, as soon as `change` changes one; its requests stay in the log.

    Raises:
        NoSuchKey: there is none.
        StorageError: it cannot be deleted.
    """
    if not await keys.delete(prefix):
        raise NoSuchKey(prefix)


async def keep_a_manager(keys: Keys, prefix: str, facts: Facts | None, now_ms: int) -> None:
    """Refuse a change after which no working key could manage keys, now or later: nobody could undo it over HTTP.

    For doors that need such a key themselves. Changes at once must take turns round this check and what follows it.

    Args:
        facts: what the key is about to become; None where it is about to be deleted.

    Raises:
        NoSuchKey: there is none of this prefix.
        LastManager: no other key manages.
    """
    known = {key.prefix: key for key in await keys.list()}
    if prefix not in known:
        raise NoSuchKey(prefix)
    before = known.pop(prefix)
    if facts is not None:
        known[prefix] = replace(before, **facts)
    if not any(_manages(key, now_ms) for key in known.values()):
        raise LastManager(prefix)
    ends = facts is not None and facts.get("expires_ms") is not None
    if ends and _manages_for_good(before, now_ms) and not any(_manages_for_good(key, now_ms) for key in known.values()):
        raise LastManager(prefix)


def allows(key: Key, scope: str) -> bool:
    """Whether a key may do what a scope stands for."""
    assert scope in SCOPES, scope
    return scope in key.scopes


def digest(text: str) -> bytes:
    """What is kept of a key's text."""
    return hashlib.sha256(text.encode("ascii")).digest()


def _refusal(key: Key, now_ms: int) -> Literal["disabled", "expired"] | None:
    if not key.enabled:
        return "disabled"
    return "expired" if key.expires_ms is not None and now_ms >= key.expires_ms else None


def _manages(key: Key, now_ms: int) -> bool:
    return allows(key, "management") and _refusal(key, now_ms) is None


def _manages_for_good(key: Key, now_ms: int) -> bool:
    return _manages(key, now_ms) and key.expires_ms is None


def _read_name(value: object, path: tuple[str, ...]) -> str:
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise InvalidInput([Problem(path, f"must be 1 to {MAX_NAME} printable characters; got {shown(value)}", value)])


def _read_scopes(value: object, path: tuple[str, ...]) -> frozenset[str]:
    rule = f"must be some of {', '.join(SCOPES)}"
    if not isinstance(value, list | tuple | frozenset) or not value:
        got = "none" if isinstance(value, Sized) and not value else shown(value)
        raise InvalidInput([Problem(path, f"{rule}; got {got}", value)])
    wrong = {shown(scope): scope for scope in value if scope not in SCOPES}
    problems = []
    for text, scope in list(wrong.items())[:_MAX_TOLD]:
        hint = f"nearest valid value: {near}" if (near := closest(scope, SCOPES)) else ""
        problems.append(Problem(path, f"{rule}; got {text}", scope, hint))
    if problems:
        raise InvalidInput(problems)
    return frozenset(value)


def _read_enabled(value: object, path: tuple[str, ...]) -> bool:
    if isinstance(value, bool):
        return value
    raise InvalidInput([Problem(path, f"must be true or false; got {shown(value)}", value)])


def _read_limit(value: object, path: tuple[str, ...]) -> KeyLimit:
    if not isinstance(value, Mapping):
        rule = 'must be an object such as {"retention": "month", "threshold": 25}'
        raise InvalidInput([Problem(path, f"{rule}; got {shown(value)}", value)])
    readers: Mapping[str, Reader] = {"retention": _read_retention, "threshold": read_usd}
    found: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, reader in readers.items():
        try:
            found[name] = reader(value.get(name), (*path, name))
        except InvalidInput as error:
            problems += error.problems
    if problems:
        raise InvalidInput(problems)
    return KeyLimit(**found)


def _read_retention(value: object, path: tuple[str, ...]) -> str:
    allowed = get_args(Retention)
    if value in allowed:
        return str(value)
    hint = f"nearest valid value: {near}" if (near := closest(value, allowed)) else ""
    raise InvalidInput([Problem(path, f"must be one of {', '.join(allowed)}; got {shown(value)}", value, hint)])


_READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "name": _read_name,
        "scopes": _read_scopes,
        "enabled": _read_enabled,
        "expires_ms": read_moment,
        "limit": _read_limit,
    }
)


def _expiry_problems(expires_ms: int | None, now_ms: int, names: Mapping[str, str] = NAMES) -> list[Problem]:
    if expires_ms is None or now_ms < expires_ms <= MAX_MS:
        return []
    got = iso(expires_ms) if 0 <= expires_ms <= MAX_MS else shown(expires_ms)
    rule = f"must be in the future, and before the year 10000; got {got}"
    return [Problem((names["expires_ms"],), rule, got)]


def _text_problems(text: str | None) -> list[Problem]:
    if text is None or _TEXT.fullmatch(text):
        return []
    # What was received stays out of the message: it may be a secret with a typing error.
    hint = "make one with: openssl rand -hex 16"
    return [Problem(("key",), f"must be 32 lower-case hex characters; got {len(text)}", None, hint)]


def _reserved(name: str, path: str) -> InvalidInput:
    rule = f"{GIVEN_NAME} is the name of the key that the settings give, and of no other"
    return InvalidInput([Problem((path,), rule, name, "choose another name for a key of your own")])
