"""One body for every error, and the handlers that make it.

A superset of three published envelopes, so that clients of each find what they read: the vendor's flat members
(`statusCode`, `message`, `path`), its problem details (`title`, `status`, `instance`), and OpenAI's `error` object.
"""

import json
import logging
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from zturbo.errors import Cancelled, InsufficientCredits, InvalidInput, Problem, StorageError, ZTurboError
from zturbo.params import shown

TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
KINDS = {InsufficientCredits.code: "err_insufficent_credits"}  # the published API's spelling
TITLES = {Cancelled.status: "Client Closed Request"}
"""Of statuses that no standard names; this one is nginx's."""
log = logging.getLogger("zturbo.http")
CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def error_body(
    status: int, message: str, code: str, path: str, request_id: str, problems: tuple[Problem, ...] = ()
) -> dict[str, Any]:
    """The body of one error.

    Args:
        status: HTTP status.
        message: for people; the first line says what is wrong.
        code: for programs.
        path: of the request.
        request_id: of the request.
        problems: of the request's members, all of them.
    """
    title = TITLES.get(status) or HTTPStatus(status).phrase
    issues = [
        {"path": list(one.path), "message": one.message, "received": _json_safe(one.received), "hint": one.hint}
        for one in problems
    ]
    return {
        "requestId": request_id,
        "statusCode": status,
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "path": path,
        "title": title,
        "status": status,
        "instance": path,
        "message": message,
        "error": {
            "name": title.replace(" ", "").replace("-", "") + "Exception",
            "message": message,
            "type": TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
            "code": code,
            "param": ".".join(problems[0].path) if problems else None,
            "data": {"kind": "err_validation" if problems else KINDS.get(code, f"err_{code}"), "issues": issues},
        },
    }


def _json_safe(value: object) -> object:
    """A received value as JSON can carry it back: short, and without what JSON has no word for."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError, UnicodeError):
        return ascii(value)[:200]
    return value if len(text) <= 200 else text[:200]


def respond(request: Request, error: Exception) -> JSONResponse:
    """Any error as its answer; what is not one of ours is a 500 that tells nothing of the inside."""
    status, headers, body = _rendered(request, error)
    return JSONResponse(body, status, headers)


def error_of(request: Request, error: Exception) -> dict[str, Any]:
    """The body that `respond` would send, for a stream that has already begun."""
    return _rendered(request, error)[2]


def _rendered(request: Request, error: Exception) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and body of an error."""
    problems: tuple[Problem, ...] = ()
    headers: dict[str, str] = {}
    if isinstance(error, InvalidInput):
        status, code, problems = error.status, error.code, error.problems
        part = _part(request, problems[0])
        message = f"{part} validation error\n{error.message}"
    elif isinstance(error, ZTurboError):
        status, code, message = error.status, error.code, str(error)
        if isinstance(error, StorageError):
            log.warning("request %s: %s", request.scope["state"]["request_id"], message)
            if "key" not in request.scope["state"]:  # paths are nobody's business but the log's
                message = "pictures or records cannot be read now: the server's log has the details"
        if error.retry_after_s is not None:
            headers["retry-after"] = str(error.retry_after_s)
        headers |= error.headers
    elif isinstance(error, HTTPException):
        status, message = error.status_code, str(error.detail)
        code = CODES.get(status, "bad_request")
        headers |= {name.lower(): value for name, value in (error.headers or {}).items()}
        if status == 405:
            headers["allow"] = ", ".join(_allowed(request))
            message = f"{shown(request.url.path)} takes {headers['allow']}; got {request.method}"
        elif message == HTTPStatus.NOT_FOUND.phrase:
            message = f"there is nothing at {shown(request.url.path)}; /docs lists what there is"
    else:
        status, code, message = 500, "internal_error", "internal error: the server's log has the details"
    if status >= 500 and "retry-after" not in headers:
        headers["x-should-retry"] = "false"  # the official OpenAI clients obey it
    request_id = request.scope["state"]["request_id"]
    return status, headers, error_body(status, message, code, request.url.path, request_id, problems)


def _part(request: Request, problem: Problem) -> str:
    """Which part of a request a problem is told of."""
    if problem.path[0] in request.headers:
        return "Header"
    return "Query" if request.method in ("GET", "HEAD") else "Body"


def _allowed(request: Request) -> list[str]:
    """The methods of all routes of a path; the framework names those of the first one only."""
    routes: list[Route] = request.app.state.routes
    found = (route.methods or () for route in routes if route.path_regex.match(request.url.path))
    return sorted({method for methods in found for method in methods})


def install(app: Starlette) -> None:
    """Make `respond` answer for every error but a crash, which the request-id middleware turns into a 500."""

    async def handler(request: Request, error: Exception) -> JSONResponse:
        return respond(request, error)

    for kind in (ZTurboError, HTTPException):
        app.add_exception_handler(kind, handler)
