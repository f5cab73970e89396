"""The routes of one file of zturbo.api, each written down beside its handler."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Handler = Callable[[Request], Awaitable[Response]]


class Router:
    """Collects routes.

    Plain routes: a framework's dependencies and models would cost each request time, and the endpoint reads its body
    itself, to tell all problems of it at once.
    """

    def __init__(self) -> None:
        self.routes: list[Route] = []

    def route(self, path: str, *methods: str, include_in_schema: bool = True) -> Callable[[Handler], Handler]:
        """Answer these methods of a path, and no other: without this, HEAD would come with every GET.

        Args:
            path: as in `starlette.routing.Route`.
            include_in_schema: whether `/openapi.json` describes it.
        """

        def keep(handler: Handler) -> Handler:
            route = Route(path, handler, methods=methods, include_in_schema=include_in_schema)
            route.methods = set(methods)
            self.routes.append(route)
            return handler

        return keep
