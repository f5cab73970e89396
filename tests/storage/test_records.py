"""Money and windows, and that both homes of the records always say the same."""

import asyncio
import tempfile
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.samples import at, done, failed, request
from zturbo.storage import files
from zturbo.storage import records as seams
from zturbo.storage.memory import MemoryRecords
from zturbo.storage.records import (
    DAY_MS,
    MAX_CREDITS,
    KeyLimit,
    Records,
    Retention,
    credits_of_usd,
    window_start_ms,
)
from zturbo.storage.sqlite import open_sqlite

moments = st.integers(0, at("2100-01-01"))
retentions = st.sampled_from(get_args(Retention))


@pytest.mark.parametrize(
    ("usd", "credits"), [("0", 0), ("0.00525", 10_500), ("0.0000005", 1), (3, 6_000_000), ("0.00000025", 1)]
)
def test_dollars_become_credits(usd: str | int, credits: int) -> None:
    assert credits_of_usd(usd) == credits


@pytest.mark.parametrize("usd", ["-1", "NaN", "sNaN", "Infinity", "1e99999999999", "", "1,5", 0.1, True, "99999999999"])
def test_what_is_no_amount_of_dollars(usd: str) -> None:
    with pytest.raises(ValueError, match=r"amount of money|money is no|must be from 0"):
        credits_of_usd(usd)


@given(st.integers(0, MAX_CREDITS))
def test_credits_survive_the_way_to_dollars_and_back(credits: int) -> None:
    assert credits_of_usd(Decimal(credits) / 2_000_000) == credits


@given(retentions, moments)
def test_a_window_begins_at_midnight_and_holds_its_moment(retention: Retention, now_ms: int) -> None:
    start_ms = window_start_ms(retention, now_ms)
    start, now = (datetime.fromtimestamp(moment // 1000, UTC) for moment in (start_ms, now_ms))
    assert start_ms <= now_ms
    assert start_ms % DAY_MS == 0
    assert window_start_ms(retention, start_ms) == start_ms or retention == "no_reset"
    match retention:
        case "no_reset":
            assert start_ms == 0
        case "day":
            assert start.date() == now.date()
        case "week":
            assert start.weekday() == 0
            assert start.isocalendar()[:2] == now.isocalendar()[:2]
        case "month":
            assert (start.year, start.month, start.day) == (now.year, now.month, 1)


@pytest.mark.parametrize("module", [seams, files])
def test_a_seam_has_at_most_eight_methods(module: object) -> None:
    seen = 0
    for seam in vars(module).values():
        if getattr(seam, "_is_protocol", False) and seam.__module__ == module.__name__:  # type: ignore[attr-defined]
            seen += 1
            assert len([name for name in vars(seam) if not name.startswith("_")]) <= 8, seam
    assert seen >= 1


KEYS = ("aaaaaaaa", "bbbbbbbb")
actions = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.sampled_from(KEYS), st.integers(0, 12)),
        st.tuples(st.just("done"), st.integers(0, 5), st.integers(0, 12)),
        st.tuples(st.just("fail"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("top up"), st.integers(0, 12), st.just(0)),
        st.tuples(st.just("wait"), st.integers(0, 20 * DAY_MS), st.just(0)),
    ),
    max_size=25,
)


class Bookkeeper:
    """Plays a story on one kind of records and writes down everything that it was told."""

    def __init__(self, records: Records, limits: dict[str, KeyLimit | None]) -> None:
        self.records, self.limits = records, limits
        self.now = at("2026-03-30T23:00")
        self.running: list[tuple[str, int]] = []
        self.told: list[object] = []
        self.count = 0

    async def play(self, balance: int | None, story: list[tuple[str, object, int]]) -> None:
        await self.records.ledger.set_account(balance, 0, self.now)
        for action in story:
            self.told.append(await self.act(*action))
            await self.look()

    async def act(self, what: str, whom: object, credits: int) -> object:
        ledger = self.records.ledger
        match what, whom:
            case "start", str(key):
                self.count += 1
                row = request(f"r{self.count}", inference_id="i", key=key, created_ms=self.now)
                refused = await ledger.start(row, credits, self.limits[key])
                if refused is None:
                    self.running.append((row.request_id, credits))
                return refused
            case "done" | "fail", int(index) if self.running:
                request_id, held = self.running.pop(index % len(self.running))
                ending = done(min(credits, held), ended_ms=self.now) if what == "done" else failed(self.now)
                return await ledger.finish(request_id, ending)
            case "top up", int(amount):
                return await ledger.top_up(amount, self.now)
            case "wait", int(milliseconds):
                self.now += milliseconds
        return None

    async def look(self) -> None:
        """What must hold at every moment, and what both kinds must agree about."""
        account = await self.records.ledger.account()
        assert account.balance is None or account.balance >= account.held >= 0
        log = await self.records.history.logs(1000)
        self.told += [account, log, await self.records.history.usage(0, self.now + 1, "day,model")]
        for key, limit in self.limits.items():
            if limit is not None:
                spending = await self.records.ledger.spending(key, limit.retention, self.now)
                rows = [row for row in log.rows if row.request.key == key]
                in_window = sum(row.credits for row in rows if (row.ended_ms or 0) >= spending.window_start_ms)
                assert (spending.spent, spending.held) == (in_window, sum(row.held for row in rows))
                assert spending.spent + spending.held <= limit.threshold
                self.told.append(spending)
                by_window: Counter[int] = Counter()
                for row in rows:
                    by_window[window_start_ms(limit.retention, row.ended_ms or 0)] += row.credits
                assert max(by_window.values(), default=0) <= limit.threshold


limits = st.none() | st.builds(KeyLimit, retentions, st.integers(0, 30))


@settings(max_examples=20)
@given(st.none() | st.integers(0, 60), limits, limits, actions)
def test_no_story_spends_what_is_not_there(
    balance: int | None, first: KeyLimit | None, second: KeyLimit | None, story: list[tuple[str, object, int]]
) -> None:
    async def both() -> None:
        with tempfile.TemporaryDirectory() as folder:
            on_disk = await open_sqlite(Path(folder) / "records.db")
            keepers = [Bookkeeper(kind, dict(zip(KEYS, (first, second), strict=True)))
                       for kind in (on_disk, MemoryRecords())]  # fmt: skip
            try:
                for keeper in keepers:
                    await keeper.play(balance, story)
            finally:
                await on_disk.close()
            assert keepers[0].told == keepers[1].told

    asyncio.run(both())
