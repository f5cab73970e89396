"""Every request is one row that ends once, and is charged if and only if its pictures were delivered."""

import asyncio
import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import KEY, Instant, Server, serving
from tests.api.test_images import PATH, body, post, until
from zturbo.api import app as api_app
from zturbo.api.app import REPLAYS
from zturbo.config import Config
from zturbo.engine.progress import Progress
from zturbo.errors import DeadlinePassed, StorageError
from zturbo.keys import create
from zturbo.service import _Events
from zturbo.storage.embedded import Storage, now_ms
from zturbo.storage.embedded import open_storage as open_embedded
from zturbo.storage.files import Content
from zturbo.storage.memory import MemoryFiles, MemoryRecords
from zturbo.storage.records import DAY_MS, Ending, Generation, KeyLimit

pytestmark = pytest.mark.anyio
PRICE = 10_500


def open_of(server: Server) -> Any:
    """The same records and files again, for another start of the server."""

    async def opened() -> Storage:
        return Storage(server.service.records, server.service.files)

    return opened


async def rows(server: Server) -> tuple[Generation, ...]:
    return (await server.service.records.history.logs(100)).rows


async def row(server: Server) -> Generation:
    """The only row, once it has ended."""
    await server.service.close()
    (found,) = await rows(server)
    return found


async def spent(server: Server) -> int:
    return (await server.service.records.ledger.spending(KEY[:8], "no_reset", now_ms())).spent


async def test_a_delivered_request_is_one_charged_row(server: Server) -> None:
    answer = await server.client.post(PATH, json=body(num_images=2), headers={"x-client-request-id": "mine-1"})
    found = await row(server)
    assert (found.status, found.credits, found.held, found.error) == ("done", 2 * PRICE, 0, None)
    assert found.request.request_id == answer.headers["x-request-id"]
    assert (found.request.key, found.request.client_request_id) == (KEY[:8], "mine-1")
    assert (found.request.width, found.request.height, found.request.steps, found.request.images) == (512, 512, 8, 2)
    assert found.request.model == "alibaba/z-image-turbo"
    assert [item["url"].partition("/files/b/")[2] for item in answer.json()["data"]] == list(found.files)
    assert {"queue", "encode", "denoise", "decode", "store", "total"} <= set(found.seconds)
    assert await spent(server) == 2 * PRICE


async def test_the_price_is_a_setting(engine: Instant) -> None:
    async with serving(engine, credits_per_megapixel=7) as server:
        answer = await post(server, image_size="landscape_4_3", num_images=3)
        assert answer.json()["meta"]["usage"]["tokens_used"] == 21
        assert answer.headers["x-aimlapi-usd-spent"] == "1.05e-05"
        assert await spent(server) == 21


@pytest.mark.parametrize("changes", [{"num_inference_steps": 9}, {"model": "dall-e-3"}], ids=str)
async def test_a_wrong_request_is_a_rejected_row_and_free(server: Server, changes: dict[str, Any]) -> None:
    assert (await post(server, **changes)).status_code == 400
    found = await row(server)
    assert (found.status, found.credits, found.error) == ("rejected", 0, "invalid_value")


async def test_a_broken_engine_is_a_failed_row_and_free(server: Server) -> None:
    assert (await post(server, prompt="break")).status_code == 500
    found = await row(server)
    assert (found.status, found.credits, found.held, found.error) == ("failed", 0, 0, "internal_error")
    assert await spent(server) == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_is_a_cancelled_row_and_free(server: Server, stream: bool) -> None:
    server.engine.gate.clear()
    asking = asyncio.ensure_future(post(server, stream=stream))
    await until(lambda: server.engine.draws == 2)
    asking.cancel()
    await asyncio.wait([asking])
    server.engine.gate.set()
    found = await row(server)
    assert (found.status, found.credits, found.held) == ("cancelled", 0, 0)
    assert server.engine.steps_drawn <= 8 + 1  # the warm-up's, and at most one more


@pytest.mark.parametrize("fails", [False, True])
async def test_a_client_that_leaves_while_it_is_charged(
    server: Server, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """What was charged is delivered and kept, though nobody reads it; what could not be charged is taken back."""
    ledger, begun, free = server.service.records.ledger, asyncio.Event(), asyncio.Event()
    finish = ledger.finish

    async def slow(request_id: str, ending: Ending) -> bool:
        if ending.status == "done":
            begun.set()
            await free.wait()
            if fails:
                raise StorageError("cannot use records.sqlite: database or disk is full", "make room on the disk")
        return await finish(request_id, ending)

    monkeypatch.setattr(ledger, "finish", slow)
    asking = asyncio.ensure_future(post(server))
    await asyncio.wait_for(begun.wait(), 10)
    asking.cancel()
    await asyncio.wait([asking])
    free.set()
    found = await row(server)
    assert (found.status, found.credits, found.held) == (("cancelled", 0, 0) if fails else ("done", PRICE, 0))
    assert await spent(server) == found.credits
    assert len(found.files) == (0 if fails else 1)
    for name in found.files:
        (await server.service.files.open(name)).stream.close()
    if fails:
        assert not server.service.files._pictures  # type: ignore[attr-defined]  # the memory's


async def test_owners_of_requests_are_their_keys(server: Server) -> None:
    """Which the queue shares its turns out by."""
    server.engine.gate.clear()
    asking = asyncio.ensure_future(post(server))
    await until(lambda: server.engine.draws == 2)
    (ticket,) = server.service.worker.queue._at_work
    server.engine.gate.set()
    assert (await asking).status_code == 200
    assert ticket.owner == KEY[:8]


async def test_timings_tell_how_long_others_were_drawn_first(server: Server) -> None:
    server.engine.gate.clear()
    first = asyncio.ensure_future(post(server, seed=1))
    await until(lambda: server.engine.draws == 2)
    second = asyncio.ensure_future(post(server, seed=2))
    await until(lambda: len(server.service.worker.queue) == 1)
    await asyncio.sleep(0.05)
    server.engine.gate.set()
    for answer in await asyncio.gather(first, second):
        assert answer.status_code == 200
    await server.service.close()
    assert max(found.seconds["queue"] for found in await rows(server)) >= 0.05


async def test_a_full_queue_is_a_rejected_row_and_free(server: Server) -> None:
    server.engine.gate.clear()
    asking = [asyncio.ensure_future(post(server))]
    await until(lambda: server.engine.draws == 2)  # it runs
    asking += [asyncio.ensure_future(post(server)) for _ in range(4)]
    await until(lambda: len(server.service.worker.queue) == 4)
    refused = await post(server)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    server.engine.gate.set()
    await asyncio.gather(*asking)
    await server.service.close()
    ends = sorted(found.status for found in await rows(server))
    assert ends == ["done"] * 5 + ["rejected"]
    assert await spent(server) == 5 * PRICE


async def test_a_spending_limit_holds_exactly(server: Server) -> None:
    """Three requests' worth, asked for by five at once: three are drawn."""
    _, text = await create(
        server.service.records.keys, "small", now_ms(), limit=KeyLimit("no_reset", 3 * PRICE + PRICE - 1)
    )
    headers = {"authorization": f"Bearer {text}"}
    answers = await asyncio.gather(*(server.client.post(PATH, json=body(seed=i), headers=headers) for i in range(1, 6)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 403, 403]
    refused = next(answer.json() for answer in answers if answer.status_code == 403)
    assert refused["error"]["data"]["kind"] == "err_insufficent_credits"
    assert str(PRICE) in refused["message"]
    assert sorted(found.status for found in await rows(server)) == ["done"] * 3 + ["rejected"] * 2


async def test_an_empty_balance_refuses_before_drawing(server: Server) -> None:
    await server.service.records.ledger.set_account(PRICE - 1, 0, now_ms())
    assert (await post(server)).status_code == 403
    assert server.engine.draws == 1  # the warm-up


async def test_a_deadline_ends_the_work(engine: Instant) -> None:
    async with serving(engine, request_timeout_s=1) as server:
        engine.gate.clear()
        answer = await post(server)
        engine.gate.set()
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_passed")
        found = await row(server)
        assert (found.status, found.error, found.credits) == ("failed", "deadline_passed", 0)
        server.service.worker.queue.drain()
        await asyncio.to_thread(server.service.worker.join, 10)
        assert engine.steps_drawn <= 8 + 1  # the warm-up's, and at most one more: nothing is drawn for nobody


async def test_what_waited_for_a_slow_reader_past_the_deadline_is_not_handed_on() -> None:
    events = _Events(0.0, progress=True)
    events.publish(Progress("encode", 0, 1, 0, 8))
    await asyncio.sleep(0.01)
    with pytest.raises(DeadlinePassed):
        await events.next()


# --- limits of a key ---------------------------------------------------------------------------------------------


async def test_requests_a_minute(engine: Instant) -> None:
    async with serving(engine, rate_limit=2) as server:
        assert [(await post(server)).status_code for _ in range(3)] == [200, 200, 429]
        refused = await post(server)
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert [found.status for found in await rows(server)] == ["done"] * 2, "who asks too often fills no disk"


async def test_requests_at_once(engine: Instant) -> None:
    async with serving(engine, concurrency_limit=1) as server:
        engine.gate.clear()
        asking = asyncio.ensure_future(post(server, stream=True))
        await until(lambda: engine.draws == 2)
        assert (await post(server)).status_code == 429
        engine.gate.set()
        assert (await asking).status_code == 200
        assert (await post(server)).status_code == 200  # the stream's end has given its place back


# --- storage that fails ------------------------------------------------------------------------------------------


@dataclass
class FullDisk(MemoryFiles):
    """A store that refuses while it is full."""

    full: bool = True
    deleted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    async def put(self, content: Content, output_format: str) -> str:
        if self.full:
            raise StorageError("cannot write: No space left on device", "make room on the disk")
        return await super().put(content, output_format)


async def test_old_pictures_make_room_though_nothing_can_be_written(
    engine: Instant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it takes away what is a day old, not what is younger."""
    records, files, swept = MemoryRecords(), MemoryFiles(), asyncio.Queue[int]()

    async def fail(_now_ms: int) -> None:
        raise StorageError("cannot use records.sqlite: database or disk is full", "make room on the disk")

    async def sweep(before_ms: int) -> int:
        swept.put_nowait(now_ms() - before_ms)
        return 0

    monkeypatch.setattr(records.idempotency, "expired", fail)
    monkeypatch.setattr(files, "sweep", sweep)

    async def opened() -> Storage:
        return Storage(records, files)

    async with serving(engine, opened, retention_days=1):
        assert 0 <= await asyncio.wait_for(swept.get(), 60) - DAY_MS < 60_000


async def test_a_folder_that_is_gone_is_told_to_the_log_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Pictures need no key, and paths are nobody's business."""

    async def gone(_name: str) -> None:
        raise StorageError("the folder /home/anna/files is gone", "mount it")

    url = (await post(server)).json()["data"][0]["url"]
    monkeypatch.setattr(server.service.files, "open", gone)
    answer = await server.client.get(url.partition("testserver")[2])
    assert answer.status_code == 503
    assert "anna" not in answer.text
    assert any("/home/anna/files is gone" in record.getMessage() for record in caplog.records)


async def test_a_full_disk_is_told_and_recovers(engine: Instant) -> None:
    files = FullDisk()

    async def opened() -> Storage:
        return Storage(MemoryRecords(), files)

    async with serving(engine, opened) as server:
        answer = await post(server, num_images=2)
        assert answer.status_code == 503
        assert "No space left" in answer.json()["message"]
        assert (await row(server)).status == "failed"
        files.full = False
        assert (await post(server)).status_code == 200
        assert await spent(server) == PRICE


async def test_what_a_full_server_refuses_sets_no_price_aside(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service.worker.queue, "limit", 0)
    held: list[str] = []
    start = type(server.service.records.ledger).start

    async def watched(ledger: Any, request: Any, credits: int, limit: KeyLimit | None) -> Any:
        held.append(request.request_id)
        return await start(ledger, request, credits, limit)

    monkeypatch.setattr(type(server.service.records.ledger), "start", watched)
    assert (await post(server)).status_code == 503
    assert (await post(server, stream=True)).status_code == 503
    await server.service.close()
    assert [(found.status, found.error, found.held) for found in await rows(server)] == [("rejected", "busy", 0)] * 2
    assert held == []


@pytest.mark.parametrize("prompt", ["a cat", "break"], ids=["delivered", "failed"])
async def test_an_idempotency_key_that_the_disk_keeps_is_freed_later(
    server: Server, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    store, broken = server.service.records.idempotency, True
    release = type(store).release

    async def failing(self: Any, owner: str, key: str) -> None:
        if broken:
            raise StorageError("the database is locked", "try again")
        await release(self, owner, key)

    monkeypatch.setattr(type(store), "release", failing)
    headers = {"idempotency-key": "once"}

    async def status() -> int:
        return (await server.client.post(PATH, json=body(prompt=prompt), headers=headers)).status_code

    if prompt == "break":
        assert [await status(), await status()] == [500, 409]
        broken = False
        await server.service.settle()
        assert await status() == 500
    else:
        assert [await status(), await status()] == [200, 200], "paid for and told"


async def test_nothing_is_delivered_that_could_not_be_charged(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row cannot be written: no picture stays, and the row ends once the disk is back."""
    ledger, broken = server.service.records.ledger, True
    finish = ledger.finish

    async def failing(request_id: str, ending: Any) -> bool:
        if broken:
            raise StorageError("the database is read-only", "mount it so that it can be written to")
        return await finish(request_id, ending)

    monkeypatch.setattr(type(ledger), "finish", lambda _self, request_id, ending: failing(request_id, ending))
    assert (await post(server)).status_code == 503
    await server.service.close()
    (found,) = await rows(server)
    assert (found.status, found.held) == ("running", PRICE)
    assert [
        name for folder in await server.service.files.folders() for name in await server.service.files.names(folder)
    ] == []
    broken = False
    await server.service.settle()
    found = await row(server)
    assert (found.status, found.held, found.credits) == ("failed", 0, 0)


# --- Idempotency-Key ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivery", ["url", "b64_json"])
async def test_a_repetition_gets_the_first_answer(server: Server, delivery: str) -> None:
    wanted = body(response_format=delivery) | {"seed": None}
    first = await server.client.post(PATH, json=wanted, headers={"idempotency-key": "a 1"})
    again = await server.client.post(PATH, json=dict(reversed(wanted.items())), headers={"idempotency-key": "a 1"})
    assert again.json() == first.json()
    assert first.json()["seed"] == first.json()["data"][0]["seed"]
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert server.engine.draws == 2
    assert await spent(server) == PRICE


async def test_a_repetition_as_a_stream(server: Server) -> None:
    answers = [
        await server.client.post(PATH, json=body(stream=True), headers={"idempotency-key": "s"}) for _ in range(2)
    ]
    completed = [
        [
            json.loads(line[6:])
            for line in answer.text.splitlines()
            if line.startswith('data: {"type": "image_generation.completed"')
        ]
        for answer in answers
    ]
    assert completed[0][0]["url"] == completed[1][0]["url"]
    assert server.engine.draws == 2


async def test_repetitions_wait_for_those_of_their_own_key_alone(server: Server) -> None:
    """They are free of charge, and have their pictures in memory until they are sent."""
    _, other = await create(server.service.records.keys, "other", now_ms())
    headers = [{"idempotency-key": "w"}, {"idempotency-key": "w", "authorization": f"Bearer {other}"}]
    for one in headers:
        assert (await server.client.post(PATH, json=body(), headers=one)).status_code == 200
    transport: Any = server.client._transport
    places = transport.app.state.replays[KEY[:8]]
    for _ in range(REPLAYS):
        await places.acquire()
    waiting = asyncio.ensure_future(server.client.post(PATH, json=body(), headers=headers[0]))
    assert (await server.client.post(PATH, json=body(), headers=headers[1])).headers["idempotent-replayed"] == "true"
    assert not waiting.done()
    places.release()
    assert (await waiting).headers["idempotent-replayed"] == "true"
    assert not places.locked(), "it has given its place back"


async def test_pictures_that_were_kept_for_repetitions_alone_go_with_them(
    engine: Instant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_app, "SWEEP_EVERY_S", 0.01)
    async with serving(engine) as server:
        files = server.service.files

        async def kept() -> list[str]:
            return [name for folder in await files.folders() for name in await files.names(folder)]

        told, _ = [
            await server.client.post(PATH, json=body(response_format=delivery), headers={"idempotency-key": delivery})
            for delivery in ("url", "b64_json")
        ]
        assert len(await kept()) == 2
        monkeypatch.setattr(api_app, "now_ms", lambda: now_ms() + 2 * DAY_MS)
        while len(await kept()) == 2:
            await asyncio.sleep(0.01)
        (name,) = await kept()
        assert told.json()["data"][0]["url"].endswith(name)


async def test_pictures_of_a_key_that_is_used_again_go_too(engine: Instant, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a job that draws once a day, under one name."""
    late = 0

    def later() -> int:
        return now_ms() + late

    monkeypatch.setattr("zturbo.api.repeats.now_ms", later)
    monkeypatch.setattr(api_app, "now_ms", later)
    async with serving(engine) as server:
        files = server.service.files

        async def kept() -> list[str]:
            return [name for folder in await files.folders() for name in await files.names(folder)]

        async def daily() -> None:
            wanted = body(response_format="b64_json")
            answer = await server.client.post(PATH, json=wanted, headers={"idempotency-key": "daily"})
            assert "idempotent-replayed" not in answer.headers

        await daily()
        (old,) = await kept()
        late = DAY_MS
        await daily()
        assert len(await kept()) == 2
        monkeypatch.setattr(api_app, "SWEEP_EVERY_S", 0.01)  # from the next hour on
    async with serving(engine, open_of(server)) as server:
        while old in await kept():
            await asyncio.sleep(0.01)
        assert len(await kept()) == 1


@pytest.mark.parametrize(("hours", "drawn"), [(23.99, False), (24.0, True)])
async def test_a_repetition_is_one_for_a_day(
    server: Server, monkeypatch: pytest.MonkeyPatch, hours: float, drawn: bool
) -> None:
    start = now_ms()
    for passed in (0.0, hours):
        monkeypatch.setattr("zturbo.api.repeats.now_ms", lambda passed=passed: start + round(passed * 3_600_000))
        answer = await server.client.post(PATH, json=body(), headers={"idempotency-key": "day"})
    assert ("idempotent-replayed" not in answer.headers) == drawn
    assert server.engine.draws == 2 + drawn


@pytest.mark.parametrize("stream", [False, True])
async def test_a_repetition_whose_picture_was_deleted_says_that_it_is_gone(server: Server, stream: bool) -> None:
    wanted, headers = body(response_format="b64_json", stream=stream), {"idempotency-key": "gone"}
    assert (await server.client.post(PATH, json=wanted, headers=headers)).status_code == 200
    files = server.service.files
    for folder in await files.folders():
        for name in await files.names(folder):
            await files.delete(name)
    answer = await server.client.post(PATH, json=wanted, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "file_gone")


async def test_another_body_is_a_conflict(server: Server) -> None:
    for seed, status in ((7, 200), (8, 409)):
        answer = await server.client.post(PATH, json=body(seed=seed), headers={"idempotency-key": "b"})
        assert answer.status_code == status
    assert "another body" in answer.json()["message"]


async def test_many_at_once_are_drawn_once(server: Server) -> None:
    server.engine.gate.clear()
    asking = [
        asyncio.ensure_future(server.client.post(PATH, json=body(), headers={"idempotency-key": "c"}))
        for _ in range(20)
    ]
    await until(lambda: sum(one.done() for one in asking) == 19)
    server.engine.gate.set()
    answers = await asyncio.gather(*asking)
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 19
    assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 409} == {"1"}
    assert server.engine.draws == 2


async def test_a_failed_request_may_be_tried_again_with_its_key(server: Server) -> None:
    for prompt in ("break", "break"):
        answer = await server.client.post(PATH, json=body(prompt=prompt), headers={"idempotency-key": "d"})
        assert answer.status_code == 500
    await server.service.close()


async def test_keys_of_two_owners_do_not_meet(server: Server) -> None:
    _, text = await create(server.service.records.keys, "other", now_ms())
    for key in (KEY, text):
        headers = {"authorization": f"Bearer {key}", "idempotency-key": "same"}
        answer = await server.client.post(PATH, json=body(), headers=headers)
        assert "idempotent-replayed" not in answer.headers
    assert server.engine.draws == 3


@pytest.mark.parametrize("key", ["", " x", "x" * 256, "caf\xe9"], ids=ascii)
async def test_a_key_of_no_form(server: Server, key: str) -> None:
    answer = await server.client.post(PATH, json=body(), headers={b"idempotency-key": key.encode("latin-1")})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "idempotency-key"


# --- what stays --------------------------------------------------------------------------------------------------


async def test_a_restart_keeps_keys_rows_and_pictures(engine: Instant, tmp_path: Path) -> None:
    config = Config(data_dir=tmp_path / "data")

    async def opened() -> Storage:
        return await open_embedded(config)

    async with serving(engine, opened) as server:
        first = await server.client.post(PATH, json=body(), headers={"idempotency-key": "k"})
        picture = await server.client.get(first.json()["data"][0]["url"])
    async with serving(engine, opened) as server:
        assert (await server.client.get(first.json()["data"][0]["url"])).content == picture.content
        again = await server.client.post(PATH, json=body(), headers={"idempotency-key": "k"})
        assert again.json() == first.json()
        assert await spent(server) == PRICE


async def test_the_first_start_shows_a_key_once(engine: Instant, tmp_path: Path) -> None:
    config = Config(data_dir=tmp_path / "data")
    shown: list[str] = []

    async def opened() -> Storage:
        return await open_embedded(config)

    for _ in range(2):
        async with serving(engine, opened, shown.append, api_key="") as server:
            answer = await server.client.post(PATH, json=body(), headers={"authorization": f"Bearer {shown[0]}"})
            assert answer.status_code == 200
    assert len(shown) == 1


async def test_a_new_given_key_replaces_the_one_before(engine: Instant, tmp_path: Path) -> None:
    config = Config(data_dir=tmp_path / "data")

    async def opened() -> Storage:
        return await open_embedded(config)

    async with serving(engine, opened):
        pass
    async with serving(engine, opened, api_key="f" * 32) as server:
        assert (await post(server)).status_code == 401
        answer = await server.client.post(PATH, json=body(), headers={"authorization": f"Bearer {'f' * 32}"})
        assert answer.status_code == 200


# --- names, metrics ----------------------------------------------------------------------------------------------


async def test_aliases(engine: Instant) -> None:
    async with serving(engine, model_aliases="gpt-image-1, dall-e-3") as server:
        (item,) = (await post(server, model="gpt-image-1")).json()["data"]
        assert base64.b64decode(item["b64_json"]).startswith(b"\x89PNG")
        (item,) = (await post(server, model="dall-e-3")).json()["data"]
        assert "url" in item
        (listed,) = (await server.client.get("/v1/models")).json()["data"]
        assert listed["aliases"] == ["aimlapi/alibaba/z-image-turbo", "gpt-image-1", "dall-e-3"]
        assert (await server.client.get("/model/dall-e-3")).status_code == 200


async def test_links_behind_a_proxy(engine: Instant) -> None:
    async with serving(engine, public_url="https://pictures.example/z") as server:
        (item,) = (await post(server)).json()["data"]
        assert item["url"].startswith("https://pictures.example/z/files/b/")


async def test_models_are_tagged(server: Server) -> None:
    first = await server.client.get("/v1/models")
    assert first.headers["etag"].startswith('W/"')
    again = await server.client.get("/v1/models", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_metrics_count_what_happened(server: Server) -> None:
    await post(server, num_images=2)
    await post(server, num_inference_steps=0)
    text = (await server.client.get("/metrics")).text
    assert 'zturbo_requests_total{outcome="done"} 1.0' in text
    assert 'zturbo_requests_total{outcome="rejected"} 1.0' in text
    assert "zturbo_images_total 2.0" in text
    assert f"zturbo_pixel_steps_total {512 * 512 * 8 * 2 / 1e6}e+06" in text
    assert 'zturbo_stage_seconds_count{size="<=0.25MP",stage="denoise"} 1.0' in text
    assert "a cat" not in text
