"""API keys: made, shown once, and checked.

A key is 32 lower-case hex characters; the first 8 are its public prefix. Only the SHA-256 of the whole is kept. A slow
hash (scrypt, Argon2) guards what people can guess; nobody guesses 128 random bits, and it would cost each request
milliseconds of a processor that draws. Imports neither torch nor a web framework.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from typing import Literal

from zturbo.errors import InvalidInput, Problem
from zturbo.params import closest, shown
from zturbo.storage.records import Key, KeyLimit, Keys

SCOPES = ("model:image", "safety:off", "management")
"""What a key may do: draw, draw without the safety checker where a request asks for that, manage keys."""
DRAWING = ("model:image", "safety:off")
"""What a new key may do unless its maker says otherwise; without the second the checker is on for all its requests."""
PREFIX_LENGTH = 8
GIVEN_NAME = "ZTURBO_API_KEY"
"""What the key that the settings give is called."""
MAX_NAME = 100
"""Code points."""
MAX_MS = 253_402_300_799_999
"""The last millisecond of the year 9999, since 1970 in UTC."""
KeyRefusal = Literal["malformed", "unknown", "disabled", "expired"]
_TEXT = re.compile(r"[0-9a-f]{32}", re.ASCII)
_NOBODY = bytes(32)
_ATTEMPTS = 8


async def create(
    keys: Keys,
    name: str,
    now_ms: int,
    *,
    scopes: Iterable[str] = DRAWING,
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
    if problems := _problems(name, scopes, now_ms, expires_ms, text):
        raise InvalidInput(problems)
    for _ in range(_ATTEMPTS):  # one of 2^32 prefixes may be taken
        whole = text or secrets.token_hex(16)
        key = Key(
            prefix=whole[:PREFIX_LENGTH],
            digest=digest(whole),
            name=name,
            created_ms=now_ms,
            scopes=scopes,
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
        given: the operator's own, or "" for none. A given one takes the place of the one given before.

    Returns:
        The text of a key made now, to be shown once; None where there is one.

    Raises:
        InvalidInput: another key has the given one's prefix.
        StorageError: the keys cannot be read or written.
    """
    known = await keys.list()
    if not given:
        if known:
            return None
        _, text = await create(keys, "first start", now_ms, scopes=SCOPES)
        return text
    before = [key for key in known if key.name == GIVEN_NAME]
    if any(hmac.compare_digest(key.digest, digest(given)) for key in before):
        return None
    for key in before:
        await keys.delete(key.prefix)
    await create(keys, GIVEN_NAME, now_ms, scopes=SCOPES, text=given)
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
    if not key.enabled:
        return "disabled"
    if key.expires_ms is not None and now_ms >= key.expires_ms:
        return "expired"
    return key


def allows(key: Key, scope: str) -> bool:
    """Whether a key may do what a scope stands for."""
    assert scope in SCOPES, scope
    return scope in key.scopes


def digest(text: str) -> bytes:
    """What is kept of a key's text."""
    return hashlib.sha256(text.encode("ascii")).digest()


def _problems(
    name: str, scopes: frozenset[str], now_ms: int, expires_ms: int | None, text: str | None
) -> list[Problem]:
    problems = []
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        message = f"must be 1 to {MAX_NAME} printable characters; got {shown(name)}"
        problems.append(Problem(("name",), message, name))
    if not scopes:
        problems.append(Problem(("scopes",), f"must be some of {', '.join(SCOPES)}; got none", []))
    for scope in sorted(scopes - set(SCOPES)):
        near = closest(scope, SCOPES)
        hint = f"nearest valid value: {near}" if near else ""
        problems.append(Problem(("scopes",), f"must be some of {', '.join(SCOPES)}; got {shown(scope)}", scope, hint))
    if expires_ms is not None and not now_ms < expires_ms <= MAX_MS:
        problems.append(Problem(("expires_at",), "must be in the future, and before the year 10000", expires_ms))
    if text is not None and not _TEXT.fullmatch(text):
        # What was received stays out of the message: it may be a secret with a typing error.
        hint = "make one with: openssl rand -hex 16"
        problems.append(Problem(("key",), f"must be 32 lower-case hex characters; got {len(text)}", None, hint))
    return problems
