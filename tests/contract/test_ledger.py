"""What every `Ledger` does: each request ends once, and no credits are charged but for delivered pictures."""

import asyncio
from dataclasses import replace

import pytest

from tests.contract.samples import NOW, at, done, failed, request
from zturbo.storage.records import Account, Answer, Ending, KeyLimit, Records, Screening, Spending

FILES = ("0a84de46/GTZfn0tOOQzXlC2Wvpzz9.png", "0a84de46/AAAAn0tOOQzXlC2Wvpzz9.png")


async def test_a_delivered_request_is_one_row_with_all_of_it(records: Records) -> None:
    row = request(images=2)
    assert await records.ledger.start(row, 21_000, None) is None
    running = await records.ledger.get(row.request_id)
    assert running is not None
    assert (running.status, running.held, running.credits, running.ended_ms) == ("running", 21_000, 0, None)
    seconds = {"queue": 0.25, "denoise": 1.0}
    assert await records.ledger.finish(row.request_id, done(21_000, files=FILES, seconds=seconds))
    ended = await records.ledger.get(row.request_id)
    assert ended is not None
    assert ended.request == row
    assert (ended.status, ended.held, ended.credits, ended.ended_ms) == ("done", 0, 21_000, NOW + 1500)
    assert (ended.files, dict(ended.seconds), ended.error, ended.safety) == (FILES, seconds, None, None)
    assert await records.ledger.get("nobody") is None


async def test_what_the_safety_checker_found_is_in_the_row(records: Records) -> None:
    row, found = request(images=2), Screening(checker="a@1", threshold=0.7, scores=(0.1, 1.0), flagged=(False, True))
    await records.ledger.start(row, 0, None)
    await records.ledger.finish(row.request_id, done(safety=found))
    ended = await records.ledger.get(row.request_id)
    assert ended is not None
    assert ended.safety == found
    assert (await records.history.logs(1)).rows[0].safety == found


@pytest.mark.parametrize("status", ["failed", "cancelled", "rejected"])
async def test_what_was_not_delivered_costs_nothing(records: Records, status: str) -> None:
    await records.ledger.set_account(100, 0, NOW)
    row = request()
    await records.ledger.start(row, 40, KeyLimit("day", 50))
    ending = Ending(status=status, ended_ms=NOW, error="cancelled")  # type: ignore[arg-type]
    assert await records.ledger.finish(row.request_id, ending)
    assert await records.ledger.account() == Account(balance=100, low_threshold=0, held=0, updated_ms=NOW)
    assert await records.ledger.spending("0123abcd", "day", NOW) == Spending(
        window_start_ms=at("2026-03-11"), spent=0, held=0
    )
    ended = await records.ledger.get(row.request_id)
    assert ended is not None
    assert (ended.status, ended.credits, ended.error) == (status, 0, "cancelled")


def test_an_ending_cannot_charge_without_delivering() -> None:
    for wrong in ({"credits": 1}, {"files": FILES}):
        with pytest.raises(AssertionError, match="only delivered"):
            Ending(status="failed", ended_ms=NOW, **wrong)
    for amount in (-1, 1.0, True, 2**53):
        with pytest.raises(AssertionError, match="credits"):
            Ending(status="done", ended_ms=NOW, credits=amount)  # type: ignore[arg-type]


async def test_a_request_ends_once(records: Records) -> None:
    await records.ledger.set_account(100, 0, NOW)
    row = request()
    await records.ledger.start(row, 10, None)
    ends = await asyncio.gather(*(records.ledger.finish(row.request_id, done(10)) for _ in range(8)))
    assert sorted(ends) == [False] * 7 + [True]
    assert not await records.ledger.finish(row.request_id, failed())
    assert not await records.ledger.finish("nobody", done())
    assert (await records.ledger.account()).balance == 90


async def test_a_request_begins_once(records: Records) -> None:
    await records.ledger.start(request("same"), 1, None)
    with pytest.raises(AssertionError, match="used before"):
        await records.ledger.start(request("same"), 1, None)
    with pytest.raises(AssertionError, match="used before"):
        await records.ledger.reject(request("same"), failed())


async def test_more_than_was_held_is_never_charged(records: Records) -> None:
    row = request()
    await records.ledger.start(row, 10, None)
    with pytest.raises(AssertionError, match="11 credits charged where 10 were held"):
        await records.ledger.finish(row.request_id, done(11))
    still = await records.ledger.get(row.request_id)
    assert still is not None
    assert (still.status, still.credits, still.files) == ("running", 0, ())


async def test_fewer_pictures_than_asked_for_cost_less(records: Records) -> None:
    row = request()
    await records.ledger.start(row, 40, KeyLimit("day", 40))
    await records.ledger.finish(row.request_id, done(10))
    assert (await records.ledger.spending("0123abcd", "day", NOW)).spent == 10
    assert await records.ledger.start(request(), 30, KeyLimit("day", 40)) is None


async def test_rejected_requests_are_rows_too(records: Records) -> None:
    row = request(key=None, model=None, width=None, height=None, steps=None, images=None, client_request_id=None)
    await records.ledger.reject(row, Ending(status="rejected", ended_ms=NOW, error="invalid_value"))
    stored = await records.ledger.get(row.request_id)
    assert stored is not None
    assert (stored.request, stored.status, stored.error, stored.credits) == (row, "rejected", "invalid_value", 0)
    assert not await records.ledger.finish(row.request_id, done())
    with pytest.raises(AssertionError, match="not delivered"):
        await records.ledger.reject(request(), done())


async def test_requests_at_once_never_get_past_a_limit(records: Records) -> None:
    rows = [request() for _ in range(30)]
    limit = KeyLimit("month", 100)
    refused = await asyncio.gather(*(records.ledger.start(row, 9, limit) for row in rows))
    assert sorted(map(str, refused)) == ["None"] * 11 + ["spending_limit"] * 19
    spending = await records.ledger.spending("0123abcd", "month", NOW)
    assert (spending.spent, spending.held) == (0, 99)
    for row, why in zip(rows, refused, strict=True):
        assert await records.ledger.finish(row.request_id, done(9)) == (why is None)
        stored = await records.ledger.get(row.request_id)
        assert stored is not None
        assert (stored.status, stored.error) == (("done", None) if why is None else ("rejected", why))
    assert (await records.ledger.spending("0123abcd", "month", NOW)).spent == 99


async def test_requests_at_once_never_get_past_the_balance(records: Records) -> None:
    await records.ledger.set_account(100, 20, NOW)
    rows = [request(key=f"{number:08x}") for number in range(30)]
    refused = await asyncio.gather(*(records.ledger.start(row, 30, None) for row in rows))
    assert sorted(map(str, refused)) == ["None"] * 3 + ["balance"] * 27
    assert await records.ledger.account() == Account(balance=100, low_threshold=20, held=90, updated_ms=NOW)
    for row in rows:
        await records.ledger.finish(row.request_id, done(30))
    assert await records.ledger.account() == Account(balance=10, low_threshold=20, held=0, updated_ms=NOW + 1500)


async def test_a_limit_is_one_keys(records: Records) -> None:
    limit = KeyLimit("no_reset", 10)
    assert await records.ledger.start(request(), 10, limit) is None
    assert await records.ledger.start(request(key="ffffffff"), 10, limit) is None
    assert await records.ledger.start(request(), 1, limit) == "spending_limit"
    assert await records.ledger.start(request(), 1, None) is None, "no limit, no refusal"


async def test_a_price_of_nothing_passes_a_limit_of_nothing(records: Records) -> None:
    await records.ledger.set_account(0, 0, NOW)
    assert await records.ledger.start(request(), 0, KeyLimit("day", 0)) is None
    assert await records.ledger.start(request(), 1, KeyLimit("day", 1)) == "balance"
    assert await records.ledger.start(request(), 1, KeyLimit("day", 0)) == "spending_limit"


@pytest.mark.parametrize(
    ("retention", "last", "first"),
    [
        ("day", "2026-03-11T23:59:59.999", "2026-03-12T00:00"),
        ("week", "2026-03-15T23:59:59.999", "2026-03-16T00:00"),  # a Sunday and a Monday
        ("month", "2026-03-31T23:59:59.999", "2026-04-01T00:00"),
    ],
)
async def test_a_new_window_begins_at_nothing(records: Records, retention: str, last: str, first: str) -> None:
    limit = KeyLimit(retention, 10)  # type: ignore[arg-type]
    row = request(created_ms=NOW)
    await records.ledger.start(row, 10, limit)
    await records.ledger.finish(row.request_id, done(10))
    assert await records.ledger.start(request(created_ms=at(last)), 1, limit) == "spending_limit"
    assert await records.ledger.start(request(created_ms=at(first)), 10, limit) is None
    never = KeyLimit("no_reset", 10)
    assert await records.ledger.start(request(created_ms=at("2036-01-01")), 1, never) == "spending_limit"


async def test_a_charge_counts_in_the_window_in_which_it_was_made(records: Records) -> None:
    limit, row = KeyLimit("day", 10), request(created_ms=at("2026-03-11T23:59:59"))
    await records.ledger.start(row, 10, limit)
    midnight = at("2026-03-12T00:00")
    assert await records.ledger.start(request(created_ms=midnight), 1, limit) == "spending_limit", "it is still held"
    await records.ledger.finish(row.request_id, done(10, ended_ms=midnight))
    assert (await records.ledger.spending("0123abcd", "day", midnight - 1)).spent == 10
    assert await records.ledger.start(request(created_ms=midnight), 1, limit) == "spending_limit"


async def test_a_clock_that_was_set_back_ends_nothing_before_its_beginning(records: Records) -> None:
    row = request()
    await records.ledger.start(row, 10, None)
    await records.ledger.finish(row.request_id, done(10, ended_ms=NOW - 2 * 86_400_000))
    stored = await records.ledger.get(row.request_id)
    assert stored is not None
    assert stored.ended_ms == NOW
    assert (await records.ledger.spending("0123abcd", "day", NOW)).spent == 10


async def test_topping_up(records: Records) -> None:
    assert await records.ledger.account() == Account(balance=None, low_threshold=0, held=0, updated_ms=0)
    assert (await records.ledger.top_up(5, NOW)).balance is None, "unlimited stays unlimited"
    await records.ledger.set_account(1, 50, NOW)
    await asyncio.gather(*(records.ledger.top_up(10, NOW) for _ in range(10)))
    assert (await records.ledger.account()).balance == 101
    await records.ledger.set_account(None, 0, NOW)
    assert (await records.ledger.account()).balance is None
    for amount in (-1, 0.5):
        with pytest.raises(AssertionError, match="credits"):
            await records.ledger.top_up(amount, NOW)  # type: ignore[arg-type]


async def test_balance_and_low_threshold_are_set_each_by_itself(records: Records) -> None:
    await records.ledger.set_account(100, 20, NOW)
    await records.ledger.set_account("unchanged", 30, NOW + 1)
    assert await records.ledger.account() == Account(balance=100, low_threshold=30, held=0, updated_ms=NOW + 1)
    await records.ledger.set_account(None, "unchanged", NOW + 2)
    assert await records.ledger.account() == Account(balance=None, low_threshold=30, held=0, updated_ms=NOW + 2)


async def test_a_balance_set_below_what_is_held_ends_at_nothing(records: Records) -> None:
    await records.ledger.set_account(100, 0, NOW)
    row = request()
    await records.ledger.start(row, 60, None)
    await records.ledger.set_account(10, 0, NOW)
    assert await records.ledger.finish(row.request_id, done(60))
    assert (await records.ledger.account()).balance == 0


async def test_an_answer_is_kept_with_its_charge_or_not_at_all(records: Records) -> None:
    await records.idempotency.reserve("0123abcd", "k", b"digest", NOW, NOW + 1000)
    row, ending = request(), done(5, answer=Answer("0123abcd", "k", b"{}"))
    await records.ledger.start(row, 4, None)
    with pytest.raises(AssertionError, match="were held"):
        await records.ledger.finish(row.request_id, ending)
    assert (await records.idempotency.reserve("0123abcd", "k", b"digest", NOW, NOW + 1000)).state == "running"
    assert await records.ledger.finish(row.request_id, replace(ending, credits=4))
    repeated = await records.idempotency.reserve("0123abcd", "k", b"digest", NOW, NOW + 1000)
    assert (repeated.state, repeated.answer) == ("finished", b"{}")
