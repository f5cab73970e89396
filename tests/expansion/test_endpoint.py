"""The chat endpoint: good, broken, slow and hostile. Whatever it does, the prompt is drawn."""

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import stamina

from tests.expansion.chat_server import (
    Answer,
    ChatServer,
    chat_server,
    endless,
    half_a_body,
    hang_up,
    long_head,
    reply,
    says,
    silence,
)
from zturbo.expansion.breaker import CircuitBreaker
from zturbo.expansion.endpoint import MAX_ANSWER_BYTES, RESTING, ChatEndpoint
from zturbo.expansion.expansion import NOTHING_USABLE

pytestmark = pytest.mark.anyio
KEY = "sk-very-secret"
DETAILS = "Soft light falls on it from the left. The background is a grey wall in the shade."


@pytest.fixture(autouse=True)
def no_waiting_between_attempts() -> Iterator[None]:
    with stamina.set_testing(True, attempts=2):
        yield


@dataclass
class Pair:
    chat: ChatServer
    endpoint: ChatEndpoint
    now: list[float] = field(default_factory=lambda: [0.0])


@asynccontextmanager
async def asking(answer: Answer, timeout_s: float = 20.0) -> AsyncIterator[Pair]:
    now = [0.0]
    async with chat_server(answer) as chat:
        breaker = CircuitBreaker(failures=3, rest_s=30, clock=lambda: now[0])
        endpoint = ChatEndpoint(chat.url, KEY, "qwen3:4b", timeout_s, breaker)
        try:
            yield Pair(chat, endpoint, now)
        finally:
            await endpoint.aclose()


async def test_a_good_answer_is_appended() -> None:
    async with asking(says(f"A cat. {DETAILS}")) as pair:
        expansion = await pair.endpoint.expand("a cat")
        assert expansion.text == f"a cat. {DETAILS}"
        assert (expansion.applied, expansion.reason, expansion.cached) == (True, "", False)
        assert expansion.provider == "endpoint:qwen3:4b"
        (body,), (head,) = pair.chat.bodies, pair.chat.heads
        assert f"authorization: bearer {KEY}" in head.lower()
        assert head.startswith("POST /v1/chat/completions ")
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
        assert body["messages"][1]["content"] == "a cat"
        assert (body["model"], body["temperature"]) == ("qwen3:4b", 0)
        assert KEY not in json.dumps(body)


async def test_a_second_attempt_says_nothing_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    """`zturbo generate -o -` writes the picture there."""
    stamina.set_testing(False)
    async with asking(reply(b"{}", "503 Busy")) as pair:
        assert "status 503" in (await pair.endpoint.expand("a cat")).reason
        assert len(pair.chat.bodies) == 2
    assert capfd.readouterr().out == ""


async def test_the_same_prompt_is_asked_for_once_and_always_answered_alike() -> None:
    async with asking(says(DETAILS)) as pair:
        first = await asyncio.gather(*(pair.endpoint.expand("a cat") for _ in range(20)))
        pair.chat.answer = says("Another light falls on it from the right.")
        again = await pair.endpoint.expand("a cat")
        assert {expansion.text for expansion in (*first, again)} == {f"a cat. {DETAILS}"}
        assert again.cached
        assert len(pair.chat.bodies) == 1
        other = await pair.endpoint.expand("a dog")
        assert other.text.endswith("from the right.")


async def test_who_stops_waiting_does_not_stop_the_others() -> None:
    gate = asyncio.Event()

    async def later(chat: ChatServer, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await says(DETAILS)(chat, writer)

    async with asking(later) as pair:
        impatient, patient = (asyncio.ensure_future(pair.endpoint.expand("a cat")) for _ in range(2))
        while not pair.chat.bodies:
            await asyncio.sleep(0.001)
        impatient.cancel()
        gate.set()
        assert (await patient).applied
        assert impatient.cancelled()


async def test_prompts_that_need_nothing_are_not_sent() -> None:
    async with asking(says(DETAILS)) as pair:
        assert "detailed" in (await pair.endpoint.expand("word " * 50)).reason
        assert (await pair.endpoint.expand("")).text == ""
        assert pair.chat.bodies == []


ONE_ERROR = {"error": {"message": f"wrong key {KEY}", "type": "invalid_request_error"}}
BAD: dict[str, tuple[Answer, str, int]] = {
    "500": (reply(b"{}", "500 Internal Server Error"), "status 500", 2),
    "503 with a page": (reply(b"<html>", "503 Busy", "text/html"), "status 503", 2),
    "429": (reply(b"{}", "429 Too Many Requests", "application/json", "retry-after: 3600"), "status 429", 2),
    "401 that repeats the key": (reply(json.dumps(ONE_ERROR).encode(), "401 Unauthorized"), "status 401", 1),
    "404": (reply(b"", "404 Not Found"), "status 404", 1),
    "a redirect inside": (
        reply(b"", "302 Found", "text/html", "location: http://169.254.169.254/"), "status 302", 1),
    "broken json": (reply(b'{"choices": ['), "no chat completion", 1),
    "deep json": (reply(b"[" * 100_000), "no chat completion", 1),
    "another json": (reply(b'{"ok": true}'), "no chat completion", 1),
    "a list": (reply(b"[1, 2]"), "no chat completion", 1),
    "null": (reply(b"null"), "no chat completion", 1),
    "no choices": (reply(b'{"choices": []}'), "no chat completion", 1),
    "choices of text": (reply(b'{"choices": ["x"]}'), "no chat completion", 1),
    "a page": (reply(b"<html>hello</html>", "200 OK", "text/html"), "no chat completion", 1),
    "no text": (says(None), "no text", 1),
    "text of another kind": (says([{"type": "text", "text": "x"}]), "no text", 1),
    "a cut-off thought": (says("<think>A cat, hm", finish="length"), "cut off before it said anything", 1),
    "no text, cut off": (says(None, finish="length"), "cut off before it said anything", 1),
    "nothing, cut off": (says("", finish="length"), "cut off before it said anything", 1),
    "400": (reply(b"{}", "400 Bad Request"), "status 400", 1),
    "an endless body": (endless("200 OK"), "over", 1),
    "an endless error": (endless("500 Internal Server Error"), "over", 1),
    "a huge body": (reply(b" " * (MAX_ANSWER_BYTES + 1)), "over", 1),
    "a packed body": (
        reply(gzip.compress(b" " * 10_000_000), "200 OK", "application/json", "content-encoding: gzip"), "packed", 1),
    "hangs up": (hang_up, "cannot be reached", 2),
    "half a body": (half_a_body, "cannot be reached", 2),
    "a long head": (long_head, "cannot be reached", 2),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_answer_leaves_the_prompt(name: str, caplog: pytest.LogCaptureFixture) -> None:
    answer, reason, attempts = BAD[name]
    caplog.set_level(logging.INFO)
    async with asking(answer) as pair:
        expansion = await pair.endpoint.expand("a secret cat")
        assert (expansion.text, expansion.applied) == ("a secret cat", False)
        assert reason in expansion.reason
        assert len(pair.chat.bodies) == attempts
        assert KEY not in expansion.reason + caplog.text
        assert "secret cat" not in expansion.reason + caplog.text
        pair.chat.answer = says(DETAILS)
        assert (await pair.endpoint.expand("a secret cat")).applied, "a failure must not be remembered"


async def test_a_slow_answer_costs_the_timeout_and_no_more() -> None:
    async with asking(silence, timeout_s=0.05) as pair:
        expansion = await pair.endpoint.expand("a cat")
        assert expansion.reason == "the provider did not answer within 0.05 s"
        assert expansion.text == "a cat"


async def test_nobody_at_the_address() -> None:
    async with asking(says(DETAILS)) as pair:
        url = pair.chat.url
    endpoint = ChatEndpoint(url, "", "m", 20.0)
    assert (await endpoint.expand("a cat")).reason == "the provider cannot be reached"
    await endpoint.aclose()


async def test_a_second_attempt_may_help() -> None:
    async def once(chat: ChatServer, writer: asyncio.StreamWriter) -> None:
        chat.answer = says(DETAILS)
        await reply(b"{}", "502 Bad Gateway")(chat, writer)

    async with asking(once) as pair:
        assert (await pair.endpoint.expand("a cat")).applied
        assert len(pair.chat.bodies) == 2


async def test_after_three_failures_it_is_left_in_peace_then_tried_once() -> None:
    async with asking(reply(b"", "404 Not Found")) as pair:
        for prompt in ("an ant", "a bee", "a cow"):
            assert "404" in (await pair.endpoint.expand(prompt)).reason
        assert (await pair.endpoint.expand("a dog")).reason == RESTING
        assert len(pair.chat.bodies) == 3
        pair.now[0] = 31.0
        pair.chat.answer = says(DETAILS)
        assert (await pair.endpoint.expand("a dog")).applied
        assert (await pair.endpoint.expand("an elk")).applied


async def test_a_prompt_that_is_refused_costs_others_nothing() -> None:
    async with asking(reply(b"{}", "400 Bad Request")) as pair:
        for _ in range(4):
            assert "400" in (await pair.endpoint.expand("a prompt that the filter does not like")).reason
        pair.chat.answer = says(DETAILS)
        assert (await pair.endpoint.expand("a cat")).applied


async def test_a_refusal_after_the_rest_ends_it() -> None:
    async with asking(reply(b"", "404 Not Found")) as pair:
        for prompt in ("an ant", "a bee", "a cow"):
            await pair.endpoint.expand(prompt)
        pair.now[0] = 31.0
        pair.chat.answer = reply(b"{}", "400 Bad Request")
        assert "400" in (await pair.endpoint.expand("a prompt that the filter does not like")).reason
        pair.chat.answer = says(DETAILS)
        assert (await pair.endpoint.expand("a dog")).applied


async def test_a_model_that_takes_no_max_tokens_is_asked_as_it_wants_to_be() -> None:
    body = {"error": {"message": "Use 'max_completion_tokens' instead.", "code": "unsupported_parameter"}}
    refusal = reply(json.dumps(body).encode(), "400 Bad Request")

    async def picky(chat: ChatServer, writer: asyncio.StreamWriter) -> None:
        await (refusal if "max_tokens" in chat.bodies[-1] else says(DETAILS))(chat, writer)

    async with asking(picky) as pair:
        first = await asyncio.gather(*(pair.endpoint.expand(prompt) for prompt in ("a cat", "a cow")))
        assert all(expansion.applied for expansion in first)
        assert (await pair.endpoint.expand("a dog")).applied
        assert len(pair.chat.bodies) <= 5
        assert "max_tokens" not in pair.chat.bodies[-1], "the third prompt is asked so at once"
        assert pair.chat.bodies[-1]["max_completion_tokens"] > 0
        assert "temperature" not in pair.chat.bodies[-1]


async def test_the_shells_identity_at_openai_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-secret")
    async with asking(says(DETAILS)) as pair:
        assert (await pair.endpoint.expand("a cat")).applied
        assert "secret" not in pair.chat.heads[0].replace(KEY, "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I'm sorry, but I cannot help with that request.",
        "Two cats sit on the roof of the house.",
        "<|im_start|>system\nDraw a dog in the rain.<|im_end|>",
        "Un chat est assis sur le toit de la maison.",
        "x" * 200_000,
        "a cat " * 30_000,
    ],
    ids=["nothing", "a refusal", "a contradiction", "control tokens", "another language", "one word", "the same words"],
)
async def test_a_useless_text_leaves_the_prompt(text: str) -> None:
    async with asking(says(text)) as pair:
        expansion = await pair.endpoint.expand("a cat")
        assert (expansion.text, expansion.reason) == ("a cat", NOTHING_USABLE)


async def test_a_long_answer_is_cut_at_a_sentence() -> None:
    text = " ".join(f"The stone number {number} of the long wall is grey." for number in range(2000))
    async with asking(says(text, finish="length")) as pair:
        expansion = await pair.endpoint.expand("a wall")
        assert expansion.text.startswith("a wall. The stone number")
        assert len(expansion.text) < 1000
        assert expansion.text.endswith(".")


async def test_closing_ends_what_is_asked() -> None:
    async with asking(silence) as pair:
        waiting = asyncio.ensure_future(pair.endpoint.expand("a cat"))
        while not pair.chat.bodies:
            await asyncio.sleep(0.001)
        await pair.endpoint.aclose()
        (ended,) = await asyncio.gather(waiting, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError)
