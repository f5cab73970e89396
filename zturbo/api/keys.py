"""`/v1/keys` and `/v1/key`: keys made, listed, changed and deleted over HTTP, in the published API's form.

Beyond it: `expires_at`, what is spent of a limit, the scope `management`, `enabled` understood as the opposite of
`disabled`, and amounts of money as text as well as numbers. Unknown members are ignored. Null takes a limit or an
expiry away; elsewhere it counts as absent.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from zturbo.api.identity import authenticate, authorize
from zturbo.api.images import read_body
from zturbo.api.routes import Router
from zturbo.keys import NAMES, Facts, change, create, keep_a_manager, read, revoke
from zturbo.reports import key_report
from zturbo.storage.embedded import now_ms
from zturbo.storage.records import Key, Records

UNNAMED = "unnamed"
"""What a key is called that was made without a name."""
PRIVATE = {"cache-control": "no-store"}
"""Header of answers that are for one reader only."""

router = Router()


@router.route("/v1/keys", "POST")
async def create_key(request: Request) -> JSONResponse:
    """Make a key; its whole text is in this answer and nowhere else."""
    await authorize(request, "management")
    facts: Facts = {"name": UNNAMED, **read_facts(await _optional_body(request), now_ms())}
    records = records_of(request)
    key, text = await create(records.keys, now_ms=now_ms(), **facts)
    return await _told(records, key, text)


@router.route("/v1/keys", "GET")
async def list_keys(request: Request) -> JSONResponse:
    """Every key, oldest first."""
    await authorize(request, "management")
    records = records_of(request)
    reports = [key_report(records.ledger, key, now_ms()) for key in await records.keys.list()]
    return JSONResponse({"data": await asyncio.gather(*reports)}, headers=PRIVATE)


@router.route("/v1/key", "GET")
async def own_key(request: Request) -> JSONResponse:
    """The key that asks."""
    return await _told(records_of(request), await authenticate(request))


@router.route("/v1/keys/{prefix}", "PATCH")
async def change_key(request: Request) -> JSONResponse:
    """Change what is given; the rest stays."""
    await authorize(request, "management")
    facts = read_facts(await read_body(request), now_ms())
    records, prefix = records_of(request), request.path_params["prefix"]
    async with request.app.state.managing:
        await keep_a_manager(records.keys, prefix, facts, now_ms())
        key = await change(records.keys, prefix, facts, now_ms())
    return await _told(records, key)


@router.route("/v1/keys/{prefix}", "DELETE")
async def delete_key(request: Request) -> JSONResponse:
    """Delete a key; its requests stay in the log."""
    await authorize(request, "management")
    records, prefix = records_of(request), request.path_params["prefix"]
    async with request.app.state.managing:
        await keep_a_manager(records.keys, prefix, None, now_ms())
        await revoke(records.keys, prefix)
    return JSONResponse({"data": {"prefix": prefix, "deleted": True}}, headers=PRIVATE)


def read_facts(body: Mapping[str, Any], now_ms: int) -> Facts:
    """What a body's sender decides of a key; `disabled` wins over `enabled`.

    Raises:
        InvalidInput: with every problem found.
    """
    names = {name: NAMES.get(name, name) for name in Facts.__annotations__}
    values = {name: body[member] for name, member in names.items() if member in body}
    if (disabled := body.get("disabled")) is not None:
        names["enabled"] = "disabled"
        values["enabled"] = not disabled if isinstance(disabled, bool) else disabled
    return read(values, now_ms, names)


def records_of(request: Request) -> Records:
    """The records of the server that answers."""
    records: Records = request.app.state.service.records
    return records


async def _optional_body(request: Request) -> dict[str, Any]:
    """A body that may be left out altogether."""
    headers = request.headers
    absent = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
    return {} if absent else await read_body(request)


async def _told(records: Records, key: Key, text: str | None = None) -> JSONResponse:
    """A key's facts, and its whole text where it is new."""
    whole = {"key": text} if text is not None else {}
    return JSONResponse({"data": await key_report(records.ledger, key, now_ms()) | whole}, headers=PRIVATE)
