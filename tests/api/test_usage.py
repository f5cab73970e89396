"""Balance, usage and log over HTTP: what they say, whose they are, and what is refused."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.api.conftest import KEY, Instant, Server, open_storage, serving
from tests.api.test_images import PATH, body
from tests.api.test_keys import bearer, issues, make
from tests.contract.samples import at, done, failed, request
from zturbo.api.openapi import document
from zturbo.api.operations import OPERATIONS
from zturbo.api.sessions import HEADER, KEY_PREFIX
from zturbo.quantities import iso
from zturbo.storage.embedded import Storage, now_ms
from zturbo.storage.memory import MemoryFiles
from zturbo.storage.records import MAX_CREDITS
from zturbo.storage.sqlite import open_sqlite

pytestmark = pytest.mark.anyio
PREFIX = KEY[:8]
MODEL = "alibaba/z-image-turbo"
PRICE = 10_500
REPORTS = ["/v2/usage", "/v2/usage/detail", "/v2/logs"]
PRIVATE = ["/v1/key", "/v1/billing/balance", "/v2/billing", *REPORTS]


@pytest.fixture(params=["sqlite", "memory"])
async def server(request: pytest.FixtureRequest, engine: Instant, tmp_path: Path) -> AsyncIterator[Server]:
    async def on_disk() -> Storage:
        return Storage(await open_sqlite(tmp_path / "records.sqlite", serve=True), MemoryFiles())

    async with serving(engine, on_disk if request.param == "sqlite" else open_storage) as server:
        yield server


async def get(server: Server, path: str, by: str = KEY, /, **parameters: Any) -> httpx2.Response:
    return await server.client.get(path, params=parameters, headers=bearer(by))


async def told(server: Server, path: str, by: str = KEY, /, **parameters: Any) -> dict[str, Any]:
    answer = await get(server, path, by, **parameters)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = answer.json()
    return found


async def fill(server: Server) -> None:
    """Three days of two keys: four pictures delivered in three requests, a failure, a rejection, and one that runs."""
    ledger = server.service.records.ledger
    for created, key, images in [
        ("03-10T23:59", "aaaaaaaa", 1),
        ("03-11", "bbbbbbbb", 2),
        ("03-11T08:00", "aaaaaaaa", 1),
    ]:
        row = request(created_ms=at(f"2026-{created}"), key=key, model=MODEL, images=images)
        await ledger.start(row, images * PRICE, None)
        await ledger.finish(
            row.request_id, done(images * PRICE, ended_ms=row.created_ms + 1500, seconds={"total": 1.5})
        )
    bad = request(created_ms=at("2026-03-11T09:00"), key="aaaaaaaa", model=MODEL)
    await ledger.start(bad, PRICE, None)
    await ledger.finish(bad.request_id, failed())
    await ledger.reject(request(created_ms=at("2026-03-12"), key="aaaaaaaa", model=None, images=None), failed())
    await ledger.start(request(created_ms=at("2026-03-12T01:00"), key="bbbbbbbb", model=MODEL), PRICE, None)


DAYS = {"start": "2026-03-10", "end": "2026-03-13"}


# Balance


async def test_an_unlimited_balance(server: Server) -> None:
    """A number, for clients that compute with it, and said in words."""
    found = await told(server, "/v1/billing/balance")
    assert found.keys() >= {
        "balance", "lowBalance", "lowBalanceThreshold", "lastUpdated", "autoDebitStatus", "status", "statusExplanation",
    }  # fmt: skip
    assert (found["balance"], found["unlimited"], found["lowBalance"]) == (MAX_CREDITS, True, False)
    assert (found["status"], found["autoDebitStatus"]) == ("current", "disabled")
    assert "unlimited" in found["statusExplanation"]
    assert (await told(server, "/v2/billing"))["currency"] == "USD"


async def test_a_balance_goes_down_with_each_picture(server: Server) -> None:
    await server.service.records.ledger.set_account(3 * PRICE, 2 * PRICE, now_ms())
    for balance, low in ((3 * PRICE, False), (2 * PRICE, False), (PRICE, True), (0, True)):
        found = await told(server, "/v1/billing/balance")
        assert (found["balance"], found["unlimited"], found["lowBalance"]) == (balance, False, low)
        assert (await told(server, "/v2/billing"))["current_balance"] == balance / 2_000_000
        drawn = await server.client.post(PATH, json=body())
        assert drawn.status_code == (200 if balance else 403)
    assert "used up" in found["statusExplanation"]


async def test_who_does_not_manage_sees_no_more_than_its_own_limit_leaves(server: Server) -> None:
    small = await make(server, limit={"retention": "day", "threshold": "0.0105"})
    free = await make(server)
    assert (await told(server, "/v1/billing/balance", small["key"]))["balance"] == 2 * PRICE
    assert (await told(server, "/v1/billing/balance", free["key"]))["unlimited"] is True
    await server.client.post(PATH, json=body(), headers=bearer(small["key"]))
    assert (await told(server, "/v1/billing/balance", small["key"]))["balance"] == PRICE
    assert (await told(server, "/v2/billing", small["key"]))["current_balance"] == PRICE / 2_000_000
    await server.service.records.ledger.set_account(7, 0, now_ms())
    for key in (small["key"], free["key"], KEY):
        assert (await told(server, "/v1/billing/balance", key))["balance"] == 7


# Usage


async def test_usage_of_a_period(server: Server) -> None:
    await fill(server)
    found = await told(server, "/v2/usage", **DAYS)
    assert found == {
        "api_key_prefix": None, "start": "2026-03-10T00:00:00.000Z", "end": "2026-03-13T00:00:00.000Z",
        "spend": 4 * PRICE / 2_000_000, "credits": 4 * PRICE, "currency": "USD", "requests": 3, "images": 4,
    }  # fmt: skip
    one = await told(server, "/v2/usage/detail", **DAYS, key_prefix="bbbbbbbb")
    assert (one["api_key_prefix"], one["credits"], one["requests"]) == ("bbbbbbbb", 2 * PRICE, 1)
    assert one["models"] == [{"model": MODEL, "spend": 2 * PRICE / 2_000_000, "requests": 1}]
    assert "groups" not in one
    assert (await told(server, "/v2/usage", **DAYS, key="bbbbbbbb"))["credits"] == 2 * PRICE


@pytest.mark.parametrize("path", ["/v2/usage", "/v2/usage/detail"])
@pytest.mark.parametrize(
    ("group_by", "expected"),
    [
        ("day", [({"day": "2026-03-10"}, 1, 1, 0), ({"day": "2026-03-11"}, 3, 2, 1), ({"day": "2026-03-12"}, 2, 0, 1)]),
        ("model", [({"model": None}, 1, 0, 1), ({"model": MODEL}, 5, 3, 1)]),
        (
            "day,model",
            [
                ({"day": "2026-03-10", "model": MODEL}, 1, 1, 0),
                ({"day": "2026-03-11", "model": MODEL}, 3, 2, 1),
                ({"day": "2026-03-12", "model": None}, 1, 0, 1),
                ({"day": "2026-03-12", "model": MODEL}, 1, 0, 0),
            ],
        ),
    ],
)
async def test_groups(server: Server, path: str, group_by: str, expected: list[Any]) -> None:
    await fill(server)
    found = await told(server, path, **DAYS, group_by=group_by, tz="UTC")
    names = group_by.split(",")
    groups = [({name: one[name] for name in names}, one["requests"]) for one in found["groups"]]
    counted = [(named, one["total"], one["succeeded"], one["failed"]) for named, one in groups]
    assert counted == expected
    assert sum(one["credits"] for one in found["groups"]) == found["credits"] == 4 * PRICE
    assert sum(one["images"] for one in found["groups"]) == found["images"] == 4
    assert sum(one["requests"]["charged"] for one in found["groups"]) == found["requests"] == 3
    assert all(one.keys() - {"day", "model"} == found["groups"][0].keys() - {"day", "model"} for one in found["groups"])


async def test_a_period_ends_now(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(server)
    monkeypatch.setattr("zturbo.api.usage.now_ms", lambda: at("2026-03-11T08:00:01"))
    found = await told(server, "/v2/usage", period="8h")
    assert (found["start"], found["end"]) == ("2026-03-11T00:00:01.000Z", "2026-03-11T08:00:01.000Z")
    assert found["images"] == 1
    assert (await told(server, "/v2/usage", period="9h"))["images"] == 4
    assert (await told(server, "/v2/usage"))["start"] == "2026-02-09T08:00:01.000Z"
    assert (await told(server, "/v2/usage", start="2026-03-11T03:00:00+03:00"))["images"] == 3
    assert (await told(server, "/v2/usage", end="2026-03-11"))["images"] == 1


async def test_what_was_drawn_is_in_it(server: Server) -> None:
    await server.client.post(PATH, json=body(num_images=2), headers={"x-client-request-id": "mine-1"})
    assert (await told(server, "/v2/usage", period="1h"))["credits"] == 2 * PRICE
    (row,) = (await told(server, "/v2/logs", period="1h"))["data"]
    assert (row["status"], row["model"], row["cost"]) == ("succeeded", MODEL, {"usd": 0.0105, "credits": 2 * PRICE})
    assert (row["key"], row["client_request_id"], row["origin"]) == (PREFIX, "mine-1", "api")
    assert (row["width"], row["height"], row["images"], row["error_code"]) == (512, 512, 2, None)
    assert row["seconds"]["total"] >= 0


# Log


async def test_the_log_in_pages(server: Server) -> None:
    await fill(server)
    found = await told(server, "/v2/logs")
    assert [row["created"] for row in found["data"]] == [
        iso(at(f"2026-03-{moment}")) for moment in ("12T01:00", "12", "11T09:00", "11T08:00", "11", "10T23:59")
    ]
    assert [row["status"] for row in found["data"]] == ["running", "failed", "failed", *["succeeded"] * 3]
    assert found["data"][0].keys() >= {
        "created", "status", "origin", "model", "cost", "tokens", "request_id", "inference_id", "client_request_id",
    }  # fmt: skip
    assert found["pagination"] == {"limit": 50, "offset": 0, "total": 6, "has_more": False}
    page = await told(server, "/v2/logs", limit=2, offset=2)
    assert page["data"] == found["data"][2:4]
    assert page["pagination"] == {"limit": 2, "offset": 2, "total": 6, "has_more": True}
    assert (await told(server, "/v2/logs", offset=10**15))["data"] == []


async def test_the_log_narrowed(server: Server) -> None:
    await fill(server)

    async def total(**parameters: Any) -> int:
        count: int = (await told(server, "/v2/logs", **parameters))["pagination"]["total"]
        return count

    assert await total(key_prefix="aaaaaaaa") == 4
    assert await total(key_prefix="cccccccc") == 0
    assert await total(start="2026-03-11", end="2026-03-12") == 3
    assert await total(status="succeeded") == 3
    assert await total(status=["failed", "running"]) == 3
    assert await total(model=MODEL) == await total(model=["gpt-5", f"aimlapi/{MODEL}"]) == 5
    assert await total(model="gpt-5") == 0
    assert await total(model=MODEL, status="failed", key_prefix="aaaaaaaa") == 1


# What is refused


async def test_every_problem_of_a_query_at_once(server: Server) -> None:
    answer = await get(server, "/v2/logs", period="week", start="monday", limit=101, offset=-1, status="done", key="x")
    assert set(issues(answer)) == {"period", "start", "limit", "offset", "status", "key_prefix"}
    assert answer.json()["message"].startswith("Query validation error\n")
    assert "got 'week'" in answer.json()["message"]


@pytest.mark.parametrize(
    ("path", "query", "where"),
    [
        ("/v2/usage", "period=7d&start=2026-01-01&end=2026-01-02", "period"),
        ("/v2/usage", "start=2026-01-02&end=2026-01-01", "end"),
        ("/v2/usage", "period=7d&period=8d", "period"),
        ("/v2/usage", "period=", "period"),
        ("/v2/usage", "period=0d", "period"),
        ("/v2/usage", "period=-1d", "period"),
        ("/v2/usage", "period=9999999d", "period"),
        ("/v2/usage", "start=1", "start"),
        ("/v2/usage", "start=2026-01-01T00:00:00+03:00", "start"),  # its "+" is a blank here
        ("/v2/usage", "group_by=hour", "group_by"),
        ("/v2/usage/detail", "group_by=day&group_by=model", "group_by"),
        ("/v2/usage/detail", "tz=Europe/Berlin", "tz"),
        ("/v2/logs", "limit=0", "limit"),
        ("/v2/logs", "limit=1.0", "limit"),
        ("/v2/logs", "limit=%D9%A1", "limit"),
        ("/v2/logs", "offset=99999999999999999999", "offset"),
        ("/v2/logs", "status=succeeded,failed", "status"),
        ("/v2/logs", "key_prefix=AAAAAAAA", "key_prefix"),
        ("/v2/logs", "key_prefix=%00", "key_prefix"),
    ],
)
async def test_wrong_queries(server: Server, path: str, query: str, where: str) -> None:
    assert set(issues(await server.client.get(f"{path}?{query}"))) == {where}


async def test_a_whole_key_in_the_address_is_not_said_again(server: Server) -> None:
    answer = await get(server, "/v2/usage", key_prefix=KEY)
    assert set(issues(answer)) == {"key_prefix"}
    assert KEY not in answer.text


# Whose


async def test_a_key_sees_its_own_and_nothing_else(server: Server) -> None:
    """Two keys that draw, every route: whatever one asks, nothing of the other's is in the answer."""
    one, other = await make(server, name="one"), await make(server, name="the other")
    await server.client.post(PATH, json=body(), headers=bearer(one["key"]))
    drawn = await server.client.post(PATH, json=body(num_images=3), headers=bearer(other["key"]))
    secrets = (other["prefix"], other["key"], "the other", drawn.headers["x-request-id"])
    for path in PRIVATE:
        for parameters in ({}, {"period": "1h"}, {"key_prefix": one["prefix"]}, {"key": one["prefix"]}):
            answer = await get(server, path, one["key"], **parameters)
            assert answer.status_code == 200
            assert not [secret for secret in secrets if secret in answer.text]
    for path in ("/v2/usage", "/v2/usage/detail"):
        assert (await told(server, path, one["key"], group_by="day"))["images"] == 1
    assert (await told(server, "/v2/logs", one["key"]))["pagination"]["total"] == 1


@pytest.mark.parametrize("path", REPORTS)
async def test_anothers_prefix_is_refused_whether_it_exists_or_not(server: Server, path: str) -> None:
    one, other = await make(server), await make(server)
    answers = []
    for prefix in (other["prefix"], PREFIX, "ffffffff", "local"):
        for name in ("key_prefix", "key"):
            answers.append(await get(server, path, one["key"], **{name: prefix}))
    assert {answer.status_code for answer in answers} == {403}
    assert len({answer.json()["message"] for answer in answers}) == 1


async def test_a_manager_sees_every_key(server: Server) -> None:
    made = await make(server)
    manager = await make(server, scopes=["management"])
    await server.client.post(PATH, json=body(), headers=bearer(made["key"]))
    await server.client.post(PATH, json=body())
    for key in (KEY, manager["key"]):
        assert (await told(server, "/v2/usage", key))["requests"] == 2
        assert {row["key"] for row in (await told(server, "/v2/logs", key))["data"]} == {PREFIX, made["prefix"]}
        assert (await told(server, "/v2/usage", key, key_prefix=made["prefix"]))["requests"] == 1


async def test_the_playground_sees_what_it_drew_and_nothing_else(server: Server) -> None:
    page = {"host": "localhost", "origin": "http://localhost", "sec-fetch-site": "same-origin", HEADER: "1"}
    token = (await server.client.post("/web/session", headers=page)).json()["token"]
    await server.client.post(PATH, json=body(), headers=bearer(token))
    await server.client.post(PATH, json=body(num_images=3))
    assert (await told(server, "/v2/usage", token, period="7d", group_by="day"))["images"] == 1
    (row,) = (await told(server, "/v2/logs", token))["data"]
    assert (row["origin"], row["key"]) == ("playground", KEY_PREFIX)
    assert (await told(server, "/v1/key", token))["data"]["prefix"] == KEY_PREFIX
    assert (await told(server, "/v2/usage", key_prefix=KEY_PREFIX))["images"] == 1
    assert (await get(server, "/v2/usage", token, key_prefix=PREFIX)).status_code == 403
    assert (await get(server, "/v1/keys", token)).status_code == 403


@pytest.mark.parametrize("path", PRIVATE)
async def test_no_valid_key_no_answer(server: Server, path: str) -> None:
    disabled = await make(server, disabled=True)
    for headers in ({"authorization": ""}, bearer("f" * 32), bearer(PREFIX), bearer(disabled["key"])):
        assert (await server.client.get(path, headers=headers)).status_code == 401


# The document


def test_every_route_is_in_the_document() -> None:
    paths = document("", (MODEL,), OPERATIONS)["paths"]
    assert paths.keys() >= {"/v1/keys", "/v1/keys/{prefix}", *PRIVATE}


async def test_the_document_names_every_member_of_the_answers(server: Server) -> None:
    await fill(server)
    made = await make(server, limit={"retention": "day", "threshold": 1}, expires_at="2100-01-01")
    answers = {path: await told(server, path) for path in PRIVATE}
    answers["/v1/keys"] = await told(server, "/v1/keys")
    answers["/v2/usage/detail"] = await told(server, "/v2/usage/detail", **DAYS, group_by="day,model")
    for path, answer in answers.items():
        check(OPERATIONS[path]["get"]["responses"]["200"]["content"]["application/json"]["schema"], answer, path)
    created = OPERATIONS["/v1/keys"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    check(created, {"data": made}, "POST /v1/keys")


def check(schema: dict[str, Any], value: Any, where: str) -> None:
    """Members, nulls and JSON types as the schema says; nothing that it does not name."""
    if value is None:
        assert schema.get("nullable"), where
        return
    kinds = {"object": (dict,), "array": (list,), "string": (str,), "integer": (int,), "number": (int, float),
             "boolean": (bool,)}  # fmt: skip
    assert type(value) in kinds[schema["type"]], where
    assert value in schema.get("enum", [value]), where
    if isinstance(value, list):
        for item in value:
            check(schema["items"], item, f"{where}[]")
    elif isinstance(value, dict) and "properties" in schema:
        assert set(schema.get("required", ())) <= value.keys() <= schema["properties"].keys(), where
        for name, member in value.items():
            check(schema["properties"][name], member, f"{where}.{name}")


@pytest.mark.parametrize("path", REPORTS)
async def test_one_key_looks_through_the_records_once_at_a_time(
    server: Server, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a thousand of its questions keep no other key waiting."""
    other, looking, most = (await make(server, name="other"))["key"], Counter[str](), Counter[str]()

    def slow(whole: Any) -> Any:
        async def look(*given: Any, **named: Any) -> Any:
            owner = next(one for one in given if one in (None, other[:8])) or "manager"
            looking[owner] += 1
            most[owner] = max(most[owner], looking[owner])
            most["all"] = max(most["all"], looking.total())
            await asyncio.sleep(0.01)
            looking[owner] -= 1
            return await whole(*given, **named)

        return look

    history = server.service.records.history
    for name in ("logs", "usage"):
        monkeypatch.setattr(history, name, slow(getattr(history, name)))
    answers = await asyncio.gather(*(get(server, path, by) for by in (KEY, other) * 3))
    assert {answer.status_code for answer in answers} == {200}
    assert (most["manager"], most[other[:8]], most["all"]) == (1, 1, 2)
