"""The routes of one file of zturbo.api, each written down beside its handler."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A handler as an ASGI application. What it raises is answered by the application's handlers of errors alone; to a
    plain function Starlette would give a second set of them."""

    handler: Handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self.handler(Request(scope, receive, send))
        await response(scope, receive, _headers_of(send) if scope["method"] == "HEAD" else send)


def _headers_of(send: Send) -> Send:
    """Sends an answer without its body."""

    async def bare(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return bare


class Router:
    """Collects routes.

    Plain routes: a framework's dependencies and models would cost each request time, and the endpoint reads its body
    itself, to tell all problems of it at once.
    """

    def __init__(self) -> None:
        self.routes: list[Route] = []

    def route(self, path: str, *methods: str, include_in_schema: bool = True) -> Callable[[Handler], Handler]:
        """Answer these methods of a path; HEAD comes with every GET (RFC 9110, 9.1).

        Args:
            path: as in `starlette.routing.Route`.
            include_in_schema: whether `/openapi.json` describes it.
        """

        def keep(handler: Handler) -> Handler:
            name = getattr(handler, "__name__", path)
            route = Route(path, Endpoint(handler), methods=methods, name=name, include_in_schema=include_in_schema)
            self.routes.append(route)
            return handler

        return keep
