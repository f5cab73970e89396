"""Money, moments and periods, as people and JSON write them: read once for every door, and written once.

Money is US dollars outside and integer credits inside; a moment is ISO 8601 outside and milliseconds since 1970 in UTC
inside. Each reader returns the right value or raises one `InvalidInput` that names the caller's member. Imports neither
torch nor a web framework.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from zturbo.errors import InvalidInput, Problem
from zturbo.params import shown
from zturbo.pricing import CREDITS_PER_USD
from zturbo.storage.records import DAY_MS, MAX_CREDITS, credits_of_usd

Reader = Callable[[object, tuple[str, ...]], Any]
"""(value, what the problems call it) -> the right value, or InvalidInput."""
HOUR_MS = 3_600_000
MAX_MS = 253_402_300_799_999
"""The last millisecond of the year 9999."""
PERIOD_RULE = "a number of hours or days, such as 24h or 7d"
MOMENT_RULE = "an ISO 8601 time from 1970 to 9999, such as 2026-07-01T00:00:00Z"
MAX_USD = MAX_CREDITS // CREDITS_PER_USD
"""The largest amount that an account can hold."""
USD_RULE = f"US dollars from 0 to {MAX_USD}, as a number or as text such as 25 or 0.05"
USD_PATTERN = r"[0-9]{1,10}(\.[0-9]{1,30})?"
PERIOD_PATTERN = "([1-9][0-9]{0,5})([hd])"
_USD, _PERIOD = re.compile(USD_PATTERN), re.compile(PERIOD_PATTERN)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def read_usd(value: object, path: tuple[str, ...]) -> int:
    """Credits for an amount of US dollars.

    A JSON number has become a float on its way here. Its shortest decimal spelling is what was sent, up to 15 digits,
    so the credits are exact for every amount that a float can tell apart by a credit: up to four billion dollars.

    Args:
        value: an integer, a float, or text of digits with at most one point.
        path: what the problem calls it.

    Raises:
        InvalidInput: it is none of these, negative, or more than an account can hold.
    """
    text = "" if isinstance(value, bool) else value if isinstance(value, str) else _spelled(value)
    if _USD.fullmatch(text):
        try:
            return credits_of_usd(text)
        except ValueError:  # more than an account holds
            pass
    raise _refused(path, USD_RULE, value)


def _spelled(value: object) -> str:
    """A number without an exponent; "" for what is none, or is out of all proportion."""
    if isinstance(value, int):
        return str(value) if value.bit_length() < 64 else ""
    return f"{Decimal(repr(value)):f}" if isinstance(value, float) and 0 <= value < 1e12 else ""


def usd(credits: int) -> float:
    """US dollars for credits, as JSON carries them; sums are made of credits, never of these."""
    return credits / CREDITS_PER_USD


def read_moment(value: object, path: tuple[str, ...]) -> int:
    """Milliseconds since 1970 of an ISO 8601 time; one without an offset is in UTC.

    Raises:
        InvalidInput: it is none, or outside the years 1970 to 9999.
    """
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is not None:
        moment_ms = (moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // _MS
        if 0 <= moment_ms <= MAX_MS:
            return moment_ms
    raise _refused(path, MOMENT_RULE, value, 'in an address, "+" is written %2B' if " " in str(value) else "")


def iso(moment_ms: int) -> str:
    """A moment in UTC to the millisecond, as in 2026-07-01T00:00:00.000Z."""
    return f"{(_EPOCH + moment_ms * _MS).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


def read_duration(value: object, path: tuple[str, ...]) -> int:
    """Milliseconds of `24h`, `7d`.

    Raises:
        InvalidInput: it is not of that form.
    """
    match = _PERIOD.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise _refused(path, PERIOD_RULE, value)
    return int(match[1]) * (HOUR_MS if match[2] == "h" else DAY_MS)


def read_period(
    values: Mapping[str, object], now_ms: int, names: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, int]:
    """The [start, end) that `period`, or `start` and `end`, stand for; without a start it is 1970, without an end now.

    Args:
        values: by these three names; None is absent.
        now_ms: where a `period` ends.
        names: our name -> the caller's, as the problems shall say it.

    Raises:
        InvalidInput: with every problem found.
    """
    found, problems = read_each(values, _PERIOD_READERS, names)
    given = [name for name in _PERIOD_READERS if values.get(name) is not None]
    path = {name: (names.get(name, name),) for name in _PERIOD_READERS}
    if "period" in given and len(given) > 1:
        rule = f"cannot be given beside {path['start'][0]} or {path['end'][0]}"
        problems.append(Problem(path["period"], rule, values["period"], "leave one or the other out"))
    start_ms, end_ms = found.get("start", 0), found.get("end", now_ms)
    if end_ms < start_ms and not problems:
        last = given[-1]
        rule = f"the period would begin at {iso(start_ms)} and end before that, at {iso(end_ms)}"
        problems.append(Problem(path[last], rule, values[last]))
    if problems:
        raise InvalidInput(problems)
    return (max(0, now_ms - found["period"]), now_ms) if "period" in found else (start_ms, end_ms)


_PERIOD_READERS: Mapping[str, Reader] = MappingProxyType(
    {"period": read_duration, "start": read_moment, "end": read_moment}
)


def read_each(
    values: Mapping[str, object], readers: Mapping[str, Reader], names: Mapping[str, str]
) -> tuple[dict[str, Any], list[Problem]]:
    """Read the values that have a reader and are not None; returns what could be read, and every problem."""
    found: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, reader in readers.items():
        if (value := values.get(name)) is not None:
            try:
                found[name] = reader(value, (names.get(name, name),))
            except InvalidInput as error:
                problems += error.problems
    return found, problems


def _refused(path: tuple[str, ...], rule: str, value: object, hint: str = "") -> InvalidInput:
    return InvalidInput([Problem(path, f"must be {rule}; got {shown(value)}", value, hint)])
