"""The playground: the files of `zturbo/web` at `/` and under `/web/`, and its local sessions.

The files are read once, when the application is made; a request's path is looked up in that table and never reaches
the file system. The policy allows no inline script or style, no other host, no frame, and no text turned into markup:
whatever a prompt says is shown as text.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from zturbo.api.routes import Router
from zturbo.api.sessions import LIFETIME_S, LocalSessions
from zturbo.api.tags import known

FOLDER = Path(__file__).parent.parent / "web"
INDEX = "index.html"
TYPES: Mapping[str, str] = MappingProxyType(
    {
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".svg": "image/svg+xml",
    }
)
"""File name suffix -> content type."""
POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=()",
        "cache-control": "no-cache",  # kept by the browser, and asked for again by its ETag
    }
)

router = Router()


@dataclass(frozen=True, slots=True)
class Page:
    """One file of the playground."""

    data: bytes
    content_type: str
    etag: str


def read_pages(folder: Path = FOLDER) -> Mapping[str, Page]:
    """Every file of the playground: its name under `/web/` -> what is sent.

    Raises:
        KeyError: a file of a kind that the playground does not have.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return MappingProxyType({path.relative_to(folder).as_posix(): _read(path) for path in files})


def _read(path: Path) -> Page:
    data = path.read_bytes()
    return Page(data, TYPES[path.suffix], f'"{hashlib.sha256(data).hexdigest()[:32]}"')


PAGES = read_pages()


@router.route("/", "GET", include_in_schema=False)
async def index(request: Request) -> Response:
    """The playground."""
    return answer(request, PAGES[INDEX])


@router.route("/web/{name:path}", "GET", include_in_schema=False)
async def page(request: Request) -> Response:
    """One of its files; 404 for every other name."""
    name = request.path_params["name"]
    found = PAGES.get(name)
    if found is None:
        raise HTTPException(404, f"the playground has no file {name[:60]!r}")
    return answer(request, found)


def answer(request: Request, found: Page) -> Response:
    """A file with the playground's headers, or a 304 where the browser has it already."""
    headers = {**HEADERS, "etag": found.etag}
    if known(request.headers.get("if-none-match"), found.etag):
        return Response(status_code=304, headers=headers)
    return Response(found.data, headers=headers | {"content-type": found.content_type})


@router.route("/web/session", "POST", include_in_schema=False)
async def open_session(request: Request) -> JSONResponse:
    """A token for this server's own page on this computer; see `zturbo.api.sessions`."""
    sessions: LocalSessions = request.app.state.sessions
    return JSONResponse(
        {"token": sessions.open(request), "expires_in": LIFETIME_S}, headers={"cache-control": "no-store"}
    )
