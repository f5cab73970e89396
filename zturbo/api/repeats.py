"""`Idempotency-Key`: the same key with the same body is answered once, and drawn once.

After Stripe's API (https://docs.stripe.com/api/idempotent_requests), but a request that failed may be tried again. A
key means something to one API key only, for 24 hours.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from zturbo.errors import Conflict, InvalidInput, Problem
from zturbo.params import shown
from zturbo.storage.embedded import now_ms
from zturbo.storage.records import DAY_MS, Answer, Idempotency

HEADER = "idempotency-key"
REPLAYED = {"idempotent-replayed": "true"}
RETRY_S = 1
KEY_PATTERN = "^[!-~]([ -~]{0,253}[!-~])?$"
"""1 to 255 visible ASCII characters, spaces inside."""
_KEY = re.compile(KEY_PATTERN)


@dataclass(frozen=True, slots=True)
class Repetition:
    """A reserved Idempotency-Key: `Service.release` or a ledger's ending with `answer(...)` frees it."""

    owner: str
    key: str
    first: bytes | None
    """The first answer, where there is one; then nothing is reserved."""

    def answer(self, body: bytes) -> Answer:
        """The answer to keep."""
        return Answer(self.owner, self.key, body)


async def reserve(request: Request, body: dict[str, Any], owner: str, store: Idempotency) -> Repetition | None:
    """Take the request's Idempotency-Key; None where it has none.

    Args:
        body: the request's JSON object; the order of its members does not matter.
        owner: the API key's prefix.

    Raises:
        InvalidInput: the header is empty, too long or not ASCII.
        Conflict: its first request still runs, or had another body.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise InvalidInput([Problem((HEADER,), f"must be 1 to 255 visible ASCII characters; got {shown(key)}", key)])
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    now = now_ms()
    reservation = await store.reserve(owner, key, digest, now, now + DAY_MS)
    if reservation.state == "running":
        raise Conflict(
            "the first request with this Idempotency-Key is still running", f"try again in {RETRY_S} s", RETRY_S
        )
    if reservation.state == "other_body":
        raise Conflict("this Idempotency-Key was used with another body", "send a new key with every new request")
    return Repetition(owner, key, reservation.answer)
