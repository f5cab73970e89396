"""`GET` and `HEAD /files/b/...`: the pictures, public but unguessable, whole or a range of them (RFC 9110, 14)."""

import asyncio
import re
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from zturbo.api.routes import Router
from zturbo.api.tags import known
from zturbo.errors import RangeNotSatisfiable
from zturbo.storage.files import Files, OpenFile

CHUNK_BYTES = 1 << 18
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)

router = Router()


@router.route("/files/b/{name:path}", "GET")
async def file(request: Request) -> Response:
    """One picture; 404 where there never was one, 410 after its retention."""
    files: Files = request.app.state.service.files
    opened = await files.open(request.path_params["name"])
    tag = f'"{request.path_params["name"].rpartition("/")[2]}"'  # the name stands for the bytes: they never change
    headers = {
        "etag": tag,
        "content-type": opened.content_type,
        "cache-control": "public, max-age=31536000, immutable",
        "accept-ranges": "bytes",
        "x-content-type-options": "nosniff",
    }
    if known(request.headers.get("if-none-match"), tag):
        opened.stream.close()
        return Response(status_code=304, headers={name: headers[name] for name in ("etag", "cache-control")})
    wanted = request.headers.get("range") if request.method == "GET" else None  # RFC 9110, 14.2: of GET alone
    if request.headers.get("if-range", tag) != tag:
        wanted = None
    span = wanted_range(wanted, opened.size_bytes)
    if span is None:
        opened.stream.close()
        raise RangeNotSatisfiable(wanted or "", opened.size_bytes)
    first, count = span
    headers["content-length"] = str(count)
    whole = count == opened.size_bytes
    if not whole:
        headers["content-range"] = f"bytes {first}-{first + count - 1}/{opened.size_bytes}"
    if request.method == "HEAD":
        opened.stream.close()
        return Response(headers=headers)
    return StreamingResponse(_read(opened, first, count), 200 if whole else 206, headers)


def wanted_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and count that a Range header asks for; None where it can not be met.

    Several ranges, other units and what cannot be read ask for the whole, as the specification allows.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.groups() == ("", ""):
        return 0, size
    if not match[1]:  # the last bytes
        count = min(int(match[2]), size)
        return (size - count, count) if count else None
    first = int(match[1])
    last = min(int(match[2]), size - 1) if match[2] else size - 1
    if match[2] and int(match[2]) < first:
        return 0, size
    return (first, last - first + 1) if first < size else None


async def _read(opened: OpenFile, first: int, count: int) -> AsyncIterator[bytes]:
    """The bytes of a range, read in a thread so that a slow disk delays nobody else."""
    with opened.stream as stream:
        stream.seek(first)
        while count and (chunk := await asyncio.to_thread(stream.read, min(CHUNK_BYTES, count))):
            count -= len(chunk)
            yield chunk
