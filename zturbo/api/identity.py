"""Who asks, and which request this is: the bearer key, and the ids on every answer.

Middleware here is pure ASGI: Starlette's BaseHTTPMiddleware hides a client's leaving from the handlers.
"""

import asyncio
import logging
import re
import time
from collections.abc import Iterator

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zturbo.api.errors import respond
from zturbo.api.sessions import LocalSessions
from zturbo.errors import Forbidden, Unauthorized
from zturbo.keys import allows, check
from zturbo.metrics import Metrics
from zturbo.service import Service
from zturbo.storage.embedded import now_ms
from zturbo.storage.records import Key
from zturbo.tokens import new_token

CLIENT_CLOSED = 499
"""The status of an answer that nobody reads, because the client is gone."""
_WHOLE_KEY = re.compile(r"(?<![0-9a-f])([0-9a-f]{8})[0-9a-f]{24}(?![0-9a-f])")
CLIENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
EXPOSED = ("x-request-id", "x-inference-id", "x-client-request-id", "x-aimlapi-credits-used", "x-aimlapi-usd-spent",
           "retry-after", "x-should-retry", "idempotent-replayed")  # fmt: skip
READABLE = ((b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", ", ".join(EXPOSED).encode()))
SEND_TIMEOUT_S = 30.0
"""How long a client may leave one piece of its answer unread."""
PIECE_BYTES = 1 << 18
"""Of an answer, at most. Granian takes four messages of any size before it waits for the client to read."""
INVALID_KEY = "This request requires a valid API key"
REASONS = {"malformed": "What was sent has not the form of one.", "unknown": "There is no such key.",
           "disabled": "This key is disabled.", "expired": "This key has expired."}  # fmt: skip
UNLOGGED = ("/healthz", "/readyz", "/metrics")

log = logging.getLogger("zturbo.http")


class RequestIds:
    """Gives each request its id, logs how it was answered, and answers a crash with a 500 in our own form."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request_id, start, status = new_token(), time.perf_counter(), 0
        scope.setdefault("state", {})["request_id"] = request_id
        client_id = client_id_of(Headers(scope=scope))
        tags = [(b"x-request-id", request_id.encode()), (b"x-inference-id", request_id.encode())]
        if client_id is not None:
            tags.append((b"x-client-request-id", client_id.encode()))

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *tags]
            for piece in _pieces(message):
                try:
                    async with asyncio.timeout(SEND_TIMEOUT_S):
                        await send(piece)
                except TimeoutError:  # it must not hold its place, its credits and its pictures for ever
                    raise ClientDisconnect from None

        try:
            await self.app(scope, receive, tagged)
        except ClientDisconnect:  # while its body was being read, or our answer was not: nobody is left to answer
            status = CLIENT_CLOSED
        except Exception as error:
            log.exception("crashed", extra={"request_id": request_id, "path": _told(scope["path"])})
            if status:
                raise
            tags.extend(READABLE)  # this answer does not pass the middleware that says so of all others
            await respond(Request(scope), error)(scope, receive, tagged)
        finally:
            self.metrics.answered(status)
            if scope["path"] not in UNLOGGED:
                log.info(
                    "answered",
                    extra={"request_id": request_id, "client_request_id": client_id, "method": scope["method"],
                           "path": _told(scope["path"]), "status": status, "key": scope["state"].get("key"),
                           "seconds": round(time.perf_counter() - start, 4)},
                )  # fmt: skip


def _pieces(message: Message) -> Iterator[Message]:
    """A message of an answer as several small ones, of which only the last may end it."""
    body = message.get("body", b"")
    if len(body) <= PIECE_BYTES:
        yield message
        return
    for start in range(0, len(body), PIECE_BYTES):
        end = start + PIECE_BYTES
        more = end < len(body) or message.get("more_body", False)
        yield {**message, "body": body[start:end], "more_body": more}


def _told(text: str) -> str:
    """A path as the log has it: of a whole key, sent where its prefix was asked for, the prefix alone."""
    return _WHOLE_KEY.sub(r"\1...", text)


def client_id_of(headers: Headers) -> str | None:
    """The client's own id of a request, where it sends one of the allowed form, and not its key, which is not kept."""
    client_id = headers.get("x-client-request-id", "")
    is_key = headers.get("authorization", "").split()[-1:] == [client_id]
    return client_id if CLIENT_ID.fullmatch(client_id) and not is_key else None


async def authenticate(request: Request) -> Key:
    """The key that a request carries.

    Raises:
        Unauthorized: no key, or none that works.
        StorageError: the keys cannot be read.
    """
    service: Service = request.app.state.service
    sessions: LocalSessions = request.app.state.sessions
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized(f"{INVALID_KEY}. Send it as the header `Authorization: Bearer <key>`.")
    key = sessions.key_of(given.strip()) or await check(service.records.keys, given.strip(), now_ms())
    if isinstance(key, str):
        raise Unauthorized(f"{INVALID_KEY}. {REASONS[key]}", "`zturbo keys list` shows the keys there are")
    request.scope["state"]["key"] = key.prefix
    return key


async def authorize(request: Request, scope: str) -> Key:
    """The key that a request carries, allowed to do what a scope stands for.

    Raises:
        Unauthorized, StorageError: as `authenticate`.
        Forbidden: it lacks the scope.
    """
    key = await authenticate(request)
    if not allows(key, scope):
        raise Forbidden(f"this key lacks the scope {scope}", "use another key, or let its owner change it")
    return key
