"""`/v1/billing/balance`, `/v2/billing`, `/v2/usage`, `/v2/usage/detail` and `/v2/logs`, in the published API's form.

A key sees its own requests; one with the scope `management` sees every key's, and may narrow them by `key_prefix`.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, cast, get_args

from starlette.requests import Request
from starlette.responses import JSONResponse

from zturbo.api.identity import authenticate
from zturbo.api.keys import PRIVATE, records_of
from zturbo.api.routes import Router
from zturbo.api.sessions import KEY_PREFIX
from zturbo.errors import Forbidden, InvalidInput, Problem
from zturbo.keys import PREFIX_LENGTH, allows
from zturbo.params import closest, shown
from zturbo.quantities import Reader, read_each, read_period, usd
from zturbo.reports import CURRENCY, DEFAULT_PERIOD, ENDS, Query, balance_report, log_report, spendable, usage_report
from zturbo.storage.embedded import now_ms
from zturbo.storage.records import GroupBy, Key, Status

DEFAULT_ROWS, MAX_ROWS = 50, 100
"""Of a page of the log."""
PREFIX_PATTERN = f"[0-9a-f]{{{PREFIX_LENGTH}}}|{KEY_PREFIX}"
MAX_OFFSET = 2**53 - 1
_PREFIX, _NUMBER = re.compile(PREFIX_PATTERN), re.compile("[0-9]{1,18}")

router = Router()


@router.route("/v1/billing/balance", "GET")
async def balance(request: Request) -> JSONResponse:
    """What can still be spent, in credits."""
    key = await authenticate(request)
    now = now_ms()
    return JSONResponse(balance_report(await spendable(records_of(request).ledger, key, now), now), headers=PRIVATE)


@router.route("/v2/billing", "GET")
async def billing(request: Request) -> JSONResponse:
    """What can still be spent, in US dollars."""
    key = await authenticate(request)
    now = now_ms()
    report = balance_report(await spendable(records_of(request).ledger, key, now), now)
    return JSONResponse({"current_balance": usd(report["balance"]), "currency": CURRENCY}, headers=PRIVATE)


@router.route("/v2/usage", "GET")
async def usage(request: Request) -> JSONResponse:
    """What was spent in a period; with `group_by` also by group."""
    return await _usage(request, by_model=False)


@router.route("/v2/usage/detail", "GET")
async def usage_detail(request: Request) -> JSONResponse:
    """The same, with the sums of each model."""
    return await _usage(request, by_model=True)


async def _usage(request: Request, by_model: bool) -> JSONResponse:
    key = await authenticate(request)
    query, found = read_parameters(request, key, _USAGE_READERS, DEFAULT_PERIOD)
    async with _turn(request, key):
        report = await usage_report(records_of(request), query, found.get("group_by"), by_model)
    return JSONResponse(report, headers=PRIVATE)


@router.route("/v2/logs", "GET")
async def logs(request: Request) -> JSONResponse:
    """Requests, newest first; failed and rejected ones as well."""
    key = await authenticate(request)
    query, found = read_parameters(request, key, _LOG_READERS)
    limit = found.get("limit", DEFAULT_ROWS)
    async with _turn(request, key):
        page = await records_of(request).history.logs(
            limit, found.get("offset", 0), query.key, query.start_ms, query.end_ms,
            model=_model(request, found.get("model")), statuses=found.get("status"),
        )  # fmt: skip
    return JSONResponse(log_report(page, limit), headers=PRIVATE)


def _turn(request: Request, key: Key) -> asyncio.Semaphore:
    """One look through the records at a time for each key: many at once would keep others' waiting."""
    turns: defaultdict[str, asyncio.Semaphore] = request.app.state.scans
    return turns[key.prefix]


def read_parameters(
    request: Request, key: Key, readers: Mapping[str, Reader], period: str | None = None
) -> tuple[Query, dict[str, Any]]:
    """Which requests are meant, and what else the route asks for.

    Args:
        key: who asks.
        readers: of the route's own parameters.
        period: where the address names no period, start or end; None is the whole past.

    Raises:
        InvalidInput: with every problem found.
        Forbidden: another key's requests, without the scope management.
    """
    readers = {"key_prefix": _read_prefix, **readers}
    values, problems = _values(request, ("period", "start", "end", *readers))
    found, wrong = read_each(values, readers, {})
    try:
        whole = {"period": period} if not {"period", "start", "end"} & values.keys() else values
        start_ms, end_ms = read_period(whole, now_ms())
    except InvalidInput as error:
        wrong += error.problems
    if problems or wrong:
        raise InvalidInput([*problems, *wrong])
    return Query(start_ms, end_ms, _visible(key, found.pop("key_prefix", None))), found


def _values(request: Request, names: Collection[str]) -> tuple[dict[str, object], list[Problem]]:
    """Name -> value, or the list of values where a parameter may be repeated; `key` is short for `key_prefix`."""
    values: dict[str, object] = {}
    problems = []
    for name in names:
        given = request.query_params.getlist(name)
        if name == "key_prefix":
            given = given or request.query_params.getlist("key")
        if len(given) > 1 and name not in REPEATED:
            problems.append(Problem((name,), f"must be given once; got {len(given)} of it", None))
        elif given:
            values[name] = given if name in REPEATED else given[0]
    return values, problems


def _visible(key: Key, wanted: str | None) -> str | None:
    """The prefix of the key whose requests are shown; None is every key's.

    A foreign prefix is refused whether there is such a key or not.
    """
    if allows(key, "management"):
        return wanted
    if wanted not in (None, key.prefix):
        raise Forbidden("this key sees its own requests only", "leave key_prefix out, or use a key that manages keys")
    return key.prefix


def _model(request: Request, names: list[str] | None) -> str | None:
    """The name that the log has for a model; one that does not answer here stays, and matches nothing."""
    models: tuple[str, ...] = request.app.state.models
    return None if names is None else models[0] if set(names) & set(models) else names[0]


def _read_prefix(value: object, path: tuple[str, ...]) -> str:
    if _PREFIX.fullmatch(str(value)):
        return str(value)
    # What was received stays out of the answer: it may be a whole key.
    rule = f"must be a key's prefix, its first {PREFIX_LENGTH} characters; got {len(str(value))}"
    raise InvalidInput([Problem(path, rule, None)])


def _word(*allowed: str) -> Reader:
    def read(value: object, path: tuple[str, ...]) -> str:
        if value in allowed:
            return str(value)
        hint = f"nearest valid value: {closest(value, allowed) or allowed[0]}"
        raise InvalidInput([Problem(path, f"must be one of {'; '.join(allowed)}; got {shown(value)}", value, hint)])

    return read


def _whole(low: int, high: int) -> Reader:
    def read(value: object, path: tuple[str, ...]) -> int:
        if _NUMBER.fullmatch(str(value)) and low <= int(str(value)) <= high:
            return int(str(value))
        raise InvalidInput([Problem(path, f"must be an integer from {low} to {high}; got {shown(value)}", value)])

    return read


def _read_ends(values: object, path: tuple[str, ...]) -> list[Status]:
    read = _word(*ENDS)
    return [status for value in cast(list[str], values) for status in ENDS[read(value, path)]]


REPEATED = ("model", "status")
"""Parameters that may come several times; a request that fits one of the values is shown."""
_USAGE_READERS: Mapping[str, Reader] = MappingProxyType({"group_by": _word(*get_args(GroupBy)), "tz": _word("UTC")})
_LOG_READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "limit": _whole(1, MAX_ROWS),
        "offset": _whole(0, MAX_OFFSET),
        "model": lambda names, _path: names,  # any name may be asked for
        "status": _read_ends,
    }
)
