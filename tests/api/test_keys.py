"""Keys over HTTP: made, listed, changed, deleted; who may, what is refused, and the published API's form."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.api.conftest import KEY, Instant, Server, open_storage, serving
from tests.api.test_images import PATH, body
from zturbo.keys import GIVEN_NAME, SCOPES
from zturbo.quantities import iso, read_moment
from zturbo.storage.embedded import Storage, now_ms
from zturbo.storage.memory import MemoryFiles
from zturbo.storage.records import DAY_MS, Keys
from zturbo.storage.sqlite import open_sqlite

pytestmark = pytest.mark.anyio
PREFIX = KEY[:8]
PRICE_USD = 0.00525
MEMBERS = {
    "name", "prefix", "disabled", "scopes", "limit", "expires_at", "created_at", "updated_at", "monthly_usage",
}  # fmt: skip
LATER = iso(now_ms() + DAY_MS)


@pytest.fixture(params=["sqlite", "memory"])
async def server(request: pytest.FixtureRequest, engine: Instant, tmp_path: Path) -> AsyncIterator[Server]:
    async def on_disk() -> Storage:
        return Storage(await open_sqlite(tmp_path / "records.sqlite", serve=True), MemoryFiles())

    async with serving(engine, on_disk if request.param == "sqlite" else open_storage) as server:
        yield server


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


async def make(server: Server, **members: Any) -> dict[str, Any]:
    answer = await server.client.post("/v1/keys", json=members)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()["data"]
    return made


async def patch(server: Server, prefix: str, **members: Any) -> httpx2.Response:
    return await server.client.patch(f"/v1/keys/{prefix}", json=members)


async def draw(server: Server, key: str, **changes: Any) -> httpx2.Response:
    return await server.client.post(PATH, json=body(**changes), headers=bearer(key))


def issues(answer: httpx2.Response) -> dict[str, str]:
    """Path -> message of every problem."""
    assert answer.status_code == 400, answer.text
    return {".".join(issue["path"]): issue["message"] for issue in answer.json()["error"]["data"]["issues"]}


async def test_the_published_example(server: Server) -> None:
    """Its members and types; the scopes are those that this server has."""
    sent = {"name": "20260202-key", "limit": {"retention": "week", "threshold": 25}, "scopes": ["model:image"]}
    answer = await server.client.post("/v1/keys", json=sent)
    made = answer.json()["data"]
    assert answer.headers["cache-control"] == "no-store"
    assert made.keys() == MEMBERS | {"key"}
    assert made["prefix"] == made["key"][:8]
    assert len(made["key"]) == 32
    assert (made["name"], made["scopes"], made["disabled"]) == ("20260202-key", ["model:image"], False)
    assert made["limit"].items() >= sent["limit"].items()  # type: ignore[attr-defined]
    assert made["created_at"] == made["updated_at"]
    assert made["created_at"].endswith("Z")
    assert (made["monthly_usage"], made["expires_at"]) == (0, None)
    assert (await draw(server, made["key"])).status_code == 200


async def test_the_whole_key_is_shown_once(server: Server) -> None:
    made = await make(server, name="mine")
    text = made.pop("key")
    listed = await server.client.get("/v1/keys")
    assert [one["name"] for one in listed.json()["data"]] == [GIVEN_NAME, "mine"]
    assert listed.json()["data"][1] == made
    for answer in (listed, await server.client.get("/v1/key", headers=bearer(text)), await patch(server, text[:8])):
        assert text[8:] not in answer.text
        assert "digest" not in answer.text


async def test_a_whole_key_in_a_path_is_in_no_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "zturbo.http")
    whole = "0123456789abcdef" * 2
    for path in (whole, f"x_{whole}", f"{whole}_"):
        assert (await server.client.delete(f"/v1/keys/{path}")).status_code == 404
    as_id = {"authorization": f"Bearer {whole}", "x-client-request-id": whole}
    assert "x-client-request-id" not in (await server.client.get("/healthz", headers=as_id)).headers
    await server.client.get("/nowhere", headers=as_id)
    paths = [record.__dict__.get("path") for record in caplog.records]
    assert "/v1/keys/01234567..." in paths
    assert whole not in str([record.__dict__ for record in caplog.records])


@pytest.mark.parametrize("content", [b"", b"{}", json.dumps({"name": None, "scopes": None, "limit": None}).encode()])
async def test_everything_may_be_left_out(server: Server, content: bytes) -> None:
    headers = {"content-type": "application/json"} if content else {}
    made = (await server.client.post("/v1/keys", content=content, headers=headers)).json()["data"]
    assert made["name"] == "unnamed"
    assert made["scopes"] == ["model:image", "safety:off"]
    assert made["limit"] is made["expires_at"] is None


async def test_every_problem_is_told_at_once(server: Server) -> None:
    wrong = {
        "name": "a\nb", "scopes": ["model:imag", 7, {}], "disabled": "no", "expires_at": "yesterday",
        "limit": {"retention": "year", "threshold": -1},
    }  # fmt: skip
    for answer in (await server.client.post("/v1/keys", json=wrong), await patch(server, PREFIX, **wrong)):
        told = issues(answer)
        assert set(told) == {"name", "scopes", "disabled", "expires_at", "limit.retention", "limit.threshold"}
        assert "no_reset, day, week, month" in told["limit.retention"]
        assert "nearest valid value: model:image" in answer.text
        assert "-1" in told["limit.threshold"]
    assert len((await server.client.get("/v1/keys")).json()["data"]) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""}, {"name": 7}, {"name": "x" * 101}, {"name": "a\u202eb"}, {"name": GIVEN_NAME},
        {"scopes": []}, {"scopes": "model:image"}, {"scopes": {}}, {"scopes": [[]]}, {"scopes": ["model:chat"]},
        {"limit": 25}, {"limit": {}}, {"limit": {"threshold": 1}}, {"limit": {"retention": "day", "threshold": True}},
        {"limit": {"retention": "day", "threshold": "1e3"}}, {"limit": {"retention": "day", "threshold": 1e300}},
        {"limit": {"retention": ["day"], "threshold": 1}}, {"limit": {"retention": "day", "threshold": "٣"}},
        {"expires_at": 1}, {"expires_at": "2001-01-01T00:00:00Z"}, {"expires_at": "10000-01-01T00:00:00Z"},
        {"disabled": 0}, {"enabled": "yes"},
    ],
    ids=ascii,
)  # fmt: skip
async def test_wrong_members(server: Server, wrong: dict[str, Any]) -> None:
    told = issues(await server.client.post("/v1/keys", json=wrong))
    assert {path.partition(".")[0] for path in told} == set(wrong)


@pytest.mark.parametrize("raw", [b'{"name": "\\ud800"}', b'{"limit": {"retention": "day", "threshold": 1e999}}'])
async def test_what_only_json_can_spell(server: Server, raw: bytes) -> None:
    answer = await server.client.post("/v1/keys", content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("sent", "told"), [(0.1, 0.1), ("0.1", 0.1), (25, 25), (0.00525, 0.00525), (1e-6, 1e-6), ("4503599627", 4503599627)]
)
async def test_money_in_and_out(server: Server, sent: Any, told: float) -> None:
    made = await make(server, limit={"retention": "month", "threshold": sent})
    assert made["limit"]["threshold"] == told
    again = await patch(server, made["prefix"], limit=made["limit"])  # what was read can be sent back
    assert again.json()["data"]["limit"] == made["limit"]


async def test_a_limit_holds_to_the_credit(server: Server) -> None:
    """Two pictures' worth: two are drawn; a credit less, and it is one."""
    exact = await make(server, limit={"retention": "day", "threshold": "0.0105"})
    short = await make(server, limit={"retention": "day", "threshold": "0.0104995"})
    assert [(await draw(server, exact["key"])).status_code for _ in range(3)] == [200, 200, 403]
    assert [(await draw(server, short["key"])).status_code for _ in range(2)] == [200, 403]
    own = (await server.client.get("/v1/key", headers=bearer(exact["key"]))).json()["data"]
    assert (own["limit"]["spent"], own["limit"]["held"], own["monthly_usage"]) == (0.0105, 0, 0.0105)
    raised = await patch(server, short["prefix"], limit={"retention": "day", "threshold": "0.0105"})
    assert raised.json()["data"]["limit"]["spent"] == PRICE_USD, "a new limit counts what was spent before"
    assert (await draw(server, short["key"])).status_code == 200


async def test_what_runs_is_held(server: Server) -> None:
    made = await make(server, limit={"retention": "no_reset", "threshold": 1})
    server.engine.gate.clear()
    drawing = asyncio.ensure_future(draw(server, made["key"]))
    async with asyncio.timeout(10):
        while True:
            own = (await server.client.get("/v1/key", headers=bearer(made["key"]))).json()["data"]
            if own["limit"]["held"]:
                break
            await asyncio.sleep(0.001)
    assert (own["limit"]["held"], own["limit"]["spent"]) == (PRICE_USD, 0)
    assert own["limit"]["window_start"] is None
    server.engine.gate.set()
    await drawing


async def test_a_window_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await make(server, limit={"retention": "day", "threshold": PRICE_USD})
    assert [(await draw(server, made["key"])).status_code for _ in range(2)] == [200, 403]
    tomorrow = now_ms() + DAY_MS
    for module in ("keys", "images", "identity"):
        monkeypatch.setattr(f"zturbo.api.{module}.now_ms", lambda: tomorrow)
    monkeypatch.setattr("zturbo.service.now_ms", lambda: tomorrow)
    own = (await server.client.get("/v1/key", headers=bearer(made["key"]))).json()["data"]["limit"]
    assert own["spent"] == 0
    assert own["window_start"] == iso(tomorrow - tomorrow % DAY_MS)
    assert (await draw(server, made["key"])).status_code == 200


async def test_a_change_counts_from_the_next_request_on(server: Server) -> None:
    made = await make(server, name="a", expires_at=LATER, limit={"retention": "day", "threshold": 0})
    prefix, key = made["prefix"], made["key"]
    assert (await draw(server, key)).status_code == 403
    changed = (await patch(server, prefix, limit=None, name="b", scopes=["model:image"])).json()["data"]
    assert (changed["limit"], changed["name"], changed["scopes"]) == (None, "b", ["model:image"])
    assert changed["expires_at"] == LATER
    assert (await draw(server, key)).status_code == 200
    for off, on in (({"disabled": True}, {"disabled": False}), ({"enabled": False}, {"enabled": True})):
        assert (await patch(server, prefix, **off)).json()["data"]["disabled"] is True
        refused = await draw(server, key)
        assert refused.status_code == 401
        assert "disabled" in refused.json()["message"]
        assert (await patch(server, prefix, **on)).json()["data"]["disabled"] is False
        assert (await draw(server, key)).status_code == 200
    assert (await patch(server, prefix, expires_at=None)).json()["data"]["expires_at"] is None


async def test_disabled_wins_over_enabled(server: Server) -> None:
    made = await make(server, disabled=True, enabled=True)
    assert made["disabled"] is True


async def test_null_leaves_name_scopes_and_state_alone(server: Server) -> None:
    made = await make(server, name="a", scopes=["model:image"], disabled=True)
    same = (await patch(server, made["prefix"], name=None, scopes=None, disabled=None, enabled=None, hat="red")).json()
    assert same["data"] == {name: value for name, value in made.items() if name != "key"}


async def test_an_expired_key_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await make(server, expires_at=LATER)
    assert (await draw(server, made["key"])).status_code == 200
    monkeypatch.setattr("zturbo.api.identity.now_ms", lambda: read_moment(LATER, ()))
    refused = await draw(server, made["key"])
    assert refused.status_code == 401
    assert "expired" in refused.json()["message"]


async def test_when_a_key_was_changed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await make(server)
    monkeypatch.setattr("zturbo.api.keys.now_ms", lambda: now_ms() + DAY_MS)
    assert (await patch(server, made["prefix"])).json()["data"]["updated_at"] == made["updated_at"], "nothing changed"
    changed = (await patch(server, made["prefix"], name="b")).json()["data"]
    assert changed["created_at"] == made["created_at"] < changed["updated_at"]


async def test_a_deleted_key_is_gone_and_its_requests_stay(server: Server) -> None:
    made = await make(server)
    await draw(server, made["key"])
    answer = await server.client.delete(f"/v1/keys/{made['prefix']}")
    assert answer.json() == {"data": {"prefix": made["prefix"], "deleted": True}}
    assert (await draw(server, made["key"])).status_code == 401
    assert (await server.client.get("/v2/logs", params={"key_prefix": made["prefix"]})).json()["pagination"][
        "total"
    ] == 1


@pytest.mark.parametrize("prefix", ["ffffffff", "x", "FFFFFFFF", "%00", "a" * 5000, "..", "'; DROP TABLE keys"])
async def test_a_prefix_of_no_key(server: Server, prefix: str) -> None:
    for answer in (await server.client.delete(f"/v1/keys/{prefix}"), await patch(server, prefix, name="b")):
        assert answer.status_code in (404, 405)
    assert len((await server.client.get("/v1/keys")).json()["data"]) == 1


# Who may


MANAGED = [
    ("POST", "/v1/keys", {}), ("GET", "/v1/keys", None), ("PATCH", f"/v1/keys/{PREFIX}", {"name": "stolen"}),
    ("DELETE", f"/v1/keys/{PREFIX}", None), ("PATCH", "/v1/keys/ffffffff", {"disabled": True}),
    ("DELETE", "/v1/keys/ffffffff", None),
]  # fmt: skip


async def call(server: Server, method: str, path: str, sent: Any, key: str) -> httpx2.Response:
    return await server.client.request(method, path, json=sent, headers=bearer(key))


@pytest.mark.parametrize(("method", "path", "sent"), MANAGED)
async def test_only_management_manages(server: Server, method: str, path: str, sent: Any) -> None:
    """Refused alike for the own key, another's, and one that does not exist; nothing is done."""
    before = (await server.client.get("/v1/keys")).json()
    for scopes in (["model:image"], ["safety:off"], ["model:image", "safety:off"]):
        made = await make(server, scopes=scopes)
        for target in (path, path.replace(PREFIX, made["prefix"])):
            refused = await call(server, method, target, sent, made["key"])
            assert refused.status_code == 403
            assert "management" in refused.json()["message"]
        await server.client.delete(f"/v1/keys/{made['prefix']}")
    assert (await server.client.get("/v1/keys")).json() == before


@pytest.mark.parametrize(("method", "path", "sent"), [*MANAGED, ("GET", "/v1/key", None)])
async def test_no_valid_key_no_answer(server: Server, method: str, path: str, sent: Any) -> None:
    disabled, expired = await make(server, scopes=SCOPES, disabled=True), await make(server, scopes=SCOPES)
    await server.service.records.keys.update(expired["prefix"], lambda key: replace(key, expires_ms=now_ms()))
    for key in ("", KEY[:-1], "f" * 32, PREFIX, PREFIX + "0" * 24, disabled["key"], expired["key"]):
        refused = await call(server, method, path, sent, key)
        assert refused.status_code == 401, key
        assert refused.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("scope", SCOPES)
async def test_every_key_may_know_itself(server: Server, scope: str) -> None:
    made = await make(server, name=scope, scopes=[scope])
    own = (await server.client.get("/v1/key", headers=bearer(made["key"]))).json()["data"]
    assert own.keys() == MEMBERS
    assert (own["prefix"], own["name"], own["scopes"]) == (made["prefix"], scope, [scope])


async def test_a_key_that_only_manages_does_not_draw(server: Server) -> None:
    made = await make(server, scopes=["management"])
    assert (await draw(server, made["key"])).status_code == 403
    assert (await server.client.get("/v1/keys", headers=bearer(made["key"]))).status_code == 200


# The last key that manages


LOCKING_OUT = [
    {"disabled": True}, {"enabled": False}, {"scopes": ["model:image"]}, {"expires_at": "2126-01-01T00:00:00Z"},
]  # fmt: skip


@pytest.mark.parametrize("change", LOCKING_OUT, ids=str)
async def test_the_last_manager_stays(server: Server, change: dict[str, Any]) -> None:
    await make(server, scopes=["management"], disabled=True)  # it does not count
    for answer in (await patch(server, PREFIX, **change), await server.client.delete(f"/v1/keys/{PREFIX}")):
        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "last_management_key"
        assert "zturbo keys" in answer.json()["message"]
    assert (await patch(server, PREFIX, limit={"retention": "day", "threshold": 1})).status_code == 200
    assert (await patch(server, PREFIX, expires_at=None)).status_code == 200
    await make(server, scopes=["management"])
    assert (await patch(server, PREFIX, **change)).status_code == 200


async def test_a_manager_may_delete_itself_where_another_is_left(server: Server) -> None:
    other = await make(server, scopes=["management"])
    assert (await server.client.delete(f"/v1/keys/{PREFIX}")).status_code == 200
    assert (await server.client.get("/v1/keys")).status_code == 401
    assert (await server.client.get("/v1/keys", headers=bearer(other["key"]))).status_code == 200


async def test_two_managers_cannot_delete_each_other(server: Server) -> None:
    other = await make(server, scopes=["management"])
    answers = await asyncio.gather(
        call(server, "DELETE", f"/v1/keys/{other['prefix']}", None, KEY),
        call(server, "DELETE", f"/v1/keys/{PREFIX}", None, other["key"]),
    )
    assert sorted(answer.status_code for answer in answers) in ([200, 409], [200, 401])  # 401: it was gone already
    (left,) = await server.service.records.keys.list()
    assert "management" in left.scopes


async def test_the_name_of_the_given_key_is_its_own(engine: Instant) -> None:
    """A key of that name would be replaced at the next start, and the given one made a second time."""
    records: list[Keys] = []
    async with serving(engine) as server:
        records.append(server.service.records.keys)
        assert set(issues(await patch(server, PREFIX, name="mine"))) == {"name"}
        made = await make(server, name="a")
        assert set(issues(await patch(server, made["prefix"], name=GIVEN_NAME))) == {"name"}
        assert (await patch(server, PREFIX, name=GIVEN_NAME)).status_code == 200
    assert [key.name for key in await records[0].list()] == [GIVEN_NAME, "a"]
