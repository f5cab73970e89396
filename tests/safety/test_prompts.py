"""The prompt guard: its words are understood, and whatever else it says or does not say closes the door."""

import asyncio
import traceback

import pytest

from tests.expansion.chat_server import ChatServer, chat_server, head
from tests.safety.conftest import Endpoint, completion
from zturbo.config import Config
from zturbo.errors import ContentPolicyViolation, SafetyError
from zturbo.safety import prompts
from zturbo.safety.load import load_safety
from zturbo.safety.prompts import RETRY_S, GuardEndpoint, PromptGuard, PromptVerdict, verdict_of

pytestmark = pytest.mark.anyio
PROMPT = "a prompt that nobody else should read"


async def ask(endpoint: Endpoint, refused: str = "Unsafe", timeout_s: float = 5) -> None:
    guard: PromptGuard = GuardEndpoint(endpoint.url, "key", "guard", refused, timeout_s)
    try:
        await guard.allow(PROMPT)
    finally:
        await guard.aclose()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Safety: Safe\nCategories: None", PromptVerdict("Safe")),
        ("Safety: Unsafe\nCategories: Violent", PromptVerdict("Unsafe", ("Violent",))),
        ("\nSafety: Controversial \n\nCategories: PII, Violent\n", PromptVerdict("Controversial", ("PII", "Violent"))),
        ("<think>\n\n</think>\n\nSafety: Unsafe", PromptVerdict("Unsafe")),
    ],
)  # fmt: skip
async def test_its_words(answer: str, expected: PromptVerdict) -> None:
    assert verdict_of("guard", answer) == expected


@pytest.mark.parametrize(
    "answer",
    ["", "Safe", "The prompt is safe.", "Safety: safe", "Safety: Safe Unsafe", "Safety: Safe\nSafety: Unsafe", "{}"],
)
async def test_other_words_are_no_verdict(answer: str) -> None:
    with pytest.raises(SafetyError, match="did not answer in the form"):
        verdict_of("guard", answer)


@pytest.mark.parametrize(
    ("level", "refuses", "allowed"),
    [
        ("Safe", "unsafe", True), ("Controversial", "unsafe", True), ("Unsafe", "unsafe", False),
        ("Safe", "controversial", True), ("Controversial", "controversial", False), ("Unsafe", "controversial", False),
    ],
)  # fmt: skip
async def test_what_is_refused_is_a_setting(endpoint: Endpoint, level: str, refuses: str, allowed: bool) -> None:
    endpoint.answer = lambda _: (200, completion(f"Safety: {level}\nCategories: Violent"))
    config = Config(
        safety_checker="none", prompt_guard_url=endpoint.url, prompt_guard_refuses=refuses, prompt_guard_key="secret"
    )
    safety = load_safety(config)
    assert safety.guard is not None
    assert safety.guard.name == "Qwen/Qwen3Guard-Gen-0.6B"
    if allowed:
        await safety.guard.allow(PROMPT)
    else:
        with pytest.raises(ContentPolicyViolation, match=rf"calls the prompt {level.lower()} \(Violent\)") as caught:
            await safety.guard.allow(PROMPT)
        assert (caught.value.status, caught.value.code) == (400, "content_policy_violation")
        assert PROMPT not in str(caught.value)
    await safety.aclose()
    assert endpoint.asked[0]["messages"] == [{"role": "user", "content": PROMPT}]
    assert endpoint.asked[0]["temperature"] == 0
    assert endpoint.keys == ["Bearer secret"]


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"{}"), (404, b'{"error": "no model"}'), (401, b""), (302, b""), (200, b""), (200, b"null"), (200, b"[]"),
        (200, b"{}"), (200, b'{"choices": []}'), (200, b"<html>"), (200, completion(None)), (200, completion(7)),
        (200, completion("I cannot answer that.")), (200, completion("Safety: Safe" + " " * 2**20)),
    ],
    ids=lambda answer: f"{answer[0]}-{len(answer[1])}",
)  # fmt: skip
async def test_a_guard_that_fails_closes_the_door(endpoint: Endpoint, answer: tuple[int, bytes]) -> None:
    endpoint.answer = lambda _: answer
    with pytest.raises(SafetyError, match="the prompt check guard") as caught:
        await ask(endpoint)
    told = "".join(traceback.format_exception(caught.value))
    assert PROMPT not in told
    assert "Bearer" not in told


async def test_a_guard_that_is_not_there_or_says_nothing(endpoint: Endpoint) -> None:
    with pytest.raises(SafetyError, match="the prompt check guard failed") as caught:
        await ask(Endpoint("http://127.0.0.1:9/v1"))
    assert caught.value.retry_after_s == RETRY_S, "it may be starting: clients are to come back"
    with pytest.raises(SafetyError, match=r"failed \(APITimeoutError\)"):
        await ask(endpoint, timeout_s=1e-9)


async def test_a_guard_that_drips_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def drips(_chat: ChatServer, writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", "content-type: application/json"))
        for _ in range(200):
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)

    monkeypatch.setattr(prompts, "RETRY_WITHIN_S", 0.0)
    async with chat_server(drips) as chat:
        with pytest.raises(SafetyError, match=r"failed \(TimeoutError\)"):
            await ask(Endpoint(chat.url), timeout_s=0.5)


async def test_off_unless_it_is_set_up() -> None:
    assert load_safety(Config(safety_checker="none")).guard is None
