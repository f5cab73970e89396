"""Who asks, and which request this is: the bearer key, and the ids on every answer.

Middleware here is pure ASGI: Starlette's BaseHTTPMiddleware hides a client's leaving from the handlers.
"""

import hmac
import logging
import re
import secrets

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zturbo.api.errors import respond
from zturbo.errors import Unauthorized

CLIENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
EXPOSED = ("x-request-id", "x-inference-id", "x-client-request-id", "x-aimlapi-credits-used", "x-aimlapi-usd-spent",
           "retry-after", "x-should-retry")  # fmt: skip
INVALID_KEY = "This request requires a valid API key"

log = logging.getLogger("zturbo")


def new_id() -> str:
    """21 characters of A-Z, a-z, 0-9, - and _: 126 random bits."""
    return secrets.token_urlsafe(16)[:21]


class RequestIds:
    """Gives each request its id, puts it on the answer, and answers a crash with a 500 in our own form."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request_id = new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        client_id = Headers(scope=scope).get("x-client-request-id", "")
        started = False

        async def tagged(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = headers["x-inference-id"] = request_id
                if CLIENT_ID.fullmatch(client_id):
                    headers["x-client-request-id"] = client_id
            await send(message)

        try:
            await self.app(scope, receive, tagged)
        except Exception as error:
            log.exception("request %s to %s crashed", request_id, scope["path"])
            if started:
                raise
            await respond(Request(scope), error)(scope, receive, tagged)


def require_key(request: Request, key: str) -> None:
    """Compare the bearer key in constant time.

    Raises:
        Unauthorized: no key, or another one.
    """
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
        raise Unauthorized(f"{INVALID_KEY}. Send it as the header `Authorization: Bearer <key>`.")
