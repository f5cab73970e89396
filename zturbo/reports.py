"""Keys, balance, usage and log as JSON: the same from the HTTP routes and from the command line's --json.

Names and forms are the published API's (its pages on key management, account balance, key usage and usage logs). Ours,
beside its own, are `expires_at`, what is spent of a limit, pictures, credits and how a request ended.
Sums are integer credits up to here; dollars are made last, each from one such sum. Knows neither HTTP nor torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from zturbo.keys import SCOPES, allows
from zturbo.quantities import iso, usd
from zturbo.storage.records import (
    MAX_CREDITS,
    Account,
    Generation,
    GroupBy,
    Key,
    KeyLimit,
    Ledger,
    LogPage,
    Records,
    Status,
    UsageRow,
)

CURRENCY = "USD"
DEFAULT_PERIOD = "30d"
"""Of the usage, where none is named."""
NO_TOKENS = {"input": 0, "output": 0, "total": 0}
"""The published API counts none for models that are billed by the picture."""
ENDS: Mapping[str, tuple[Status, ...]] = MappingProxyType(
    {"succeeded": ("done",), "failed": ("failed", "cancelled", "rejected"), "running": ("running",)}
)
"""How the published log calls a request's end -> how the ledger does."""


async def key_report(ledger: Ledger, key: Key, now_ms: int) -> dict[str, Any]:
    """A key's facts and what it has spent."""
    month = await ledger.spending(key.prefix, "month", now_ms)
    return {
        "name": key.name,
        "prefix": key.prefix,
        "disabled": not key.enabled,
        "scopes": [scope for scope in SCOPES if scope in key.scopes],
        "limit": await _limit_report(ledger, key.prefix, key.limit, now_ms) if key.limit else None,
        "expires_at": iso(key.expires_ms) if key.expires_ms is not None else None,
        "created_at": iso(key.created_ms),
        "updated_at": iso(key.created_ms if key.updated_ms is None else key.updated_ms),
        "monthly_usage": usd(month.spent),
    }


async def _limit_report(ledger: Ledger, prefix: str, limit: KeyLimit, now_ms: int) -> dict[str, Any]:
    spending = await ledger.spending(prefix, limit.retention, now_ms)
    return {
        "retention": limit.retention,
        "threshold": usd(limit.threshold),
        "spent": usd(spending.spent),
        "held": usd(spending.held),
        "window_start": None if limit.retention == "no_reset" else iso(spending.window_start_ms),
    }


async def spendable(ledger: Ledger, key: Key, now_ms: int) -> Account:
    """The account as a key may know it: who does not manage it sees no more than is left of the key's own limit."""
    account = await ledger.account()
    if key.limit is None or allows(key, "management"):
        return account
    spending = await ledger.spending(key.prefix, key.limit.retention, now_ms)
    left = max(0, key.limit.threshold - spending.spent)
    balance = left if account.balance is None else min(left, account.balance)
    return Account(balance=balance, low_threshold=account.low_threshold, held=spending.held, updated_ms=now_ms)


def balance_report(account: Account, now_ms: int) -> dict[str, Any]:
    """An account's money in credits. The published `balance` is a number, so an unlimited one is the largest."""
    balance = account.balance
    low = balance is not None and balance < account.low_threshold
    return {
        "balance": MAX_CREDITS if balance is None else balance,
        "unlimited": balance is None,
        "held": account.held,
        "lowBalance": low,
        "lowBalanceThreshold": account.low_threshold,
        "lastUpdated": iso(now_ms),
        "autoDebitStatus": "disabled",
        "status": "current",
        "statusExplanation": _explanation(balance, low),
    }


def _explanation(balance: int | None, low: bool) -> str:
    if balance is None:
        return "The balance is unlimited: nothing runs out"
    if balance == 0:
        return "The balance is used up: only what is free is drawn"
    return "The balance is below the threshold" if low else "The balance is current"


@dataclass(frozen=True, slots=True)
class Query:
    """Which requests are meant.

    Attributes:
        start_ms, end_ms: of the requests' beginnings, [start, end), in milliseconds since 1970.
        key: a key's prefix; None is every key's.
    """

    start_ms: int
    end_ms: int
    key: str | None


async def usage_report(
    records: Records, query: Query, group_by: GroupBy | None = None, by_model: bool = False
) -> dict[str, Any]:
    """What was spent in a period.

    Args:
        group_by: adds the sums of each group.
        by_model: adds the sums of each model, the dearest first.
    """
    finest: GroupBy = "day,model" if group_by and "day" in group_by else "model"  # every figure is of the same moment
    rows = await records.history.usage(query.start_ms, query.end_ms, finest, query.key)
    report: dict[str, Any] = {
        "api_key_prefix": query.key,
        "start": iso(query.start_ms),
        "end": iso(query.end_ms),
        "spend": usd(sum(row.credits for row in rows)),
        "credits": sum(row.credits for row in rows),
        "currency": CURRENCY,
        "requests": sum(row.delivered for row in rows),
        "images": sum(row.images for row in rows),
    }
    if by_model:
        models = sorted(_folded(rows, "model").items(), key=lambda item: -_credits(item[1]))
        report["models"] = [_model_report(model, some) for (_, model), some in models if model and _delivered(some)]
    if group_by:
        report["groups"] = [_group_report(*group, group_by, some) for group, some in _folded(rows, group_by).items()]
    return report


def _folded(rows: Iterable[UsageRow], group_by: GroupBy) -> dict[tuple[str | None, str | None], list[UsageRow]]:
    """(day, model) -> the rows of this group; None where it is not grouped by."""
    groups: dict[tuple[str | None, str | None], list[UsageRow]] = {}
    for row in rows:
        group = (row.day if "day" in group_by else None, row.model if "model" in group_by else None)
        groups.setdefault(group, []).append(row)
    return groups


def _model_report(model: str, rows: Sequence[UsageRow]) -> dict[str, Any]:
    return {"model": model, "spend": usd(_credits(rows)), "requests": _delivered(rows)}


def _group_report(day: str | None, model: str | None, group_by: GroupBy, rows: Sequence[UsageRow]) -> dict[str, Any]:
    named = {name: value for name, value in (("day", day), ("model", model)) if name in group_by}
    return named | {
        "spend": usd(_credits(rows)),
        "credits": _credits(rows),
        "images": sum(row.images for row in rows),
        "tokens": NO_TOKENS,
        "requests": {
            "total": sum(row.requests for row in rows),
            "charged": _delivered(rows),
            "succeeded": _delivered(rows),
            "failed": sum(row.failed for row in rows),
        },
    }


def _credits(rows: Iterable[UsageRow]) -> int:
    return sum(row.credits for row in rows)


def _delivered(rows: Iterable[UsageRow]) -> int:
    return sum(row.delivered for row in rows)


def log_report(page: LogPage, limit: int) -> dict[str, Any]:
    """A page of the log, newest request first."""
    return {
        "data": [_request_report(row) for row in page.rows],
        "pagination": {"limit": limit, "offset": page.offset, "total": page.total, "has_more": page.has_more},
    }


def _request_report(row: Generation) -> dict[str, Any]:
    request = row.request
    return {
        "created": iso(request.created_ms),
        "status": next(name for name, statuses in ENDS.items() if row.status in statuses),
        "origin": request.origin,
        "model": request.model,
        "cost": {"usd": usd(row.credits), "credits": row.credits},
        "tokens": NO_TOKENS,
        "request_id": request.request_id,
        "inference_id": request.inference_id,
        "client_request_id": request.client_request_id,
        "key": request.key,
        "error_code": row.error,
        "ended": iso(row.ended_ms) if row.ended_ms is not None else None,
        "width": request.width,
        "height": request.height,
        "steps": request.steps,
        "images": request.images,
        "seconds": dict(row.seconds),
        "safety": asdict(row.safety) if row.safety else None,
    }
