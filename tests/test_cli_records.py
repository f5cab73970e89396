"""`zturbo keys`, `usage`, `logs`, `balance` and `backup`, alone and beside a running server."""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.api.server_process import GENERATIONS, KEY, Serving, serving
from tests.contract.samples import done, failed, request
from zturbo.cli import main
from zturbo.keys import SCOPES
from zturbo.storage.cached import FRESH_S
from zturbo.storage.embedded import now_ms
from zturbo.storage.local import LocalFiles
from zturbo.storage.records import DAY_MS, Generation, Records
from zturbo.storage.sqlite import open_sqlite

T = TypeVar("T")
PRICE = 10_500
BODY = {"model": "alibaba/z-image-turbo", "prompt": "a cat", "image_size": "square"}


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder that is not there yet, and no settings of the user's."""
    for name in [name for name in os.environ if name.startswith("ZTURBO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ZTURBO_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@dataclass(frozen=True, slots=True)
class Told:
    """What a command said."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed for machines: one line."""
        assert self.code == 0, self.err
        (line,) = self.out.splitlines()
        return json.loads(line)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    def run_command(*arguments: str) -> Told:
        capfd.readouterr()
        code = main(arguments)
        said = capfd.readouterr()
        return Told(code, said.out, said.err)

    return run_command


def with_records(data: Path, job: Callable[[Records], Awaitable[T]]) -> T:
    async def work() -> T:
        records = await open_sqlite(data / "records.sqlite")
        try:
            return await job(records)
        finally:
            await records.close()

    return asyncio.run(work())


def fill(data: Path) -> None:
    """Two pictures of one key, a failure of another."""

    async def job(records: Records) -> None:
        row = request(created_ms=now_ms() - DAY_MS, key="aaaaaaaa", images=2)
        await records.ledger.start(row, 2 * PRICE, None)
        await records.ledger.finish(row.request_id, done(2 * PRICE, now_ms(), seconds={"total": 1.234}))
        bad = request(created_ms=now_ms() - 5, key="bbbbbbbb")
        await records.ledger.start(bad, PRICE, None)
        await records.ledger.finish(bad.request_id, failed())

    with_records(data, job)


# Keys


def test_a_key_is_made_and_printed_alone(run: Callable[..., Told]) -> None:
    made = run("keys", "create", "phone", "--limit", "0.5/month", "--expires", "2100-01-31", "--scope", "model:image")
    assert made.code == 0
    assert re.fullmatch("[0-9a-f]{32}\n", made.out)
    assert made.err == (
        "phone: model:image; limit 0.5 USD/month, until 2100-01-31T00:00:00.000Z; the key is shown this once\n"
    )
    listed = run("keys", "list")
    assert made.out.strip() not in listed.out
    head, row = listed.out.splitlines()
    assert head.split() == ["prefix", "name", "state", "scopes", "limit", "spent", "this", "month", "expires"]
    assert row.startswith(f"{made.out[:8]}  phone  works")


def test_json_is_what_the_routes_answer(run: Callable[..., Told]) -> None:
    made = run("keys", "create", "a", "--limit", "25", "--expires", "90d", "--json").json()["data"]
    prefix = made["prefix"]
    assert made.pop("key")[:8] == prefix
    assert made["limit"] == {"retention": "no_reset", "threshold": 25, "spent": 0, "held": 0, "window_start": None}
    assert made["expires_at"] > made["created_at"]
    assert run("keys", "show", prefix, "--json").json() == {"data": made}
    assert run("keys", "list", "--json").json() == {"data": [made]}
    changed = run("keys", "update", prefix, "--name", "b", "--limit", "none", "--expires", "never", "--json").json()
    assert (changed["data"]["name"], changed["data"]["limit"], changed["data"]["expires_at"]) == ("b", None, None)
    assert run("keys", "revoke", prefix, "--json").json() == {"data": {"prefix": prefix, "deleted": True}}
    assert run("keys", "list", "--json").json() == {"data": []}


def test_a_key_is_disabled_and_enabled(run: Callable[..., Told]) -> None:
    prefix = run("keys", "create", "a").out[:8]
    assert re.search(r"disabled +yes", run("keys", "update", prefix, "--disable").out)
    assert "disabled" in run("keys", "list").out.splitlines()[1]
    assert re.search(r"disabled +no", run("keys", "update", prefix, "--enable").out)
    assert re.search(r"limit +1,234.5 USD/day", run("keys", "update", prefix, "--limit", "1234.5/day").out)


def test_the_last_manager_may_go(run: Callable[..., Told]) -> None:
    """Here another one can be made at any time."""
    prefix = run("keys", "create", "a", "--scope", "management").out[:8]
    assert run("keys", "revoke", prefix).code == 0


def test_every_scope_is_in_the_help(run: Callable[..., Told]) -> None:
    told = " ".join(run("keys", "create", "--help").out.split())
    assert ", ".join(SCOPES) in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["create", "a\nb", "--scope", "draw", "--limit", "5/year", "--expires", "soon"],
         ["NAME: must be", "--scope: must be", "--limit: must be", "--expires: must be"]),
        (["create", "a", "--limit", "five"], ["--limit: must be US dollars"]),
        (["create", "a", "--limit", "/day"], ["--limit: must be US dollars"]),
        (["create", "a", "--expires", "2001-01-01"], ["--expires: must be in the future"]),
        (["create", "ZTURBO_API_KEY"], ["name: ZTURBO_API_KEY is the name of the key that the settings give"]),
        (["update", "PREFIX"], ["nothing to change", "--limit"]),
        (["update", "PREFIX", "--name", "ZTURBO_API_KEY"], ["--name: ZTURBO_API_KEY is the name"]),
        (["create"], ["Missing argument"]),
    ],
)  # fmt: skip
def test_bad_input_is_told_whole(run: Callable[..., Told], arguments: list[str], told: list[str]) -> None:
    prefix = run("keys", "create", "first").out[:8]
    done = run("keys", *(prefix if argument == "PREFIX" else argument for argument in arguments))
    assert (done.code, done.out) == (2, "")
    assert all(one in done.err for one in told), done.err
    assert len(run("keys", "list", "--json").json()["data"]) == 1


@pytest.mark.parametrize("command", ["show", "update --disable", "revoke"])
def test_a_key_that_is_not_there(run: Callable[..., Told], command: str) -> None:
    run("keys", "create", "a")
    name, *more = command.split()
    told = run("keys", name, "ffffffff", *more)
    assert (told.code, told.out) == (1, "")
    assert "no key with the prefix 'ffffffff'" in told.err


@pytest.mark.parametrize("command", ["keys list", "keys revoke ffffffff", "usage", "logs", "balance", "backup b"])
def test_reading_makes_no_data_folder(run: Callable[..., Told], data: Path, command: str) -> None:
    told = run(*command.split())
    assert (told.code, told.out) == (1, "")
    assert f"there are no records in {data}" in told.err
    assert not data.exists()


# Usage, logs, balance


def test_usage_as_a_table(run: Callable[..., Told], data: Path) -> None:
    fill(data)
    told = run("usage", "--group-by", "model")
    head, row = told.out.splitlines()
    assert head.split() == ["model", "requests", "delivered", "failed", "images", "credits", "USD"]
    assert row.split() == ["alibaba/z-image-turbo", "2", "1", "1", "2", "21000", "0.0105"]
    assert "2 pictures, 0.0105 USD" in told.err
    assert len(run("usage").out.splitlines()) == 3, "a line a day"
    assert "0 pictures" in run("usage", "--period", "1h").err
    assert "0 pictures" in run("usage", "--key", "bbbbbbbb").err
    assert "0 pictures" in run("usage", "--key", "local").err, "the playground's"
    assert run("keys", "show", "local").code == 2


def test_usage_for_machines(run: Callable[..., Told], data: Path) -> None:
    fill(data)
    found = run("usage", "--json", "--period", "2d", "--group-by", "day,model", "--key", "aaaaaaaa").json()
    assert (found["credits"], found["requests"], found["api_key_prefix"]) == (2 * PRICE, 1, "aaaaaaaa")
    assert found["models"][0]["requests"] == 1
    assert found["groups"][0].keys() >= {"day", "model", "spend", "requests"}


def test_logs(run: Callable[..., Told], data: Path) -> None:
    fill(data)
    told = run("logs")
    _, newest, oldest = told.out.splitlines()
    assert newest.split()[1:3] == ["failed", "bbbbbbbb"]
    assert "internal_error" in newest
    assert oldest.split()[1:8] == ["succeeded", "aaaaaaaa", "1024x768", "8", "2", "21000", "1.23"]
    assert told.err == "2 of 2 requests\n"
    assert run("logs", "--limit", "1").err == "1 of 2 requests, more with --offset\n"
    assert run("logs", "--limit", "1", "--offset", "1", "--json").json()["data"][0]["key"] == "aaaaaaaa"
    assert run("logs", "--status", "failed", "--key", "aaaaaaaa", "--json").json()["data"] == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["usage", "--period", "week", "--group-by", "hour"], ["--period: must be", "--group-by: must be"]),
        (["usage", "--period", "7d", "--start", "2026-01-01"], ["--period: cannot be given beside --start or --end"]),
        (["logs", "--start", "2026-02-01", "--end", "2026-01-01", "--status", "ok"], ["--status: must be"]),
        (["logs", "--limit", "0"], ["--limit"]),
        (["balance", "--set", "-5", "--low", "x"], ["--set: must be", "--low: must be"]),
        (["balance", "--set", "5", "--add", "5"], ["--add: cannot be given beside --set"]),
        (["balance", "--add", "5"], ["the balance is unlimited"]),
    ],
)
def test_bad_questions(run: Callable[..., Told], data: Path, arguments: list[str], told: list[str]) -> None:
    fill(data)
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert all(one in done.err for one in told), done.err


def test_the_balance(run: Callable[..., Told], data: Path) -> None:
    fill(data)
    assert run("balance").out == "unlimited\n"
    assert run("balance", "--set", "10", "--low", "2.5").out == "10 USD\n"
    assert run("balance", "--add", "0.00525").out == "10.00525 USD\n"
    assert run("balance", "--low", "20").out == "10.00525 USD; low, below 20 USD\n"
    assert run("balance", "--set", "1", "--json").json()["lowBalanceThreshold"] == 20 * 2_000_000
    assert run("balance", "--set", "unlimited").out == "unlimited\n"


def test_a_refused_change_of_the_balance_changes_nothing(run: Callable[..., Told], data: Path) -> None:
    fill(data)
    before = run("balance", "--json").json()
    assert run("balance", "--low", "5", "--add", "20").code == 2
    assert run("balance", "--json").json() | {"lastUpdated": ""} == before | {"lastUpdated": ""}


def test_setting_the_low_threshold_loses_no_charge(run: Callable[..., Told], data: Path) -> None:
    """It is set by itself, not together with a balance that was read before."""
    fill(data)
    run("balance", "--set", "1")
    with_records(data, lambda records: records.ledger.top_up(7, now_ms()))
    assert run("balance", "--low", "0", "--json").json()["balance"] == 2_000_007


# Beside a server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path) as running:
        yield running


def draw(server: Serving, key: str = KEY) -> tuple[int, Any]:
    answer = server.ask("POST", GENERATIONS, BODY, {"authorization": f"Bearer {key}"})
    return answer.status, answer.json()


def test_a_running_server_meets_every_change_within_a_second(run: Callable[..., Told], server: Serving) -> None:
    def change(*words: str) -> None:
        run("keys", *words)
        time.sleep(FRESH_S)  # as long as the server may remember the key as it was

    key = run("keys", "create", "phone", "--limit", "0.0105").out.strip()
    assert [draw(server, key)[0] for _ in range(3)] == [200, 200, 403]
    assert run("keys", "show", key[:8], "--json").json()["data"]["limit"]["spent"] == 0.0105
    assert re.search(r"limit +0.0105 USD: 0.0105 USD spent\n", run("keys", "show", key[:8]).out)
    change("update", key[:8], "--limit", "none")
    assert draw(server, key)[0] == 200
    change("update", key[:8], "--disable")
    assert draw(server, key)[0] == 401
    change("update", key[:8], "--enable")
    run("balance", "--set", "0.00525")
    assert [draw(server, key)[0] for _ in range(2)] == [200, 403]
    run("balance", "--add", "1")
    assert draw(server, key)[0] == 200
    change("revoke", key[:8])
    assert draw(server, key)[0] == 401
    assert run("usage", "--key", key[:8], "--json").json()["images"] == 5
    assert {row["status"] for row in run("logs", "--json").json()["data"]} == {"succeeded", "failed"}


def test_the_guides_examples_run(server: Serving, capfd: pytest.CaptureFixture[str]) -> None:
    """Its Python blocks, with nothing but address and key changed."""
    guide = (Path(__file__).parent.parent / "docs/guides/keys-and-usage.md").read_text("utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL))
    assert code.count("requests.") == 5
    assert draw(server)[0] == 200
    exec(re.sub("<(management )?key>", KEY, code.replace("http://127.0.0.1:8000", server.url)), {})
    told = capfd.readouterr().out
    assert "1 pictures 0.00525 USD" in told
    assert "0 requests failed" in told


def test_a_backup_while_requests_run_is_whole_and_can_be_served(
    run: Callable[..., Told], server: Serving, tmp_path: Path
) -> None:
    run("balance", "--set", "1000")
    _, first = draw(server)
    stop = threading.Event()
    statuses: list[int] = []

    def client() -> None:
        while not stop.is_set():
            statuses.append(draw(server)[0])

    clients = [threading.Thread(target=client) for _ in range(3)]
    for thread in clients:
        thread.start()
    try:
        for number in range(4):
            (tmp_path / f"copy-{number}").mkdir()
            assert run("backup", str(tmp_path / f"copy-{number}" / "data")).code == 0
    finally:
        stop.set()
        for thread in clients:
            thread.join()
    assert set(statuses) == {200}

    counts = [check_copy(tmp_path / f"copy-{number}" / "data") for number in range(4)]
    assert counts == sorted(counts)
    assert counts[-1] > 1, "requests ran meanwhile"
    server.kill()
    with serving(tmp_path / "copy-3") as restored:
        path = "/files/b/" + first["data"][0]["url"].partition("/files/b/")[2]
        assert restored.ask("GET", path).body[:4] == b"\x89PNG"
        assert draw(restored)[0] == 200
        page = restored.ask("GET", "/v2/logs?status=running").json()
        assert page["pagination"]["total"] == 0


def check_copy(data: Path) -> int:
    """Every charged row's pictures are there, whole, and nothing else was charged; returns how many rows there are."""

    async def job(records: Records) -> tuple[tuple[Generation, ...], int | None]:
        return (await records.history.logs(10**6, statuses=["done"])).rows, (await records.ledger.account()).balance

    rows, balance = with_records(data, job)
    assert balance == 1000 * 2_000_000 - sum(row.credits for row in rows)
    for name in [name for row in rows for name in row.files]:
        picture = (data / "files" / name).read_bytes()
        assert (picture[:4], picture[-8:-4]) == (b"\x89PNG", b"IEND")
    assert not list(data.parent.glob(".*.part"))
    return len(rows)


# Backup


def test_a_backup_keeps_times_and_what_was_swept(run: Callable[..., Told], data: Path, tmp_path: Path) -> None:
    async def job() -> tuple[str, str]:
        files = await LocalFiles.start(data / "files")
        old, young = await files.put(b"old", "png"), await files.put(b"young", "png")
        os.utime(data / "files" / old, (1, 1))
        await files.sweep(2000)
        os.utime(data / "files" / young, (3, 3))
        await files.close()
        return old, young

    fill(data)
    old, young = asyncio.run(job())
    told = run("backup", str(tmp_path / "copy"))
    assert told.out == f"{tmp_path / 'copy'}\n"
    assert "1 pictures" in told.err
    copy = tmp_path / "copy" / "files"
    assert (copy / young).read_bytes() == b"young"
    assert (copy / young).stat().st_mtime == 3
    assert old[9:] in (copy / old[:8] / "swept").read_text()
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700
    found = run("backup", str(tmp_path / "bare"), "--no-pictures", "--json").json()
    assert found == {"folder": str(tmp_path / "bare"), "pictures": 0}
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["records.sqlite"]


@pytest.mark.parametrize("target", ["there", "missing/folder", "file/folder"])
def test_a_backup_that_cannot_be_written_leaves_nothing(
    run: Callable[..., Told], data: Path, tmp_path: Path, target: str
) -> None:
    fill(data)
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    told = run("backup", str(tmp_path / target))
    assert (told.code, told.out) == (1, "")
    assert target in told.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("target", [".", "..", "/"])
def test_a_backup_into_a_folder_that_is_there_is_refused(run: Callable[..., Told], data: Path, target: str) -> None:
    told = run("backup", target)
    assert told.code == 1
    assert "exists already" in told.err


def test_a_backup_that_breaks_off_leaves_nothing(
    run: Callable[..., Told], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(data)
    before = sorted(tmp_path.rglob("*"))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zturbo.storage.embedded.copy_pictures", full)
    told = run("backup", str(tmp_path / "copy"))
    assert (told.code, told.out) == (1, "")
    assert "No space left" in told.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["keys create --help", "usage --help"])
def test_help_loads_no_database(command: str) -> None:
    code = f"import sys\nfrom zturbo.cli import main\nmain({command.split()!r})\nprint(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not [name for name in ("sqlite3", "asyncio", "fastapi", "torch", "pydantic") if f"'{name}'" in loaded]


def test_a_key_with_a_name_in_another_script_hides_no_list(run: Callable[..., Told], data: Path) -> None:
    run("keys", "create", "ключ")
    code = "from zturbo.cli import main\nraise SystemExit(main(['keys', 'list']))"
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    assert b"\\u043a\\u043b\\u044e\\u0447" in told.stdout


def test_a_damaged_database_gives_no_backup(run: Callable[..., Told], data: Path, tmp_path: Path) -> None:
    fill(data)
    with (data / "records.sqlite").open("r+b") as file:
        file.seek(6 * 4096)
        file.write(b"\xa5" * 4096)
    told = run("backup", str(tmp_path / "copy"))
    assert told.code == 1
    assert "records.sqlite is damaged" in told.err
    assert not (tmp_path / "copy").exists()


def test_a_backup_told_to_stop_leaves_nothing(data: Path, tmp_path: Path) -> None:
    """By a time-out of cron's or systemd's, or by a terminal that closes."""
    fill(data)
    program = (
        "import os, signal, sys\nfrom zturbo.cli import main\nfrom zturbo.storage import embedded\n"
        "def copy(*_):\n    os.kill(os.getpid(), signal.SIGTERM)\n    return 0\n"
        "embedded.copy_pictures = copy\nsys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", program, "backup", str(tmp_path / "copy")], capture_output=True)
    assert (done.returncode, done.stdout) == (130, b"")
    assert b"stopped" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


# Odd input


def test_a_whole_key_in_the_place_of_its_prefix_is_not_shown(run: Callable[..., Told]) -> None:
    whole = run("keys", "create", "phone").out.strip()
    for command in (("keys", "show"), ("keys", "revoke"), ("keys", "update"), ("logs", "--key"), ("usage", "--key")):
        told = run(*command, whole)
        assert (told.code, told.out) == (2, "")
        assert "the first 8 characters" in told.err
        assert "got a whole key" in told.err
        assert whole not in told.err
    assert run("logs", "--key", "\udcff").code == 2


def test_a_balance_has_a_ceiling(run: Callable[..., Told]) -> None:
    assert run("balance", "--set", "4503599627").code == 0
    told = run("balance", "--add", "4503599627")
    assert told.code == 2
    assert "4503599627 USD" in told.err
    assert run("balance", "--json").json()["balance"] == 4_503_599_627 * 2_000_000


def test_a_folder_that_cannot_be_looked_into_is_told(run: Callable[..., Told], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZTURBO_DATA_DIR", "/tmp/" + "a" * 300)
    told = run("balance")
    assert told.code == 1
    assert "File name too long" in told.err
    assert "hint: choose a shorter name" in told.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_what_cannot_be_written_is_told(run: Callable[..., Told]) -> None:
    def full(*arguments: str) -> tuple[int, str]:
        with Path("/dev/full").open("wb") as output:
            command = [sys.executable, "-m", "zturbo", *arguments]
            done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True)
        return done.returncode, done.stderr

    code, told = full("keys", "create", "phone")
    (key,) = run("keys", "list", "--json").json()["data"]
    assert code == 1
    assert f"the key {key['prefix']} was made, but could not be shown: No space left on device" in told
    assert "Exception ignored" not in told
    code, told = full("balance")
    assert (code, told) == (1, "zturbo: cannot write the output: No space left on device\n")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m zturbo keys create phone --json | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Exception" not in done.stderr
    assert "internal error" not in done.stderr
