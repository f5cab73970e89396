"""The whole way through HTTP: what is flagged leaves in no answer, file, preview or event, and is in the log."""

import asyncio
import base64
import io
import json
import logging
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.api.conftest import KEY, Server, open_storage, serving
from tests.api.instant import Instant
from tests.safety.conftest import Endpoint, completion
from tests.safety.stubs import StubChecker
from zturbo import keys
from zturbo.api.app import create_app
from zturbo.config import Config
from zturbo.engine.queue import AdmissionQueue
from zturbo.engine.worker import Worker
from zturbo.errors import SafetyError
from zturbo.pictures import read_metadata
from zturbo.safety.checker import Safety
from zturbo.safety.prompts import GuardEndpoint
from zturbo.storage.embedded import now_ms
from zturbo.storage.files import Content
from zturbo.storage.records import Generation, Screening

pytestmark = pytest.mark.anyio
PATH = "/v1/images/generations"
PROMPT = "a cat"
FIRST_SEED = 7


def column(pixels: Any) -> int:
    """The instant engine draws the seed into the first pixel."""
    return int(pixels[0, 0, 0])


def flagging(*seeds: int) -> StubChecker:
    """Finds the pictures of these seeds."""
    return StubChecker(lambda pixels: 0.75 if column(pixels) in seeds else 0.25)


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "alibaba/z-image-turbo", "prompt": PROMPT, "image_size": "square", "seed": FIRST_SEED} | changes


async def post(server: Server, key: str = KEY, **changes: Any) -> Any:
    return await server.client.post(PATH, json=body(**changes), headers={"authorization": f"Bearer {key}"})


async def picture(server: Server, item: dict[str, Any]) -> bytes:
    if "b64_json" in item:
        return base64.b64decode(item["b64_json"])
    return (await server.client.get(item["url"])).content


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


async def row(server: Server) -> Generation:
    """The newest row of the log."""
    await server.service.settle()
    return (await server.service.records.history.logs(1)).rows[0]


def events_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("delivery", ["url", "b64_json"])
async def test_one_flagged_picture_of_four(engine: Instant, delivery: str, output_format: str) -> None:
    async with serving(engine, safety=Safety(flagging(9))) as server:
        answer = await post(server, num_images=4, response_format=delivery, output_format=output_format)
        found = answer.json()
        assert answer.status_code == 200
        assert found["has_nsfw_concepts"] == [False, False, True, False]
        assert found["safety"] == {"checker": "stub@0", "threshold": 0.5, "scores": [0.25, 0.25, 0.75, 0.25]}
        assert found["timings"]["safety"] > 0
        files = [await picture(server, item) for item in found["data"]]
        assert [bool(pixels(data).any()) for data in files] == [True, True, False, True]
        assert {pixels(data).shape for data in files} == {(512, 512, 3)}
        assert [item["seed"] for item in found["data"]] == [7, 8, 9, 10]
        read = [read_metadata(data) for data in files]
        assert [PROMPT in str(one) for one in read] == [True, True, False, True]
        assert read[2]["settings"]["withheld"] == "withheld by the safety checker stub"
        assert PROMPT.encode() not in files[2]
        stored = await row(server)
        assert stored.safety == Screening(
            checker="stub@0", threshold=0.5, scores=(0.25, 0.25, 0.75, 0.25), flagged=(False, False, True, False)
        )
        assert stored.status == "done"
        logged = await server.client.get("/v2/logs", headers=server.client.headers)
        assert logged.json()["data"][0]["safety"] == {
            "checker": "stub@0", "threshold": 0.5, "scores": [0.25, 0.25, 0.75, 0.25],
            "flagged": [False, False, True, False],
        }  # fmt: skip
        assert b"zturbo_images_flagged_total 1.0" in (await server.client.get("/metrics")).content


async def test_the_drawn_picture_never_reaches_the_store(engine: Instant, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(engine, safety=Safety(flagging(7))) as server:
        put: list[bytes] = []
        real = server.service.files.put

        async def watched(content: Content, output_format: str) -> str:
            data = content if isinstance(content, bytes) else content()
            put.append(data)
            return await real(data, output_format)

        monkeypatch.setattr(server.service.files, "put", watched)
        await post(server)
        assert len(put) == 1
        assert not pixels(put[0]).any()


async def test_previews_are_veiled_until_the_picture_is_judged(engine: Instant) -> None:
    async with serving(engine, safety=Safety(flagging(7))) as server:
        answer = await post(server, stream=True, partial_images=3, num_inference_steps=4, response_format="b64_json")
        events = events_of(answer)
        previews = [event for event in events if event["type"].endswith("partial_image")]
        assert len(previews) == 3
        for event in previews:
            hidden = pixels(base64.b64decode(event["b64_json"]))
            assert hidden.shape == (256, 256, 3)
            steps = np.abs(np.diff(hidden[0, :, 0].astype(int)))
            assert steps.max() < 32, "the gradient's edges from 255 to 0 are gone"
        (completed,) = [event for event in events if event["type"].endswith("completed")]
        assert completed["has_nsfw_concepts"] == [True]
        assert not pixels(base64.b64decode(completed["b64_json"])).any()


async def test_without_the_checker_previews_are_clear(engine: Instant) -> None:
    async with serving(engine, safety=Safety(flagging(7))) as server:
        answer = await post(
            server, stream=True, partial_images=1, response_format="b64_json", enable_safety_checker=False
        )
        (preview,) = [event for event in events_of(answer) if event["type"].endswith("partial_image")]
        clear = pixels(base64.b64decode(preview["b64_json"]))
        assert np.abs(np.diff(clear[0, :, 0].astype(int))).max() > 120


async def test_a_repetition_says_the_same(engine: Instant) -> None:
    async with serving(engine, safety=Safety(flagging(8))) as server:
        headers = {"idempotency-key": "once"}
        first, second = [await server.client.post(PATH, json=body(num_images=2), headers=headers) for _ in range(2)]
        assert second.headers["idempotent-replayed"] == "true"
        for member in ("has_nsfw_concepts", "safety", "data"):
            assert first.json()[member] == second.json()[member]
        assert second.json()["has_nsfw_concepts"] == [False, True]


# ------------------------------------------------------------------------------------------------------- the switch


async def test_the_off_switch(engine: Instant) -> None:
    checker = flagging(7)
    async with serving(engine, safety=Safety(checker)) as server:
        found = (await post(server, enable_safety_checker=False)).json()
        assert found["has_nsfw_concepts"] == [False]
        assert "safety" not in found
        assert checker.asked == []
        assert pixels(await picture(server, found["data"][0])).any()
        assert (await row(server)).safety is None


async def test_an_operator_can_force_it_on(engine: Instant) -> None:
    async with serving(engine, safety=Safety(flagging(7), always=True)) as server:
        found = (await post(server, enable_safety_checker=False)).json()
        assert found["has_nsfw_concepts"] == [True]
        assert "safety" in found


async def test_a_key_without_the_scope_cannot_switch_it_off(engine: Instant) -> None:
    async with serving(engine, safety=Safety(flagging(7))) as server:
        store = server.service.records.keys
        _, free = await keys.create(store, "free", now_ms())
        _, bound = await keys.create(store, "bound", now_ms(), scopes=["model:image"])
        assert (await post(server, free, enable_safety_checker=False)).json()["has_nsfw_concepts"] == [False]
        answer = await post(server, bound, enable_safety_checker=False)
        assert answer.json()["has_nsfw_concepts"] == [True]
        stream = await post(server, bound, enable_safety_checker=False, stream=True, partial_images=1,
                            response_format="b64_json")  # fmt: skip
        (preview,) = [event for event in events_of(stream) if event["type"].endswith("partial_image")]
        assert np.abs(np.diff(pixels(base64.b64decode(preview["b64_json"]))[0, :, 0].astype(int))).max() < 16


async def test_without_any_checker_the_answer_has_the_member_all_the_same(server_without: Server) -> None:
    found = (await post(server_without, num_images=2)).json()
    assert found["has_nsfw_concepts"] == [False, False]
    assert "safety" not in found
    (model,) = (await server_without.client.get("/v1/models")).json()["data"]
    assert model["info"]["safety_checker"] == {"name": "none"}


@pytest.fixture
async def server_without(engine: Instant) -> Any:
    async with serving(engine) as server:
        yield server


async def test_the_models_name_it(engine: Instant) -> None:
    async with serving(engine, safety=Safety(StubChecker())) as server:
        (model,) = (await server.client.get("/v1/models")).json()["data"]
        assert model["info"]["safety_checker"] == {
            "name": "stub", "version": "0", "licence": "none needed", "source": "tests", "threshold": 0.5,
        }  # fmt: skip


# ----------------------------------------------------------------------------------------------- what fails is closed


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("score", [None, float("nan")], ids=["raises", "nan"])
async def test_a_checker_that_fails_closes_the_door(
    engine: Instant, score: float | None, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def score_of(drawn: Any) -> float:
        if column(drawn) == 8:
            if score is None:
                raise RuntimeError("secret of the inside")
            return score
        return 0.0

    async with serving(engine, safety=Safety(StubChecker(score_of))) as server:
        await server.service.records.ledger.set_account(1_000_000, 0, now_ms())
        answer = await post(server, num_images=2, stream=stream)
        error = events_of(answer)[-1] if stream else answer.json()
        assert (answer.status_code, error["status"]) == (200 if stream else 500, 500)
        assert error["error"]["code"] == "safety_checker_failed"
        assert "the safety checker stub failed" in error["message"]
        assert "secret" not in answer.text
        if not stream:
            assert answer.headers["x-should-retry"] == "false"
        if score is None:
            assert "secret of the inside" in caplog.text
        stored = await row(server)
        assert (stored.status, stored.error, stored.credits, stored.files) == ("failed", "safety_checker_failed", 0, ())
        account = await server.service.records.ledger.account()
        assert (account.balance, account.held) == (1_000_000, 0)
        assert await server.service.files.folders() == ()
        assert (await post(server)).status_code == 200, "the next request is not harmed"


async def test_a_checker_that_cannot_be_loaded_keeps_the_server_unready(engine: Instant) -> None:
    def fail() -> Safety:
        raise SafetyError("the safety checker stub is not on this computer")

    worker = Worker(AdmissionQueue(4), lambda: engine, fail)
    app = create_app(worker, open_storage, Config(api_key=KEY))
    async with app.router.lifespan_context(app):
        async with asyncio.timeout(10):
            while "could not be loaded" not in str(worker.queue.refusal):
                await asyncio.sleep(0.001)
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://testserver") as client:
            for path in ("/readyz", PATH):
                headers = {"authorization": f"Bearer {KEY}"}
                answer = await (
                    client.get(path) if path == "/readyz" else client.post(path, json=body(), headers=headers)
                )
                assert answer.status_code == 503
                assert "could not be loaded" in answer.json()["message"]
                assert "stub" not in answer.text, "a reason may have paths in it"
                assert answer.headers["x-should-retry"] == "false"
                assert "retry-after" not in answer.headers
            assert (await client.get("/healthz")).status_code == 200
    assert engine.draws == 0


# ------------------------------------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refused_prompt_is_never_queued(
    engine: Instant, endpoint: Endpoint, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    endpoint.answer = lambda sent: (200, completion("Safety: Unsafe" if "dark" in str(sent) else "Safety: Safe"))
    guard = GuardEndpoint(endpoint.url, "", "guard", "Unsafe", 5)
    async with serving(engine, safety=Safety(guard=guard)) as server:
        drawn = engine.draws
        answer = await post(server, prompt="a dark thought", stream=stream)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "content_policy_violation"
        assert "dark" not in answer.text + caplog.text
        assert engine.draws == drawn
        stored = await row(server)
        assert (stored.status, stored.error, stored.credits) == ("rejected", "content_policy_violation", 0)
        assert (await post(server, stream=stream)).status_code == 200


async def test_a_guard_that_is_away_draws_nothing(engine: Instant) -> None:
    guard = GuardEndpoint("http://127.0.0.1:9/v1", "", "guard", "Unsafe", 5)
    async with serving(engine, safety=Safety(guard=guard)) as server:
        drawn = engine.draws
        answer = await post(server)
        assert answer.status_code == 500
        assert "the prompt check guard failed" in answer.json()["message"]
        assert engine.draws == drawn
        assert (await post(server, enable_safety_checker=False)).status_code == 200
