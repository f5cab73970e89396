"""The seams of everything that is a record, the frozen dataclasses that travel through them, and the rules of money.

    Keys         who may ask
    Ledger       each request's one row, and its credits
    History      usage, logs, which pictures are known
    Idempotency  first answers, kept for a repetition

Each has at most 8 methods; sqlite.py and memory.py implement all of them, and one contract suite runs on both.

Money is credits, integers; pricing.py says what pictures cost. The model behind it is the simplest that holds: one
account for the installation, whose balance may be unlimited, and per key an optional spending limit in a window.
`Ledger.start` holds a request's price before work begins, `Ledger.finish` turns the hold into a charge when the
pictures were delivered, or drops it. Holds count as spent, so that no number of requests at once gets past a limit.

Times are integer milliseconds since 1970 in UTC, given by the caller: no seam reads a clock.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal, Protocol

from zturbo.pricing import CREDITS_PER_USD

MAX_CREDITS = 2**53 - 1
"""Of any single amount: JavaScript reads such integers exactly, and sums of them stay within SQLite's 64 bits."""
DAY_MS = 86_400_000

Retention = Literal["no_reset", "day", "week", "month"]
Origin = Literal["api", "playground"]
End = Literal["done", "failed", "cancelled", "rejected"]
Status = Literal["running", "done", "failed", "cancelled", "rejected"]
GroupBy = Literal["day", "model", "day,model"]
Refusal = Literal["spending_limit", "balance"]
Unchanged = Literal["unchanged"]


@dataclass(frozen=True, slots=True)
class KeyLimit:
    """How many credits a key may spend in a window; windows begin at midnight UTC, weeks on Monday."""

    retention: Retention
    threshold: int
    """Credits."""

    def __post_init__(self) -> None:
        assert_credits(self.threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An API key, without its text: that is known only to its owner."""

    prefix: str
    """The first 8 characters; public."""
    digest: bytes = field(repr=False)
    """SHA-256 of the whole text."""
    name: str
    created_ms: int
    scopes: frozenset[str]
    enabled: bool = True
    expires_ms: int | None = None
    limit: KeyLimit | None = None
    updated_ms: int | None = None
    """When its owner last changed it; None is never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is known of a request when it begins. A prompt is not among it: logs must not leak what people ask for."""

    request_id: str
    inference_id: str
    created_ms: int
    origin: Origin = "api"
    key: str | None = None
    """The key's prefix; it stays when the key is deleted."""
    client_request_id: str | None = None
    model: str | None = None
    """None, here and below, where a rejected request never got as far."""
    width: int | None = None
    """Pixels."""
    height: int | None = None
    """Pixels."""
    steps: int | None = None
    images: int | None = None
    """Pictures asked for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer, kept for whoever repeats the request."""

    owner: str
    """The key's prefix: an idempotency key means something to one API key only."""
    key: str
    body: bytes
    """Whatever the caller needs to answer again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Screening:
    """What the safety checker found in the pictures of a request, in order."""

    checker: str
    """name@version."""
    threshold: float
    scores: tuple[float, ...]
    flagged: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a request ended."""

    status: End
    ended_ms: int
    credits: int = 0
    """At most what was held; 0 unless done."""
    files: tuple[str, ...] = ()
    """Names of the pictures delivered as files, in order."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Stage -> seconds."""
    error: str | None = None
    """The error's code."""
    safety: Screening | None = None
    """None where the pictures were not checked."""
    answer: Answer | None = None
    """Kept in the same transaction, so that no repetition is charged a second time."""

    def __post_init__(self) -> None:
        assert_credits(self.credits)
        assert self.status == "done" or not (self.credits or self.files), "only delivered pictures are charged and kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One request's row."""

    request: Request
    status: Status
    held: int
    """Credits set aside while it runs; 0 afterwards."""
    credits: int
    """Credits charged."""
    ended_ms: int | None
    error: str | None
    seconds: Mapping[str, float]
    files: tuple[str, ...]
    safety: Screening | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The installation's money."""

    balance: int | None
    """Credits; None is unlimited."""
    low_threshold: int
    """Credits below which the balance counts as low."""
    held: int
    """Credits that running requests have set aside; still part of the balance."""
    updated_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What a key has spent in its window."""

    window_start_ms: int
    spent: int
    """Credits charged since then."""
    held: int
    """Credits that its running requests have set aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """Requests of one group. Day and model are None where they were not grouped by, or a rejected request had none."""

    day: str | None
    """YYYY-MM-DD in UTC, of the request's beginning."""
    model: str | None
    requests: int
    delivered: int
    """Requests that ended as done."""
    failed: int
    """Requests that ended in another way; what still runs is in neither."""
    images: int
    """Pictures delivered."""
    credits: int


@dataclass(frozen=True, slots=True)
class LogPage:
    """A page of the log, newest first."""

    rows: tuple[Generation, ...]
    total: int
    """Rows of all pages."""
    offset: int

    @property
    def has_more(self) -> bool:
        """Whether rows follow this page."""
        return self.offset + len(self.rows) < self.total


@dataclass(frozen=True, slots=True)
class Reservation:
    """What an idempotency key stands for: `new` is reserved for the caller, who must finish or release it."""

    state: Literal["new", "running", "finished", "other_body"]
    answer: bytes | None = None
    """Of a finished one."""


class Keys(Protocol):
    """The API keys."""

    async def add(self, key: Key) -> bool:
        """Keep a new key; False where its prefix is taken."""

    async def get(self, prefix: str) -> Key | None: ...

    async def list(self) -> tuple[Key, ...]:
        """All keys, oldest first."""

    async def update(self, prefix: str, change: Callable[[Key], Key]) -> Key | None:
        """Change a key within one transaction; returns it as it is now, or None where there is none.

        Args:
            change: returns the changed key; may be run on another thread. Prefix and digest stay.
        """

    async def delete(self, prefix: str) -> bool:
        """Forget a key; its requests stay. False where there is none."""


class Ledger(Protocol):
    """Requests and credits. Every request ends exactly once."""

    async def start(self, request: Request, credits: int, limit: KeyLimit | None) -> Refusal | None:
        """Begin a request: hold its price, or write it down as rejected where limit or balance do not allow it.

        A caller that is cancelled while it waits has started the request all the same: `finish` it in any case.

        Args:
            credits: the price, should all pictures be delivered.
            limit: the key's; None is unlimited.

        Returns:
            None where the request runs now, else what refused it.
        """

    async def finish(self, request_id: str, ending: Ending) -> bool:
        """End a running request; its charge, file names and answer are one transaction. False, and nothing is
        written, where it is not running."""

    async def reject(self, request: Request, ending: Ending) -> None:
        """Write down a request that never began."""

    async def get(self, request_id: str) -> Generation | None: ...

    async def spending(self, key: str, retention: Retention, now_ms: int) -> Spending: ...

    async def account(self) -> Account: ...

    async def set_account(self, balance: int | Unchanged | None, low_threshold: int | Unchanged, now_ms: int) -> None:
        """Set the balance, None for unlimited. Set below what is held now, it can end at 0 and not below."""

    async def top_up(self, credits: int, now_ms: int) -> Account:
        """Add to the balance; an unlimited one stays unlimited."""


class History(Protocol):
    """What has been. Periods are [start_ms, end_ms) of the requests' beginnings; `key` narrows to one key's prefix."""

    async def usage(
        self, start_ms: int, end_ms: int, group_by: GroupBy = "day", key: str | None = None
    ) -> tuple[UsageRow, ...]:
        """Sums by group, ordered by day, then model."""

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
    ) -> LogPage: ...

    async def known_files(self, names: Sequence[str]) -> frozenset[str]:
        """Those of the names that a delivered request refers to."""


def unasked(key: str, expires_ms: int) -> str:
    """Under which an expired answer waits to be forgotten, once its key is used again: no header has a line's end."""
    return f"{key}\n{expires_ms}"


class Idempotency(Protocol):
    """One answer per owner and key, until it expires. A reservation without one does not: clocks may jump."""

    async def reserve(self, owner: str, key: str, digest: bytes, now_ms: int, expires_ms: int) -> Reservation:
        """Take a key for a body's digest, or say what it stands for already. One of many at once gets `new`."""

    async def finish(self, answer: Answer) -> bool:
        """Keep the answer of a reservation. False where nothing is reserved, or it was finished before."""

    async def release(self, owner: str, key: str) -> None:
        """Give up a reservation, for a request that failed; a finished one stays."""

    async def expired(self, now_ms: int) -> tuple[bytes, ...]:
        """The answers that nobody can ask for any more; those whose key has been used again since are among them."""

    async def forget(self, now_ms: int) -> None:
        """Delete what `expired` answers at that time."""


class Records(Protocol):
    """All seams of one database."""

    @property
    def keys(self) -> Keys: ...

    @property
    def ledger(self) -> Ledger: ...

    @property
    def history(self) -> History: ...

    @property
    def idempotency(self) -> Idempotency: ...

    async def close(self) -> None:
        """Finish what was asked for, then let go. Calling it again does nothing."""


def credits_of_usd(usd: Decimal | str | int) -> int:
    """Credits for US dollars, rounded to the nearest.

    Raises:
        ValueError: not a number from 0 to what an account can hold. A float is refused: write it as text.
    """
    if isinstance(usd, bool | float):
        raise ValueError(f"money is no {type(usd).__name__}: {usd!r}")
    try:
        value = Decimal(usd) * CREDITS_PER_USD
        in_range = 0 <= value <= MAX_CREDITS  # a comparison with NaN raises InvalidOperation, an ArithmeticError
    except ArithmeticError:
        raise ValueError(f"no amount of money: {usd!r}") from None
    if not in_range:
        raise ValueError(f"must be from 0 to {MAX_CREDITS // CREDITS_PER_USD} USD; got {usd!r}")
    return int(value.to_integral_value(ROUND_HALF_UP))


def window_start_ms(retention: Retention, now_ms: int) -> int:
    """When the window that `now_ms` lies in began: midnight UTC of the day, the Monday or the first; 0 for no_reset."""
    if retention == "no_reset":
        return 0
    day = datetime.fromtimestamp(now_ms // 1000, UTC).replace(hour=0, minute=0, second=0)
    if retention == "week":
        day -= timedelta(days=day.weekday())
    if retention == "month":
        day = day.replace(day=1)
    return int(day.timestamp()) * 1000


def refusal(
    credits: int, *, threshold: int | None, spent: int, held: int, balance: int | None, held_by_all: int
) -> Refusal | None:
    """The rule of every ledger: what stands against a request of this price, its key's limit first.

    Args:
        threshold, spent, held: the key's limit, and its credits charged in the window and set aside now.
        balance, held_by_all: the installation's, and what all running requests have set aside.
    """
    if threshold is not None and spent + held + credits > threshold:
        return "spending_limit"
    if balance is not None and held_by_all + credits > balance:
        return "balance"
    return None


def changed_amounts(balance: int | Unchanged | None, low_threshold: int | Unchanged) -> dict[str, int | None]:
    """The members of an account that `set_account` is asked to change."""
    amounts = {"balance": balance, "low_threshold": low_threshold}
    changes = {name: amount for name, amount in amounts.items() if amount != "unchanged"}
    for amount in changes.values():
        assert_credits(amount or 0)
    return changes


def assert_credits(amount: int) -> None:
    """Money is an integer; a bool or a float here is our own mistake."""
    assert type(amount) is int, f"credits are integers; got {amount!r}"
    assert 0 <= amount <= MAX_CREDITS, f"credits out of range: {amount}"
