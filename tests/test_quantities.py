"""Money, moments and periods: what is read, what is refused, and that nothing is lost on the way."""

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.samples import at
from zturbo.errors import InvalidInput
from zturbo.quantities import HOUR_MS, MAX_MS, iso, read_duration, read_moment, read_period, read_usd, usd
from zturbo.storage.records import DAY_MS, MAX_CREDITS

NOW = at("2026-03-11T12:00")
PATH = ("limit", "threshold")


@given(st.integers(0, 2**32 * 2_000_000))
def test_money_survives_json(credits: int) -> None:
    """As a number up to four billion dollars, where a float still tells credits apart."""
    assert read_usd(json.loads(json.dumps(usd(credits))), PATH) == credits


@given(st.integers(0, MAX_CREDITS))
def test_money_as_text_is_exact(credits: int) -> None:
    assert read_usd(f"{Decimal(credits) / 2_000_000:f}", PATH) == credits


@pytest.mark.parametrize(
    ("value", "credits"),
    [(0, 0), (0.0, 0), (25, 50_000_000), ("25", 50_000_000), (0.1 + 0.2, 600_000), ("00.50", 1_000_000), (5e-7, 1),
     (1e-9, 0)],
)  # fmt: skip
def test_amounts(value: object, credits: int) -> None:
    assert read_usd(value, PATH) == credits


@pytest.mark.parametrize(
    "value",
    [-1, -0.01, 4_503_599_628, 10**400, float("nan"), float("inf"), 1e300, 1e-300, True, None, [], {}, "", " 1", "1 ",
     "+1", "-1", "1e3", "1_000", ".5", "5.", "0x1", "NaN", "Infinity", "٣", "1" * 5000, "1\n"],
    ids=lambda value: ascii(value)[:20],
)  # fmt: skip
def test_what_is_no_amount(value: object) -> None:
    with pytest.raises(InvalidInput, match=r"limit\.threshold: must be US dollars from 0 to 4503599627") as caught:
        read_usd(value, PATH)
    assert len(str(caught.value)) < 250


@given(st.integers(0, MAX_MS))
def test_moments_survive_text(moment_ms: int) -> None:
    assert read_moment(iso(moment_ms), ("start",)) == moment_ms


@given(st.datetimes(datetime(1971, 1, 1), datetime(9998, 1, 1)), st.integers(-720, 720))
def test_offsets_count(moment: datetime, minutes: int) -> None:
    text = moment.replace(tzinfo=timezone(timedelta(minutes=minutes))).isoformat()
    in_utc = (moment - timedelta(minutes=minutes)).replace(tzinfo=UTC)
    assert read_moment(text, ("start",)) == (in_utc - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2026-03-11", "2026-03-11"), ("2026-03-11T12:00", "2026-03-11T12:00"),
     ("2026-03-11T12:00:00Z", "2026-03-11T12:00"), ("2026-03-11T15:00:00+03:00", "2026-03-11T12:00"),
     ("20260311T120000", "2026-03-11T12:00")],
)  # fmt: skip
def test_moments_without_an_offset_are_in_utc(text: str, expected: str) -> None:
    assert read_moment(text, ("start",)) == at(expected)


@pytest.mark.parametrize(
    "value",
    ["", "today", "2026", "2026-13-01", "2026-02-30", "1969-12-31T23:59:59.999Z", "0001-01-01T00:00:00+14:00",
     "9999-12-31T23:59:59-14:00", "10000-01-01", 1_767_000_000, None, True, [], "\ud800", "2026-01-01\0"],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_moment(value: object) -> None:
    with pytest.raises(InvalidInput, match="start: must be an ISO 8601 time from 1970 to 9999"):
        read_moment(value, ("start",))


def test_a_plus_that_an_address_turned_into_a_blank() -> None:
    with pytest.raises(InvalidInput, match="%2B"):
        read_moment("2026-03-11T15:00:00 03:00", ("start",))


@pytest.mark.parametrize(
    ("text", "ms"), [("1h", HOUR_MS), ("24h", DAY_MS), ("7d", 7 * DAY_MS), ("999999d", 999_999 * DAY_MS)]
)
def test_durations(text: str, ms: int) -> None:
    assert read_duration(text, ("period",)) == ms


@pytest.mark.parametrize(
    "value", ["", "7", "d", "0d", "07d", "-1d", "1.5h", "7D", "7 d", "1w", "1000000d", "\u0667d", 7, None]
)
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(InvalidInput, match="period: must be a number of hours or days, such as 24h or 7d"):
        read_duration(value, ("period",))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (0, NOW)),
        ({"period": "24h", "start": None, "end": None}, (NOW - DAY_MS, NOW)),
        ({"period": "999999d"}, (0, NOW)),
        ({"start": "2026-03-10"}, (at("2026-03-10"), NOW)),
        ({"end": "2026-03-10"}, (0, at("2026-03-10"))),
        ({"start": "2026-03-10", "end": "2026-03-10"}, (at("2026-03-10"), at("2026-03-10"))),
        ({"start": "2027-01-01", "end": "2028-01-01"}, (at("2027-01-01"), at("2028-01-01"))),
    ],
    ids=str,
)
def test_periods(values: dict[str, Any], expected: tuple[int, int]) -> None:
    assert read_period(values, NOW) == expected


@pytest.mark.parametrize(
    ("values", "paths"),
    [
        ({"period": "7d", "start": "2026-01-01"}, ["--period"]),
        ({"period": "x", "start": "y", "end": "z"}, ["--period", "--start", "--end", "--period"]),
        ({"start": "2026-01-02", "end": "2026-01-01"}, ["--end"]),
        ({"start": "2027-01-01"}, ["--start"]),
    ],
    ids=str,
)
def test_wrong_periods(values: dict[str, Any], paths: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_period(values, NOW, {name: f"--{name}" for name in ("period", "start", "end")})
    assert [".".join(problem.path) for problem in caught.value.problems] == paths
