"""`zturbo keys`, `usage`, `logs`, `balance` and `backup`: the records, on the computer that keeps them.

    zturbo keys create phone --limit 5/month --expires 90d
    zturbo usage --period 7d --group-by day,model
    zturbo balance --add 25
    zturbo backup /mnt/backups/monday

They work on the data folder, whether a server runs or not; a running one meets every change within a second. They ask
for no key: who may write to that folder owns everything in it. --json prints what the HTTP routes answer. Imports
neither torch nor a web framework; database and all are imported inside the commands.
"""

import json
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from zturbo.cli_options import ConfigFile, Json, stoppable, write_path
from zturbo.config import load_config
from zturbo.errors import InvalidInput, NoSuchKey, Problem, ZTurboError

if TYPE_CHECKING:
    from zturbo.keys import Facts
    from zturbo.reports import Query
    from zturbo.storage.records import Account, Key, Ledger, Records

T = TypeVar("T")
FLAGS = {"name": "--name", "scopes": "--scope", "enabled": "--disable", "expires_ms": "--expires", "limit": "--limit"}
"""What a key's owner decides -> what these commands call it."""
HINTS = {"--expires": "also 36h or 90d from now, or never", "--limit": "as 5, 0.50/day, 5/week, 5/month; or none"}
"""What these flags take beside what HTTP does."""
MAX_ROWS = 1000
"""Of a page of the log."""

keys = typer.Typer(name="keys", help="API keys: create, list, show, update and revoke them.")
records = typer.Typer()
"""The other commands, which stand beside `keys`."""

Prefix = Annotated[str, typer.Argument(metavar="PREFIX", help="The first 8 characters of a key.")]
Scopes = Annotated[
    list[str] | None,
    typer.Option(
        "--scope",
        metavar="SCOPE",
        help="What the key may do: model:image, safety:off, management; may be given several times.",
    ),
]
Limit = Annotated[
    str | None,
    typer.Option(
        metavar="USD[/WINDOW]",
        help="What it may spend, in all or in each day, week or month (UTC): 5, 0.50/day; none for no limit.",
    ),
]
Expires = Annotated[
    str | None,
    typer.Option(metavar="WHEN", help="From when on it is refused: 2027-01-31, 36h or 90d from now; never."),
]
Period = Annotated[
    str | None, typer.Option(metavar="N[h|d]", help="Hours or days up to now: 24h, 7d; not with --start or --end.")
]
Start = Annotated[str | None, typer.Option(metavar="TIME", help="From when on: 2026-07-01, or with a time of day.")]
End = Annotated[str | None, typer.Option(metavar="TIME", help="Until when; until now where it is left out.")]
OneKey = Annotated[str | None, typer.Option("--key", metavar="PREFIX", help="Requests of this key only.")]


@keys.callback(invoke_without_command=True)
def _keys(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@keys.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for, for people.")],
    scope: Scopes = None,
    limit: Limit = None,
    expires: Expires = None,
    as_json: Json = False,
    config_file: ConfigFile = None,
) -> None:
    """Make a key and print it; it is kept as a hash and cannot be shown again."""
    from zturbo.keys import create as create_key
    from zturbo.storage.embedded import now_ms

    if sys.__stdout__ is None:
        raise ZTurboError("stdout is closed, and the key is shown nowhere else", "send stdout to a file or a terminal")
    facts = _facts({"name": name, "scopes": scope} | _limit_and_expiry(limit, expires), {"name": "NAME"})

    async def job(records: "Records") -> tuple[dict[str, Any], str]:
        key, text = await create_key(records.keys, now_ms=now_ms(), **facts)
        return await _report(records.ledger, key), text

    report, text = _with_records(config_file, job, make=True)
    try:
        print(json.dumps({"data": report | {"key": text}}) if as_json else text, flush=True)
    except OSError as error:
        made = f"the key {report['prefix']} was made, but could not be shown: {error.strerror}"
        raise ZTurboError(made, f"`zturbo keys revoke {report['prefix']}`, and make another") from error
    if not as_json:
        _say(f"{_sentence(report)}; the key is shown this once")


@keys.command("list")
def list_keys(as_json: Json = False, config_file: ConfigFile = None) -> None:
    """Every key, oldest first."""

    async def job(records: "Records") -> list[dict[str, Any]]:
        return [await _report(records.ledger, key) for key in await records.keys.list()]

    reports = _with_records(config_file, job)
    if as_json:
        print(json.dumps({"data": reports}))
        return
    head = ["prefix", "name", "state", "scopes", "limit", "spent", "this month", "expires"]
    _print_table(head, [_key_row(report) for report in reports])


@keys.command()
def show(prefix: Prefix, as_json: Json = False, config_file: ConfigFile = None) -> None:
    """Describe a key: what it may do, and what it has spent."""

    _check_prefix("PREFIX", prefix)

    async def job(records: "Records") -> dict[str, Any]:
        key = await records.keys.get(prefix)
        if key is None:
            raise NoSuchKey(prefix)
        return await _report(records.ledger, key)

    _print_key(_with_records(config_file, job), as_json)


@keys.command()
def update(
    prefix: Prefix,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What the key is for, for people.")] = None,
    scope: Scopes = None,
    limit: Limit = None,
    expires: Expires = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="A disabled key is refused.")] = None,
    as_json: Json = False,
    config_file: ConfigFile = None,
) -> None:
    """Change what is given of a key, and leave the rest."""
    from zturbo.keys import change
    from zturbo.storage.embedded import now_ms

    _check_prefix("PREFIX", prefix)
    facts = _facts({"name": name, "scopes": scope, "enabled": enabled} | _limit_and_expiry(limit, expires))
    if not facts:
        flags = ", ".join([*FLAGS.values(), "--enable"])
        raise InvalidInput([Problem((prefix,), "nothing to change", None, f"give one of {flags}")])

    async def job(records: "Records") -> dict[str, Any]:
        return await _report(records.ledger, await change(records.keys, prefix, facts, now_ms(), FLAGS))

    _print_key(_with_records(config_file, job), as_json)


@keys.command()
def revoke(prefix: Prefix, as_json: Json = False, config_file: ConfigFile = None) -> None:
    """Delete a key for good; its requests stay in the log."""
    from zturbo.keys import revoke as revoke_key

    _check_prefix("PREFIX", prefix)
    _with_records(config_file, lambda records: revoke_key(records.keys, prefix))
    if as_json:
        print(json.dumps({"data": {"prefix": prefix, "deleted": True}}))
    else:
        _say(f"the key {prefix} is revoked")


@records.command()
def usage(
    period: Period = None,
    start: Start = None,
    end: End = None,
    group_by: Annotated[str, typer.Option(metavar="day|model|day,model", help="What the sums are of.")] = "day",
    key: OneKey = None,
    as_json: Json = False,
    config_file: ConfigFile = None,
) -> None:
    """What was drawn and spent; in the last 30 days, unless a period is given."""
    from zturbo.reports import DEFAULT_PERIOD, usage_report

    problems = _word_problems("--group-by", group_by, "day", "model", "day,model")
    absent = (period, start, end) == (None, None, None)
    query = _query(DEFAULT_PERIOD if absent else period, start, end, key, problems)
    report = _with_records(config_file, lambda records: usage_report(records, query, group_by, True))  # type: ignore[arg-type]  # checked
    if as_json:
        print(json.dumps(report))
        return
    names = group_by.split(",")
    rows = [[*(str(one[name] or "-") for name in names), *_sums(one, one["requests"])] for one in report["groups"]]
    _print_table([*names, "requests", "delivered", "failed", "images", "credits", "USD"], rows)
    _say(f"{report['start']} to {report['end']}: {report['images']} pictures, {_usd(report['spend'])}")


@records.command()
def logs(
    period: Period = None,
    start: Start = None,
    end: End = None,
    key: OneKey = None,
    status: Annotated[
        str | None, typer.Option(metavar="succeeded|failed|running", help="Requests that ended so.")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="Rows to print.", min=1, max=MAX_ROWS)] = 20,
    offset: Annotated[int, typer.Option(metavar="N", help="Newer rows to skip.", min=0)] = 0,
    as_json: Json = False,
    config_file: ConfigFile = None,
) -> None:
    """Single requests, newest first; failed and rejected ones as well. Prompts are not kept."""
    from zturbo.reports import ENDS, log_report

    problems = _word_problems("--status", status, *ENDS) if status is not None else []
    query = _query(period, start, end, key, problems)
    ends = ENDS[status] if status is not None else None

    async def job(records: "Records") -> dict[str, Any]:
        wanted = (limit, offset, query.key, query.start_ms, query.end_ms)
        return log_report(await records.history.logs(*wanted, statuses=ends), limit)

    report = _with_records(config_file, job)
    if as_json:
        print(json.dumps(report))
        return
    head = ["created", "status", "key", "size", "steps", "images", "credits", "seconds", "error", "request"]
    _print_table(head, [_log_row(row) for row in report["data"]])
    page = report["pagination"]
    _say(f"{len(report['data'])} of {page['total']} requests{', more with --offset' if page['has_more'] else ''}")


@records.command()
def balance(
    new: Annotated[
        str | None, typer.Option("--set", metavar="USD|unlimited", help="Make the balance this much.")
    ] = None,
    more: Annotated[str | None, typer.Option("--add", metavar="USD", help="Add this much to the balance.")] = None,
    low: Annotated[
        str | None, typer.Option("--low", metavar="USD", help="Below this the balance counts as low.")
    ] = None,
    as_json: Json = False,
    config_file: ConfigFile = None,
) -> None:
    """What all keys together can still spend, which is unlimited at first."""
    from zturbo.quantities import read_each, read_usd
    from zturbo.reports import balance_report
    from zturbo.storage.embedded import now_ms

    amounts = {"--set": new if new != "unlimited" else None, "--add": more, "--low": low}
    credits, problems = read_each(amounts, dict.fromkeys(amounts, read_usd), {})
    if new is not None and more is not None:
        problems.append(Problem(("--add",), "cannot be given beside --set", more, "leave one of them out"))
    if problems:
        raise InvalidInput(problems)
    if new == "unlimited":
        credits["--set"] = None

    async def job(records: "Records") -> dict[str, Any]:
        return balance_report(await _settle(records.ledger, credits, now_ms()), now_ms())

    report = _with_records(config_file, job, make=bool(credits))
    print(json.dumps(report) if as_json else _balance_text(report))


@records.command()
def backup(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.")],
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Copy the pictures as well as the records.")
    ] = True,
    as_json: Json = False,
    config_file: ConfigFile = None,
) -> None:
    """Copy records and pictures to FOLDER, while a server runs or not; FOLDER is then a data folder itself."""
    import asyncio

    from zturbo.storage.embedded import back_up

    with stoppable():
        count = asyncio.run(back_up(load_config({}, config_file), folder, pictures))
    if as_json:
        print(json.dumps({"folder": str(folder), "pictures": count}))
    else:
        write_path(folder)
    if not as_json:
        _say(f"records and {count} pictures; to restore, stop the server and make this its data folder")


def _with_records(config_file: Path | None, job: Callable[["Records"], Awaitable[T]], make: bool = False) -> T:
    """Run a job on the records.

    Args:
        make: make a data folder where there is none.
    """
    import asyncio

    from zturbo.storage.embedded import open_records

    config = load_config({}, config_file)

    async def run() -> T:
        opened = await open_records(config, make=make)
        try:
            return await job(opened)
        finally:
            await opened.close()

    return asyncio.run(run())


async def _settle(ledger: "Ledger", credits: dict[str, int | None], now_ms: int) -> "Account":
    """Change the account as the flags ask; returns it as it is then."""
    from zturbo.pricing import CREDITS_PER_USD
    from zturbo.storage.records import MAX_CREDITS

    more = credits.get("--add")
    balance = credits["--set"] if "--set" in credits else (await ledger.account()).balance
    if more is not None and balance is None:  # before anything is changed
        hint = "set one first: zturbo balance --set USD"
        raise InvalidInput([Problem(("--add",), "the balance is unlimited, so there is nothing to add to", None, hint)])
    if more is not None and balance is not None and balance + more > MAX_CREDITS:
        most = f"the balance would be more than an account holds, {MAX_CREDITS // CREDITS_PER_USD} USD"
        raise InvalidInput([Problem(("--add",), most, None, "add less, or `zturbo balance --set unlimited`")])
    if "--set" in credits or "--low" in credits:
        low = credits.get("--low")
        await ledger.set_account(credits.get("--set", "unchanged"), "unchanged" if low is None else low, now_ms)
    return await ledger.account() if more is None else await ledger.top_up(more, now_ms)


def _facts(values: dict[str, Any], names: dict[str, str] | None = None) -> "Facts":
    from zturbo.keys import read
    from zturbo.storage.embedded import now_ms

    try:
        return read(values, now_ms(), FLAGS | (names or {}))
    except InvalidInput as error:  # the parts of a limit are one flag here
        problems = [replace(problem, path=problem.path[:1], hint=HINTS.get(problem.path[0], problem.hint))
                    for problem in error.problems]  # fmt: skip
        raise InvalidInput(problems) from None


def _limit_and_expiry(limit: str | None, expires: str | None) -> dict[str, Any]:
    """The values that the flags stand for; an absent flag is absent, and "none" and "never" are None."""
    values: dict[str, Any] = {}
    if limit is not None:
        threshold, slash, window = limit.partition("/")
        whole = {"threshold": threshold, "retention": window if slash else "no_reset"}
        values["limit"] = None if limit == "none" else whole
    if expires is not None:
        values["expires_ms"] = None if expires == "never" else _moment(expires)
    return values


def _moment(text: str) -> str:
    """`90d` as the moment that it is from now; any other text as it is."""
    from zturbo.quantities import PERIOD_PATTERN, iso, read_duration
    from zturbo.storage.embedded import now_ms

    return iso(now_ms() + read_duration(text, ())) if re.fullmatch(PERIOD_PATTERN, text) else text


def _check_prefix(name: str, prefix: str) -> None:
    """Refuse what is no key's prefix; a whole key, pasted in its place, is not shown again.

    Raises:
        InvalidInput: it is none.
    """
    from zturbo.params import shown

    if re.fullmatch("[0-9a-f]{8}", prefix):
        return
    got = "a whole key" if re.fullmatch("[0-9a-fA-F]{32}", prefix) else shown(prefix)
    raise InvalidInput([Problem((name,), f"must be the first 8 characters of a key, as 0a1b2c3d; got {got}", None)])


def _word_problems(flag: str, value: str, *allowed: str) -> list[Problem]:
    from zturbo.params import shown

    if value in allowed:
        return []
    return [Problem((flag,), f"must be one of {'; '.join(allowed)}; got {shown(value)}", value)]


def _query(
    period: str | None, start: str | None, end: str | None, key: str | None, problems: Sequence[Problem]
) -> "Query":
    """Which requests are meant; the flags' problems are told with those that were found before."""
    from zturbo.api.sessions import KEY_PREFIX
    from zturbo.quantities import read_period
    from zturbo.reports import Query
    from zturbo.storage.embedded import now_ms

    if key not in (None, KEY_PREFIX):  # that of the playground's sessions
        _check_prefix("--key", key)
    values = {"period": period, "start": start, "end": end}
    try:
        found = read_period(values, now_ms(), {name: f"--{name}" for name in values})
    except InvalidInput as error:
        raise InvalidInput([*error.problems, *problems]) from None
    if problems:
        raise InvalidInput(problems)
    return Query(*found, key)


async def _report(ledger: "Ledger", key: "Key") -> dict[str, Any]:
    from zturbo.reports import key_report
    from zturbo.storage.embedded import now_ms

    return await key_report(ledger, key, now_ms())


def _print_key(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"data": report}))
        return
    told = {**report, "disabled": "yes" if report["disabled"] else "no", "scopes": ", ".join(report["scopes"]),
            "limit": _limit_state(report["limit"]), "monthly_usage": _usd(report["monthly_usage"])}  # fmt: skip
    for name, value in told.items():
        print(f"{name:16}{'-' if value is None else value}")


def _key_row(report: dict[str, Any]) -> list[str]:
    limit = report["limit"]
    return [
        report["prefix"],
        report["name"],
        _state(report),
        " ".join(report["scopes"]),
        _limit_text(limit),
        _usd(limit["spent"]) if limit else "-",
        _usd(report["monthly_usage"]),
        report["expires_at"] or "never",
    ]


def _state(report: dict[str, Any]) -> str:
    from zturbo.quantities import iso
    from zturbo.storage.embedded import now_ms

    if report["disabled"]:
        return "disabled"
    expires = report["expires_at"]
    return "expired" if expires is not None and expires <= iso(now_ms()) else "works"


def _limit_text(limit: dict[str, Any] | None) -> str:
    if limit is None:
        return "none"
    window = "" if limit["retention"] == "no_reset" else f"/{limit['retention']}"
    return f"{_usd(limit['threshold'])}{window}"


def _limit_state(limit: dict[str, Any] | None) -> str:
    """The limit, what of it is spent, and what running requests hold."""
    if limit is None:
        return "none"
    held = f", {_usd(limit['held'])} held" if limit["held"] else ""
    return f"{_limit_text(limit)}: {_usd(limit['spent'])} spent{held}"


def _sentence(report: dict[str, Any]) -> str:
    expires = f", until {report['expires_at']}" if report["expires_at"] else ""
    return f"{report['name']}: {', '.join(report['scopes'])}; limit {_limit_text(report['limit'])}{expires}"


def _sums(group: dict[str, Any], requests: dict[str, int]) -> list[str]:
    counts = (requests["total"], requests["succeeded"], requests["failed"], group["images"], group["credits"])
    return [*map(str, counts), _usd(group["spend"]).removesuffix(" USD")]


def _log_row(row: dict[str, Any]) -> list[str]:
    size = f"{row['width']}x{row['height']}" if row["width"] else None
    total = row["seconds"].get("total")
    facts = (row["created"], row["status"], row["key"], size, row["steps"], row["images"], row["cost"]["credits"],
             None if total is None else f"{total:.2f}", row["error_code"], row["request_id"])  # fmt: skip
    return ["-" if fact is None else str(fact) for fact in facts]


def _balance_text(report: dict[str, Any]) -> str:
    from zturbo.quantities import usd

    if report["unlimited"]:
        return "unlimited"
    held = f"; {_usd(usd(report['held']))} of it held by running requests" if report["held"] else ""
    low = f"; low, below {_usd(usd(report['lowBalanceThreshold']))}" if report["lowBalance"] else ""
    return f"{_usd(usd(report['balance']))}{held}{low}"


def _usd(amount: float) -> str:
    """Dollars to the seventh place: a credit is 0.0000005 of them."""
    return f"{amount:,.7f}".rstrip("0").rstrip(".") + " USD"


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
