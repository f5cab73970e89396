"""The doubles of every seam: they keep everything in this process and forget it with it.

No method waits for anything, so on one event loop each is a transaction by itself.
"""

import io
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from zturbo.errors import FileGone, NoSuchFile
from zturbo.storage.files import Content, OpenFile, content_type_of, is_name, new_name
from zturbo.storage.records import (
    DAY_MS,
    Account,
    Answer,
    Ending,
    Generation,
    GroupBy,
    Key,
    KeyLimit,
    LogPage,
    Refusal,
    Request,
    Reservation,
    Retention,
    Spending,
    Status,
    Unchanged,
    UsageRow,
    assert_credits,
    changed_amounts,
    refusal,
    unasked,
    window_start_ms,
)


@dataclass(slots=True)
class _Reserved:
    digest: bytes
    expires_ms: int
    answer: bytes | None = None

    def is_over(self, now_ms: int) -> bool:
        return self.expires_ms <= now_ms and self.answer is not None


@dataclass(slots=True)
class _State:
    keys: dict[str, Key] = field(default_factory=dict)
    generations: dict[str, Generation] = field(default_factory=dict)
    charges: dict[tuple[str, int], int] = field(default_factory=dict)
    """(key's prefix, days since 1970) -> credits."""
    account: Account = field(default_factory=lambda: Account(balance=None, low_threshold=0, held=0, updated_ms=0))
    reserved: dict[tuple[str, str], _Reserved] = field(default_factory=dict)


class MemoryRecords:
    """All seams over one state."""

    def __init__(self) -> None:
        state = _State()
        self.keys = MemoryKeys(state)
        self.ledger = MemoryLedger(state)
        self.history = MemoryHistory(state)
        self.idempotency = MemoryIdempotency(state)

    async def close(self) -> None:
        """Nothing to let go of."""


class MemoryKeys:
    """Implements `Keys`."""

    def __init__(self, state: _State) -> None:
        self._state = state

    async def add(self, key: Key) -> bool:
        if key.prefix in self._state.keys:
            return False
        self._state.keys[key.prefix] = key
        for charged in [charged for charged in self._state.charges if charged[0] == key.prefix]:
            del self._state.charges[charged]
        return True

    async def get(self, prefix: str) -> Key | None:
        return self._state.keys.get(prefix)

    async def list(self) -> tuple[Key, ...]:
        return tuple(sorted(self._state.keys.values(), key=lambda key: (key.created_ms, key.prefix)))

    async def update(self, prefix: str, change: Callable[[Key], Key]) -> Key | None:
        key = self._state.keys.get(prefix)
        if key is None:
            return None
        changed = change(key)
        assert (changed.prefix, changed.digest) == (key.prefix, key.digest), "prefix and digest stay"
        self._state.keys[prefix] = changed
        return changed

    async def delete(self, prefix: str) -> bool:
        return self._state.keys.pop(prefix, None) is not None


class MemoryLedger:
    """Implements `Ledger`."""

    def __init__(self, state: _State) -> None:
        self._state = state

    async def start(self, request: Request, credits: int, limit: KeyLimit | None) -> Refusal | None:
        assert_credits(credits)
        refused = self._refusal(request, credits, limit)
        if refused is None:
            self._add(request, status="running", held=credits)
        else:
            self._add(request, status="rejected", ended_ms=request.created_ms, error=refused)
        return refused

    async def finish(self, request_id: str, ending: Ending) -> bool:
        row = self._state.generations.get(request_id)
        if row is None or row.status != "running":
            return False
        assert ending.credits <= row.held, f"{ending.credits} credits charged where {row.held} were held"
        ended_ms = max(ending.ended_ms, row.request.created_ms)
        self._state.generations[request_id] = replace(
            row,
            status=ending.status,
            held=0,
            credits=ending.credits,
            ended_ms=ended_ms,
            error=ending.error,
            seconds=dict(ending.seconds),
            files=ending.files,
            safety=ending.safety,
        )
        if ending.credits:
            self._charge(row.request.key, ending.credits, ended_ms)
        if ending.answer is not None:
            _keep_answer(self._state, ending.answer)
        return True

    async def reject(self, request: Request, ending: Ending) -> None:
        assert ending.status != "done", "what never began was not delivered"
        changes = {"ended_ms": ending.ended_ms, "error": ending.error, "seconds": dict(ending.seconds)}
        self._add(request, status=ending.status, **changes)

    async def get(self, request_id: str) -> Generation | None:
        return self._state.generations.get(request_id)

    async def spending(self, key: str, retention: Retention, now_ms: int) -> Spending:
        return _spending(self._state, key, retention, now_ms)

    async def account(self) -> Account:
        return _account(self._state)

    async def set_account(self, balance: int | Unchanged | None, low_threshold: int | Unchanged, now_ms: int) -> None:
        changes = changed_amounts(balance, low_threshold)
        self._state.account = replace(self._state.account, **changes, updated_ms=now_ms)  # type: ignore[arg-type]

    async def top_up(self, credits: int, now_ms: int) -> Account:
        assert_credits(credits)
        account = self._state.account
        balance = None if account.balance is None else account.balance + credits
        self._state.account = replace(account, balance=balance, updated_ms=now_ms)
        return _account(self._state)

    def _refusal(self, request: Request, credits: int, limit: KeyLimit | None) -> Refusal | None:
        spent = held = 0
        if limit is not None:
            assert request.key is not None, "a limit without a key"
            spending = _spending(self._state, request.key, limit.retention, request.created_ms)
            spent, held = spending.spent, spending.held
        account = _account(self._state)
        threshold = limit.threshold if limit else None
        return refusal(
            credits, threshold=threshold, spent=spent, held=held, balance=account.balance, held_by_all=account.held
        )

    def _add(self, request: Request, **changes: object) -> None:
        assert request.request_id not in self._state.generations, f"request id {request.request_id!r} was used before"
        facts = {"held": 0, "credits": 0, "ended_ms": None, "error": None, "seconds": {}, "files": ()} | changes
        self._state.generations[request.request_id] = Generation(request=request, **facts)  # type: ignore[arg-type]

    def _charge(self, key: str | None, credits: int, ended_ms: int) -> None:
        account = self._state.account
        balance = None if account.balance is None else max(0, account.balance - credits)
        self._state.account = replace(account, balance=balance, updated_ms=ended_ms)
        if key is not None:
            day = ended_ms // DAY_MS
            self._state.charges[key, day] = self._state.charges.get((key, day), 0) + credits


class MemoryHistory:
    """Implements `History`."""

    def __init__(self, state: _State) -> None:
        self._state = state

    async def usage(
        self, start_ms: int, end_ms: int, group_by: GroupBy = "day", key: str | None = None
    ) -> tuple[UsageRow, ...]:
        groups: dict[tuple[str | None, str | None], list[Generation]] = {}
        for row in self._rows(key, start_ms, end_ms):
            day = datetime.fromtimestamp(row.request.created_ms // 1000, UTC).date().isoformat()
            group = (day if "day" in group_by else None, row.request.model if "model" in group_by else None)
            groups.setdefault(group, []).append(row)
        ordered = sorted(groups.items(), key=lambda item: (item[0][0] or "", item[0][1] or ""))
        return tuple(_usage_row(*group, rows) for group, rows in ordered)

    async def logs(
        self,
        limit: int,
        offset: int = 0,
        key: str | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        *,
        model: str | None = None,
        statuses: Collection[Status] | None = None,
    ) -> LogPage:
        assert limit >= 0, f"negative limit {limit}"
        assert offset >= 0, f"negative offset {offset}"
        rows = [
            row
            for row in self._rows(key, start_ms, end_ms)[::-1]
            if model in (None, row.request.model) and (statuses is None or row.status in statuses)
        ]
        rows.sort(key=lambda row: -row.request.created_ms)
        return LogPage(tuple(rows[offset : offset + limit]), len(rows), offset)

    async def known_files(self, names: Sequence[str]) -> frozenset[str]:
        return frozenset(names) & {name for row in self._state.generations.values() for name in row.files}

    def _rows(self, key: str | None, start_ms: int | None, end_ms: int | None) -> list[Generation]:
        """In the order in which they were written."""
        return [
            row
            for row in self._state.generations.values()
            if key in (None, row.request.key)
            and (start_ms is None or start_ms <= row.request.created_ms)
            and (end_ms is None or row.request.created_ms < end_ms)
        ]


class MemoryIdempotency:
    """Implements `Idempotency`."""

    def __init__(self, state: _State) -> None:
        self._state = state

    async def reserve(self, owner: str, key: str, digest: bytes, now_ms: int, expires_ms: int) -> Reservation:
        reserved = self._state.reserved.get((owner, key))
        if reserved is None or reserved.is_over(now_ms):
            if reserved is not None:
                self._state.reserved[owner, unasked(key, reserved.expires_ms)] = reserved
            self._state.reserved[owner, key] = _Reserved(digest, expires_ms)
            return Reservation("new")
        if reserved.digest != digest:
            return Reservation("other_body")
        return Reservation("running") if reserved.answer is None else Reservation("finished", reserved.answer)

    async def finish(self, answer: Answer) -> bool:
        return _keep_answer(self._state, answer)

    async def release(self, owner: str, key: str) -> None:
        reserved = self._state.reserved.get((owner, key))
        if reserved is not None and reserved.answer is None:
            del self._state.reserved[owner, key]

    async def expired(self, now_ms: int) -> tuple[bytes, ...]:
        return tuple(one.answer or b"" for one in self._state.reserved.values() if one.is_over(now_ms))

    async def forget(self, now_ms: int) -> None:
        for key in [key for key, reserved in self._state.reserved.items() if reserved.is_over(now_ms)]:
            del self._state.reserved[key]


class MemoryFiles:
    """Implements `Files`.

    Args:
        clock_ms: what time it is, for a picture's age; the system's clock by default.
    """

    def __init__(self, clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._clock_ms = clock_ms
        self._pictures: dict[str, tuple[bytes, int]] = {}
        """Name -> content, when it was put."""
        self._swept: set[str] = set()
        self._folder = new_name("png")[:8]

    async def put(self, content: Content, output_format: str) -> str:
        data = content if isinstance(content, bytes) else content()
        name = new_name(output_format, self._folder)
        self._pictures[name] = (data, self._clock_ms())
        return name

    async def open(self, name: str) -> OpenFile:
        if name in self._pictures:
            data, _ = self._pictures[name]
            return OpenFile(io.BytesIO(data), len(data), content_type_of(name))
        if name in self._swept:
            raise FileGone(name)
        raise NoSuchFile(name)

    async def delete(self, name: str) -> bool:
        return self._pictures.pop(name, None) is not None

    async def folders(self) -> tuple[str, ...]:
        return tuple(sorted({name[:8] for name in self._pictures}))

    async def names(self, folder: str) -> tuple[str, ...]:
        return tuple(sorted(name for name in self._pictures if name[:8] == folder and is_name(name)))

    async def sweep(self, before_ms: int) -> int:
        old = [name for name, (_, modified_ms) in self._pictures.items() if modified_ms < before_ms]
        for name in old:
            del self._pictures[name]
        self._swept.update(old)
        return len(old)

    async def close(self) -> None:
        """Nothing to let go of."""


def _account(state: _State) -> Account:
    return replace(state.account, held=sum(row.held for row in state.generations.values()))


def _spending(state: _State, key: str, retention: Retention, now_ms: int) -> Spending:
    start_ms = window_start_ms(retention, now_ms)
    charges = state.charges.items()
    spent = sum(credits for (charged, day), credits in charges if charged == key and day >= start_ms // DAY_MS)
    held = sum(row.held for row in state.generations.values() if row.request.key == key)
    return Spending(window_start_ms=start_ms, spent=spent, held=held)


def _keep_answer(state: _State, answer: Answer) -> bool:
    reserved = state.reserved.get((answer.owner, answer.key))
    if reserved is None or reserved.answer is not None:
        return False
    reserved.answer = answer.body
    return True


def _usage_row(day: str | None, model: str | None, rows: Sequence[Generation]) -> UsageRow:
    done = [row for row in rows if row.status == "done"]
    return UsageRow(
        day=day,
        model=model,
        requests=len(rows),
        delivered=len(done),
        failed=sum(row.status not in ("done", "running") for row in rows),
        images=sum(row.request.images or 0 for row in done),
        credits=sum(row.credits for row in done),
    )
