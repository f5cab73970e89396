"""What `/openapi.json` says of the routes of keys, billing, usage and log; openapi.py puts it beside the rest."""

from typing import Any, get_args

from zturbo.api.openapi import SAFETY, errors, json_answer
from zturbo.api.usage import DEFAULT_ROWS, MAX_OFFSET, MAX_ROWS, PREFIX_PATTERN
from zturbo.errors import (
    Forbidden,
    InvalidInput,
    LastManager,
    NoSuchKey,
    StorageError,
    TooLarge,
    Unauthorized,
    WrongMediaType,
)
from zturbo.keys import DRAWING, MAX_NAME, NAME_PATTERN, SCOPES
from zturbo.quantities import MAX_USD, PERIOD_PATTERN, USD_PATTERN
from zturbo.reports import CURRENCY, DEFAULT_PERIOD, ENDS
from zturbo.storage.records import GroupBy, Retention

Json = dict[str, Any]


def _text(description: str, **facts: Any) -> Json:
    return {"type": "string", "description": description, **facts}


def _number(description: str, **facts: Any) -> Json:
    return {"type": "number", "description": description, **facts}


def _count(description: str, **facts: Any) -> Json:
    return {"type": "integer", "minimum": 0, "description": description, **facts}


def _moment(description: str, **facts: Any) -> Json:
    return _text(description, format="date-time", **facts)


def _object(properties: Json, optional: tuple[str, ...] = (), **facts: Any) -> Json:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, **({"required": required} if required else {}), **facts}


def _list(items: Json, description: str) -> Json:
    return {"type": "array", "items": items, "description": description}


NULL: Json = {"nullable": True}
_MONEY = [{"type": "number", "minimum": 0, "maximum": MAX_USD}, {"type": "string", "pattern": f"^{USD_PATTERN}$"}]
_RETENTION = _text("The window. Days begin at midnight UTC, weeks on Monday.", enum=list(get_args(Retention)))
_SCOPES = {"type": "array", "minItems": 1, "items": {"type": "string", "enum": list(SCOPES)}}
_PREFIX_IN_PATH = {
    "name": "prefix",
    "in": "path",
    "required": True,
    "description": "The first 8 characters of the key.",
    "schema": {"type": "string", "pattern": f"^({PREFIX_PATTERN})$"},
}

# What a sender decides of a key.
_KEY_IN = {
    "name": _text("For people.", pattern=f"^{NAME_PATTERN}$", maxLength=MAX_NAME, **NULL),
    "disabled": {"type": "boolean", "description": "A disabled key is refused.", **NULL},
    "enabled": {"type": "boolean", "description": "The opposite of `disabled`, which wins.", **NULL},
    "scopes": _SCOPES | {"description": f"What the key may do; at first {', '.join(DRAWING)}."} | NULL,
    "limit": _object(
        {"retention": _RETENTION, "threshold": {"oneOf": _MONEY, "description": "US dollars."}},
        description="What the key may spend in a window; null is no limit.",
        **NULL,
    ),
    "expires_at": _moment("From when on the key is refused, in the future; null is never.", **NULL),
}
_KEY_OUT = {
    "name": _text("For people."),
    "prefix": _text("The first 8 characters of the key; public."),
    "disabled": {"type": "boolean", "description": "Whether the key is refused."},
    "scopes": _list({"type": "string", "enum": list(SCOPES)}, "What the key may do."),
    "limit": _object(
        {
            "retention": _RETENTION,
            "threshold": _number("US dollars."),
            "spent": _number("US dollars charged in this window."),
            "held": _number("US dollars set aside for requests that run."),
            "window_start": _moment("When this window began; null where it never resets.", **NULL),
        },
        description="What the key may spend in a window; null is no limit.",
        **NULL,
    ),
    "expires_at": _moment("From when on the key is refused; null is never.", **NULL),
    "created_at": _moment("When it was made."),
    "updated_at": _moment("When it was last changed."),
    "monthly_usage": _number("US dollars spent since the month began, in UTC."),
}
_NEW_KEY_OUT = _KEY_OUT | {"key": _text("The whole key. It is shown here and never again.")}

_BALANCE = _object(
    {
        "balance": _count("Credits; 2,000,000 are one US dollar. The largest possible where it is unlimited."),
        "unlimited": {"type": "boolean", "description": "Whether nothing runs out."},
        "held": _count("Credits of the balance that running requests have set aside."),
        "lowBalance": {"type": "boolean", "description": "Whether the balance is below the threshold."},
        "lowBalanceThreshold": _count("Credits below which the balance counts as low."),
        "lastUpdated": _moment("When this was read."),
        "autoDebitStatus": _text("Nothing is debited by itself.", enum=["disabled"]),
        "status": _text("The account's.", enum=["current"]),
        "statusExplanation": _text("The balance in a sentence."),
    }
)
_BILLING = _object(
    {"current_balance": _number("US dollars."), "currency": _text("Always US dollars.", enum=[CURRENCY])}
)
_COUNTS = _object(
    {
        "total": _count("Requests that began."),
        "charged": _count("Those that were delivered, and so charged."),
        "succeeded": _count("The same."),
        "failed": _count("Those that ended in another way, free of charge."),
    }
)
_TOKENS = _object({name: _count("Pictures are not charged by the token.") for name in ("input", "output", "total")})
_GROUP = _object(
    {
        "day": _text("YYYY-MM-DD in UTC, where grouped by day."),
        "model": _text("Where grouped by model; null for requests that named none that answers here.", **NULL),
        "spend": _number("US dollars."),
        "credits": _count("The same in credits."),
        "images": _count("Pictures delivered."),
        "tokens": _TOKENS,
        "requests": _COUNTS,
    },
    optional=("day", "model"),
)
_USAGE: Json = {
    "api_key_prefix": _text("Whose requests these are; null is every key's.", **NULL),
    "start": _moment("The period's first moment."),
    "end": _moment("The first moment after the period."),
    "spend": _number("US dollars."),
    "credits": _count("The same in credits."),
    "currency": _text("Always US dollars.", enum=[CURRENCY]),
    "requests": _count("Requests charged."),
    "images": _count("Pictures delivered."),
    "groups": _list(_GROUP, "Where `group_by` was given: a group where there was a request."),
}
_MODELS = _list(
    _object({"model": _text("Its name."), "spend": _number("US dollars."), "requests": _count("Requests charged.")}),
    "The dearest first.",
)
_ROW = _object(
    {
        "created": _moment("When the request began."),
        "status": _text("How it ended.", enum=list(ENDS)),
        "origin": _text("Where it came from.", enum=["api", "playground"]),
        "model": _text("Null where the request named none that answers here.", **NULL),
        "cost": _object({"usd": _number("US dollars."), "credits": _count("The same in credits.")}),
        "tokens": _TOKENS,
        "request_id": _text("As in the header `x-request-id`."),
        "inference_id": _text("As in the header `x-inference-id`."),
        "client_request_id": _text("As the client sent it in `x-client-request-id`.", **NULL),
        "key": _text("The key's prefix.", **NULL),
        "error_code": _text("Why it did not succeed.", **NULL),
        "ended": _moment("Null while it runs.", **NULL),
        "width": _count("Pixels.", **NULL),
        "height": _count("Pixels.", **NULL),
        "steps": _count("Denoising steps.", **NULL),
        "images": _count("Pictures asked for.", **NULL),
        "seconds": {"type": "object", "additionalProperties": {"type": "number"}, "description": "By stage."},
        "safety": _object(
            SAFETY["properties"] | {"flagged": _list({"type": "boolean"}, "Whether each picture was withheld.")},
            description="What the safety checker found; null where nothing was checked.",
            **NULL,
        ),
    }
)
_PAGE = _object(
    {
        "data": _list(_ROW, "Newest first."),
        "pagination": _object(
            {
                "limit": _count("Rows of a page."),
                "offset": _count("Rows before this page."),
                "total": _count("Rows of all pages."),
                "has_more": {"type": "boolean", "description": "Whether rows follow this page."},
            }
        ),
    }
)


def _parameter(name: str, description: str, **schema: Any) -> Json:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


_PERIOD = [
    _parameter("period", "Hours or days up to now, in place of `start` and `end`.", type="string",
               pattern=f"^{PERIOD_PATTERN}$", example="7d"),
    _parameter("start", "From when on; in UTC unless it has an offset.", type="string", format="date-time"),
    _parameter("end", "Until when; now where it is absent.", type="string", format="date-time"),
    _parameter("key_prefix", "Requests of one key; of another than the own one with the scope management only.",
               type="string", pattern=f"^({PREFIX_PATTERN})$"),
]  # fmt: skip
_GROUPING = [
    _parameter("group_by", "Adds the sums of each group.", type="string", enum=list(get_args(GroupBy))),
    _parameter("tz", "Days are counted in UTC.", type="string", enum=["UTC"]),
]
_PAGING = [
    _parameter("model", "Requests of these models; may be repeated.", type="array", items={"type": "string"}),
    _parameter("status", "Requests that ended so; may be repeated.", type="array",
               items={"type": "string", "enum": list(ENDS)}),
    _parameter("limit", "Rows of a page.", type="integer", minimum=1, maximum=MAX_ROWS, default=DEFAULT_ROWS),
    _parameter("offset", "Rows to skip.", type="integer", minimum=0, maximum=MAX_OFFSET, default=0),
]  # fmt: skip


def _operation(tag: str, summary: str, schema: Json, *failures: Any, **more: Any) -> Json:
    """An operation that needs a key."""
    responses = {"200": json_answer("As asked.", schema), **errors(Unauthorized, StorageError, *failures)}
    return {"tags": [tag], "summary": summary, "security": [{"key": []}], **more, "responses": responses}


def _body(required: bool) -> Json:
    schema = _object(_KEY_IN, optional=tuple(_KEY_IN))
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _data(schema: Json) -> Json:
    return _object({"data": schema})


_MANAGED = "Needs the scope management."
_READ = (InvalidInput, TooLarge, WrongMediaType)
_DELETED = _object({"prefix": _text("The key's."), "deleted": {"type": "boolean", "enum": [True]}})

OPERATIONS: dict[str, Json] = {
    "/v1/keys": {
        "get": _operation("keys", "List the keys", _data(_list(_object(_KEY_OUT), "Oldest first.")), Forbidden,
                          description=_MANAGED),
        "post": _operation("keys", "Make a key", _data(_object(_NEW_KEY_OUT)), Forbidden, *_READ,
                           description=_MANAGED, requestBody=_body(required=False)),
    },
    "/v1/key": {"get": _operation("keys", "The key that asks", _data(_object(_KEY_OUT)))},
    "/v1/keys/{prefix}": {
        "patch": _operation("keys", "Change a key", _data(_object(_KEY_OUT)), Forbidden, NoSuchKey, LastManager, *_READ,
                            description=f"{_MANAGED} What is not given stays; null takes a limit or an expiry away.",
                            parameters=[_PREFIX_IN_PATH], requestBody=_body(required=True)),
        "delete": _operation("keys", "Delete a key", _data(_DELETED), Forbidden, NoSuchKey, LastManager,
                             description=f"{_MANAGED} The key's requests stay in the log.",
                             parameters=[_PREFIX_IN_PATH]),
    },
    "/v1/billing/balance": {"get": _operation("billing", "What can still be spent, in credits", _BALANCE)},
    "/v2/billing": {"get": _operation("billing", "What can still be spent, in US dollars", _BILLING)},
    "/v2/usage": {
        "get": _operation("usage", "What was spent", _object(_USAGE, optional=("groups",)), InvalidInput, Forbidden,
                          description=f"In the last {DEFAULT_PERIOD}, where no period is named.",
                          parameters=[*_PERIOD, *_GROUPING]),
    },
    "/v2/usage/detail": {
        "get": _operation("usage", "What was spent, by model", _object(_USAGE | {"models": _MODELS}, ("groups",)),
                          InvalidInput, Forbidden, parameters=[*_PERIOD, *_GROUPING]),
    },
    "/v2/logs": {
        "get": _operation("usage", "Single requests, newest first", _PAGE, InvalidInput, Forbidden,
                          description="Failed and rejected requests as well; they cost nothing.",
                          parameters=[*_PERIOD, *_PAGING]),
    },
}  # fmt: skip
"""Path -> method -> operation."""
