"""What every `History` does."""

import asyncio

import pytest

from tests.contract.samples import NOW, at, done, failed, request
from zturbo.storage.records import GroupBy, Records, Status, UsageRow

FILES = ("0a84de46/GTZfn0tOOQzXlC2Wvpzz9.png", "0a84de46/AAAAn0tOOQzXlC2Wvpzz9.png")


async def fill(records: Records) -> None:
    """Two days, two models, two keys; one failure, one rejection without a model, one still running."""
    for created, model, key, credits in [
        ("2026-03-10T00:00", "turbo", "aaaaaaaa", 10),
        ("2026-03-10T23:59:59.999", "nano", "aaaaaaaa", 1),
        ("2026-03-11T00:00", "turbo", "bbbbbbbb", 20),
        ("2026-03-11T12:00", "turbo", "aaaaaaaa", 30),
    ]:
        row = request(created_ms=at(created), model=model, key=key, images=2)
        await records.ledger.start(row, credits, None)
        await records.ledger.finish(row.request_id, done(credits, ended_ms=at("2026-03-12")))
    bad = request(created_ms=at("2026-03-11T13:00"), model="turbo", key="aaaaaaaa")
    await records.ledger.start(bad, 99, None)
    await records.ledger.finish(bad.request_id, failed())
    await records.ledger.reject(request(created_ms=at("2026-03-11T14:00"), model=None, key=None), failed())
    await records.ledger.start(request(created_ms=at("2026-03-11T15:00"), model="turbo", key="aaaaaaaa"), 99, None)


def row(day: str | None, model: str | None, requests: int, delivered: int, failed: int, credits: int) -> UsageRow:
    return UsageRow(
        day=day, model=model, requests=requests, delivered=delivered, failed=failed, images=2 * delivered,
        credits=credits,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [
        ("day", [row("2026-03-10", None, 2, 2, 0, 11), row("2026-03-11", None, 5, 2, 2, 50)]),
        ("model", [row(None, None, 1, 0, 1, 0), row(None, "nano", 1, 1, 0, 1), row(None, "turbo", 5, 3, 1, 60)]),
        (
            "day,model",
            [
                row("2026-03-10", "nano", 1, 1, 0, 1),
                row("2026-03-10", "turbo", 1, 1, 0, 10),
                row("2026-03-11", None, 1, 0, 1, 0),
                row("2026-03-11", "turbo", 4, 2, 1, 50),
            ],
        ),
    ],
)
async def test_usage_is_summed_by_group(records: Records, group_by: GroupBy, expected: list[UsageRow]) -> None:
    await fill(records)
    assert list(await records.history.usage(at("2026-03-10"), at("2026-03-12"), group_by)) == expected


async def test_usage_of_a_period_and_a_key(records: Records) -> None:
    await fill(records)
    usage = records.history.usage
    assert [one.credits for one in await usage(at("2026-03-10"), at("2026-03-11"))] == [11], "the end is not in it"
    assert [one.credits for one in await usage(at("2026-03-10T00:00:00.001"), at("2026-03-11"))] == [1]
    assert [one.credits for one in await usage(0, at("2027-01-01"), "model", "bbbbbbbb")] == [20]
    assert await usage(0, at("2027-01-01"), "model", "cccccccc") == ()
    assert await usage(at("2026-03-12"), at("2026-03-11")) == ()


async def test_the_log_is_newest_first_and_in_pages(records: Records) -> None:
    rows = [request(created_ms=NOW + created) for created in (0, 5, 5, 3, 9)]
    for one in rows:
        await records.ledger.start(one, 1, None)
    whole = await records.history.logs(10)
    order = [rows[index].request_id for index in (4, 2, 1, 3, 0)]
    assert [one.request.request_id for one in whole.rows] == order
    assert (whole.total, whole.has_more) == (5, False)
    first, last = await records.history.logs(2), await records.history.logs(2, 4)
    assert ([one.request.request_id for one in first.rows], first.total, first.has_more) == (order[:2], 5, True)
    assert ([one.request.request_id for one in last.rows], last.total, last.has_more) == (order[4:], 5, False)
    beyond, none = await records.history.logs(2, 99), await records.history.logs(0)
    assert (beyond.rows, beyond.total, beyond.has_more) == ((), 5, False)
    assert (none.rows, none.has_more) == ((), True)
    some = await records.history.logs(10, start_ms=NOW + 3, end_ms=NOW + 9)
    assert [one.request.request_id for one in some.rows] == order[1:4]


async def test_pages_and_periods_far_away_are_empty(records: Records) -> None:
    await fill(records)
    page = await records.history.logs(10**30, 10**30, start_ms=-(10**30), end_ms=10**30)
    assert (page.rows, page.total) == ((), 7)
    assert await records.history.usage(10**30, 10**31) == ()


async def test_the_log_of_a_key_is_its_own(records: Records) -> None:
    await fill(records)
    page = await records.history.logs(10, key="aaaaaaaa")
    assert {one.request.key for one in page.rows} == {"aaaaaaaa"}
    assert page.total == 5


async def test_the_log_of_a_model_and_of_ends(records: Records) -> None:
    await fill(records)
    logs = records.history.logs
    assert {one.request.model for one in (await logs(10, model="turbo")).rows} == {"turbo"}
    assert [(await logs(10, model=model)).total for model in ("turbo", "nano", "other")] == [5, 1, 0]
    some: list[tuple[list[Status], int]] = [(["done"], 4), (["failed", "running"], 3), ([], 0)]
    for statuses, total in some:
        assert (await logs(10, statuses=statuses)).total == total
    assert (await logs(1, 1, "aaaaaaaa", model="turbo", statuses=["done"])).total == 2


async def test_the_log_names_files_in_order(records: Records) -> None:
    one = request(images=2)
    await records.ledger.start(one, 2, None)
    await records.ledger.finish(one.request_id, done(2, files=FILES))
    assert (await records.history.logs(1)).rows[0].files == FILES


async def test_known_files_are_those_that_were_delivered(records: Records) -> None:
    one = request()
    await records.ledger.start(one, 2, None)
    assert await records.history.known_files(FILES) == frozenset()
    await records.ledger.finish(one.request_id, done(2, files=FILES[:1]))
    many = [*FILES, *(f"0a84de46/{number:021d}.png" for number in range(1200))]
    assert await records.history.known_files(many) == {FILES[0]}
    assert await records.history.known_files([]) == frozenset()


async def test_reading_while_writing(records: Records) -> None:
    async def write() -> None:
        for _ in range(20):
            await records.ledger.start(request(), 1, None)

    async def read() -> list[int]:
        return [(await records.history.logs(1)).total for _ in range(20)]

    _, totals, _ = await asyncio.gather(write(), read(), write())
    assert totals == sorted(totals)
    assert (await records.history.logs(1)).total == 40
