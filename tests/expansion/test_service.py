"""Expansion as clients meet it: in the answer, the events, the picture's file, the model list and the log."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import stamina

from tests.api.conftest import Server, serving
from tests.api.instant import Instant
from tests.api.test_images import PATH, body, post, until
from tests.expansion.chat_server import Answer, ChatServer, chat_server, reply, says, silence
from zturbo.api.answers import Answer as Told
from zturbo.engine.engine import Engine, LoadOptions
from zturbo.expansion.expansion import NOT_HERE
from zturbo.params import GenerationParams
from zturbo.pictures import read_metadata

pytestmark = pytest.mark.anyio
DETAILS = "Soft light falls on it from the left."
DRAWN = f"a cat. {DETAILS}"


@pytest.fixture
def engine() -> Instant:
    instant = Instant()
    instant.gate.set()
    return instant


@pytest.fixture(autouse=True)
def no_waiting_between_attempts() -> Iterator[None]:
    with stamina.set_testing(True, attempts=2):
        yield


@asynccontextmanager
async def with_endpoint(engine: Any, answer: Answer, **settings: Any) -> AsyncIterator[tuple[Server, ChatServer]]:
    async with chat_server(answer) as chat:
        named: dict[str, Any] = {"expansion_url": chat.url, "expansion_model": "m", "expansion_timeout_s": 20}
        async with serving(engine, expansion_provider="endpoint", **(named | settings)) as server:
            yield server, chat


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize("said", [DETAILS, ""], ids=["expanded", "left alone"])
async def test_a_repetition_says_the_same_though_no_prompt_is_kept(
    engine: Instant, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    kept: list[bytes] = []
    keep = Told.kept

    def spied(told: Told) -> bytes:
        kept.append(keep(told))
        return kept[-1]

    monkeypatch.setattr(Told, "kept", spied)
    async with with_endpoint(engine, says(said)) as (server, _):
        headers = {"idempotency-key": "once"}
        first, second = [
            await server.client.post(PATH, json=body(prompt="a cat \n"), headers=headers) for _ in range(2)
        ]
    assert second.headers["idempotent-replayed"] == "true"
    for member in ("prompt", "prompt_expansion", "data"):
        assert second.json()[member] == first.json()[member]
    assert second.json()["prompt"] == (DRAWN if said else "a cat \n")
    assert len(kept) == 1
    assert b"cat" not in kept[0]


async def test_the_answer_says_what_was_drawn(engine: Instant) -> None:
    async with with_endpoint(engine, says(DETAILS)) as (server, chat):
        found = (await post(server, num_images=2)).json()
        assert found["prompt"] == DRAWN
        assert [item["revised_prompt"] for item in found["data"]] == [DRAWN, DRAWN]
        assert found["prompt_expansion"] == {"applied": True, "cached": False, "reason": ""}
        assert found["timings"]["expand"] > 0
        again = (await post(server, seed=8)).json()
        assert again["prompt"] == DRAWN
        assert again["prompt_expansion"]["cached"]
        assert len(chat.bodies) == 1


async def test_the_engine_draws_the_expanded_prompt_and_expands_no_further(
    engine: Instant, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with with_endpoint(engine, says(DETAILS)) as (server, _chat):
        admitted: list[GenerationParams] = []
        admit = server.service.worker.queue.admit

        def noted(params: GenerationParams, *rest: Any) -> Any:
            admitted.append(params)
            return admit(params, *rest)

        monkeypatch.setattr(server.service.worker.queue, "admit", noted)
        await post(server)
    assert [(params.prompt, params.prompt_expansion) for params in admitted] == [(DRAWN, False)]


async def test_it_is_written_into_the_picture(engine: Instant) -> None:
    async with with_endpoint(engine, says(DETAILS)) as (server, _chat):
        for changes, expected in (({}, DRAWN), ({"enable_prompt_expansion": False}, None)):
            found = (await post(server, **changes)).json()
            picture = await server.client.get(found["data"][0]["url"])
            settings = read_metadata(picture.content)["settings"]
            assert (settings["prompt"], settings.get("drawn_prompt")) == ("a cat", expected)


async def test_switched_off_nothing_is_asked_and_nothing_said(engine: Instant) -> None:
    async with with_endpoint(engine, says(DETAILS)) as (server, chat):
        found = (await post(server, enable_prompt_expansion=False)).json()
        assert found["prompt"] == "a cat"
        assert "prompt_expansion" not in found
        assert "revised_prompt" not in found["data"][0]
        assert chat.bodies == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_broken_provider_fails_no_request(
    engine: Instant, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with with_endpoint(engine, reply(b"", "404 Not Found")) as (server, _chat):
        answer = await post(server, prompt="a secret cat", stream=stream)
        assert answer.status_code == 200
        found = events_of(answer.text)[-1] if stream else answer.json()
        assert found["prompt"] == "a secret cat"
        assert found["prompt_expansion"]["reason"] == "the provider answered with status 404"
        assert "revised_prompt" not in json.dumps(found)
    assert "was not expanded: the provider answered with status 404" in caplog.text
    assert "secret cat" not in caplog.text


async def test_a_slow_provider_fails_no_request(engine: Instant) -> None:
    async with with_endpoint(engine, silence, expansion_timeout_s=0.05) as (server, _chat):
        found = (await post(server)).json()
        assert found["prompt"] == "a cat"
        assert "did not answer" in found["prompt_expansion"]["reason"]


async def test_a_slow_provider_does_not_hold_a_request_beyond_its_time(engine: Instant) -> None:
    async with with_endpoint(engine, silence, request_timeout_s=0.2) as (server, _chat):
        answer = await post(server)
    assert answer.status_code == 504
    assert "not done within 0.2 s" in answer.json()["message"]


async def test_events_tell_the_drawn_prompt_when_drawing_begins(engine: Instant) -> None:
    async with with_endpoint(engine, says(DETAILS)) as (server, _chat):
        events = events_of((await post(server, stream=True)).text)
    told = [event for event in events if "prompt" in event and event["type"].endswith("progress")]
    assert [event["stage"] for event in told] == ["encode"]
    assert told[0]["prompt"] == DRAWN
    assert told[0]["prompt_expansion"]["applied"]
    assert events[-1]["revised_prompt"] == DRAWN


async def test_a_repetition_tells_the_same(engine: Instant) -> None:
    async with with_endpoint(engine, says(DETAILS)) as (server, chat):
        headers = {"idempotency-key": "once"}
        first = (await server.client.post(PATH, json=body(), headers=headers)).json()
        chat.answer = says("Another light falls on it from the right.")
        again = (await server.client.post(PATH, json=body(), headers=headers)).json()
        assert again["prompt"] == first["prompt"] == DRAWN
        assert again["data"][0]["revised_prompt"] == DRAWN


async def test_a_full_queue_is_not_kept_waiting_by_the_provider(engine: Instant) -> None:
    async with with_endpoint(engine, says(DETAILS)) as (server, chat):
        engine.gate.clear()
        queue, drawn = server.service.worker.queue, engine.draws
        waiting = [asyncio.ensure_future(post(server, enable_prompt_expansion=False))]
        await until(lambda: engine.draws > drawn)
        waiting += [asyncio.ensure_future(post(server, enable_prompt_expansion=False)) for _ in range(queue.limit)]
        await until(lambda: len(queue) == queue.limit)
        refused = await post(server)
        assert (refused.status_code, chat.bodies) == (503, [])
        engine.gate.set()
        assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}


async def test_the_model_list_names_the_provider(engine: Instant) -> None:
    async with with_endpoint(engine, says(DETAILS)) as (server, _chat):
        info = (await server.client.get("/v1/models")).json()["data"][0]["info"]
        assert info["prompt_expansion"] == {"provider": "endpoint:m"}
    async with serving(engine) as server:
        info = (await server.client.get("/v1/models")).json()["data"][0]["info"]
        assert info["prompt_expansion"] == {"provider": "none"}


async def test_a_server_that_expands_nothing_says_so(engine: Instant) -> None:
    async with serving(engine) as server:
        found = (await post(server)).json()
        assert found["prompt"] == "a cat"
        assert found["prompt_expansion"] == {"applied": False, "cached": False, "reason": NOT_HERE}


async def test_the_embedded_model_expands_through_the_whole_server() -> None:
    nano: Any = Engine.load("nano", LoadOptions(device="cpu"))
    async with serving(nano) as server:
        found = (await post(server, prompt="a red boat at sea", num_inference_steps=1, num_images=2)).json()
        drawn = [item["revised_prompt"] for item in found["data"]]
        assert found["prompt"] == drawn[0] != drawn[1], "each seed has a composition of its own"
        assert all(text.startswith("a red boat at sea. It is ") for text in drawn)
        assert all(" The scene is the open sea" in text for text in drawn)
        alone = (await post(server, prompt="a red boat at sea", num_inference_steps=1, seed=8)).json()
        assert alone["prompt"] == drawn[1]
        assert alone["prompt_expansion"]["cached"]
        first, second = [
            (await server.client.get(one["data"][index]["url"])).content for one, index in ((found, 1), (alone, 0))
        ]
        assert first == second
        assert read_metadata(first)["settings"]["drawn_prompt"] == drawn[1]
        wanted = body(prompt="a boat", num_inference_steps=1, num_images=2)
        twice = [await server.client.post(PATH, json=wanted, headers={"idempotency-key": "once"}) for _ in range(2)]
        assert twice[1].headers["idempotent-replayed"] == "true"
        assert twice[0].json()["data"] == twice[1].json()["data"], "the answer kept knows each picture's text"
        info = (await server.client.get("/v1/models")).json()["data"][0]["info"]
        assert info["prompt_expansion"] == {"provider": "local"}


def test_the_command_line_writes_and_tells_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from zturbo import cli

    monkeypatch.chdir(tmp_path)
    words = ["generate", "a red boat at sea", "--size", "square", "--steps", "1", "--json", "--quiet", "-o", "a.png"]
    assert cli.main([*words, "--prompt-expansion", "--no-safety-checker"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["prompt"] == "a red boat at sea"
    assert summary["drawn_prompt"].startswith("a red boat at sea. It is ")
    assert " The scene is the open sea" in summary["drawn_prompt"]
    assert summary["prompt_expansion"]["applied"]
    assert read_metadata(tmp_path / "a.png")["settings"]["drawn_prompt"] == summary["drawn_prompt"]
    assert cli.main([*words, "--no-prompt-expansion", "--no-safety-checker"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["drawn_prompt"], summary["prompt_expansion"]) == (summary["prompt"], None)
    assert "drawn_prompt" not in read_metadata(tmp_path / "a.png")["settings"]


def test_the_command_line_refuses_what_the_setting_excludes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from zturbo import cli

    monkeypatch.setenv("ZTURBO_EXPANSION_PROVIDER", "none")
    assert cli.main(["generate", "a cat", "--prompt-expansion", "--quiet"]) == 2
    assert "--prompt-expansion: the setting expansion_provider is none" in capsys.readouterr().err


async def test_the_command_line_asks_the_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command runs its own event loop, so it runs in another thread than the stub."""
    from zturbo import cli

    monkeypatch.chdir(tmp_path)
    async with chat_server(says(DETAILS)) as chat:
        monkeypatch.setenv("ZTURBO_EXPANSION_PROVIDER", "endpoint")
        monkeypatch.setenv("ZTURBO_EXPANSION_URL", chat.url)
        monkeypatch.setenv("ZTURBO_EXPANSION_MODEL", "m")
        words = ["generate", "a cat", "--size", "square", "--steps", "1", "--quiet", "-o", "a.png"]
        assert await asyncio.to_thread(cli.main, [*words, "--no-safety-checker"]) == 0
        assert len(chat.bodies) == 1
    assert read_metadata(tmp_path / "a.png")["settings"]["drawn_prompt"] == DRAWN


async def test_requests_that_wait_for_the_endpoint_fill_the_queue(engine: Instant) -> None:
    """Else any number could hold its price and ask, to be refused afterwards."""
    gate = asyncio.Event()

    async def later(chat: ChatServer, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await says(DETAILS)(chat, writer)

    async with with_endpoint(engine, later) as (server, chat):
        waiting = [asyncio.ensure_future(post(server, prompt=f"a cat, {number}")) for number in range(4)]
        while len(chat.bodies) < 4:
            await asyncio.sleep(0.001)
        assert (await post(server, prompt="a dog")).status_code == 503
        gate.set()
        assert [(await answer).status_code for answer in waiting] == [200] * 4
        assert (await post(server, prompt="a dog")).status_code == 200
        assert len(chat.bodies) == 5
