"""Requests, keys and moments that the suites share."""

from datetime import UTC, datetime
from itertools import count

from zturbo.storage.records import Ending, Key, Request

_NUMBERS = count(1)


def at(text: str) -> int:
    """Milliseconds since 1970 of an ISO time in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


NOW = at("2026-03-11T12:00")
"""A Wednesday."""


def request(request_id: str = "", **changes: object) -> Request:
    number = next(_NUMBERS)
    facts = {
        "request_id": request_id or f"r{number}", "inference_id": f"i{number}", "created_ms": NOW, "key": "0123abcd",
        "client_request_id": "mine", "model": "alibaba/z-image-turbo", "width": 1024, "height": 768, "steps": 8,
        "images": 1,
    }  # fmt: skip
    return Request(**(facts | changes))  # type: ignore[arg-type]


def done(credits: int = 0, ended_ms: int = NOW + 1500, **changes: object) -> Ending:
    return Ending(status="done", ended_ms=ended_ms, credits=credits, **changes)  # type: ignore[arg-type]


def failed(ended_ms: int = NOW + 1500, error: str = "internal_error") -> Ending:
    return Ending(status="failed", ended_ms=ended_ms, error=error)


def key(prefix: str = "0123abcd", **changes: object) -> Key:
    facts = {
        "prefix": prefix, "digest": prefix.encode() * 4, "name": "Ada's", "created_ms": NOW,
        "scopes": frozenset({"model:image"}),
    }  # fmt: skip
    return Key(**(facts | changes))  # type: ignore[arg-type]
