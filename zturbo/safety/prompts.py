"""The check of prompts by a guard model behind an OpenAI-compatible endpoint, such as Qwen3Guard-Gen in vLLM.

Off until the settings name an endpoint. It is asked before anything is queued; what it does not allow is refused and
costs nothing. A guard that cannot be asked, or says something else than it was trained to, fails the request: whoever
sets one up wants no prompt drawn unchecked. Neither prompts nor what the guard said of them are in logs; the error
names the categories that the guard named, in its words.

What it answers (https://github.com/QwenLM/Qwen3Guard, "Gen"):

    Safety: Unsafe
    Categories: Violent
"""

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from zturbo.errors import ContentPolicyViolation, SafetyError

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

LEVELS = ("Safe", "Controversial", "Unsafe")
"""The guard's words, in rising order."""
MAX_TOKENS = 64
"""Of its answer, which has some 20."""
ATTEMPTS = 2
RETRY_WITHIN_S = 1.0
"""Before the second."""
RETRY_S = 5
"""When a client may ask again after the guard has failed."""
_SAFETY = re.compile(r"^\s*Safety:\s*(Safe|Controversial|Unsafe)\s*$", re.MULTILINE)
_CATEGORIES = re.compile(r"^\s*Categories:\s*(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PromptVerdict:
    """What a guard found in a prompt: one of `LEVELS`, and the categories it names."""

    level: str
    categories: tuple[str, ...] = ()


class PromptGuard(Protocol):
    """Judges prompts, on the event loop."""

    @property
    def name(self) -> str: ...

    async def allow(self, prompt: str) -> None:
        """Return where the prompt may be drawn.

        Raises:
            ContentPolicyViolation: it may not.
            SafetyError: the guard failed.
        """

    async def aclose(self) -> None: ...


class GuardEndpoint:
    """Implements `PromptGuard`.

    Args:
        url: the API's base, such as http://127.0.0.1:8001/v1.
        key: sent as a bearer token; "" where the endpoint wants none.
        model: the name that the endpoint knows the guard by.
        refused: the lowest of `LEVELS` that is refused.
        timeout_s: of one attempt; there are two.
    """

    def __init__(self, url: str, key: str, model: str, refused: str, timeout_s: float) -> None:
        import openai  # takes a second; only servers with a guard pay it, when they start

        from zturbo.expansion.endpoint import bounded

        self.name, self.refused, self._within_s = model, refused, ATTEMPTS * (timeout_s + RETRY_WITHIN_S)
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=key or "none",
            timeout=timeout_s,
            max_retries=ATTEMPTS - 1,
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False, headers={"accept-encoding": "identity"}, event_hooks={"response": [bounded]}
            ),
        )
        self._client.organization = self._client.project = None  # the shell's, for OpenAI alone

    async def allow(self, prompt: str) -> None:
        """As `PromptGuard.allow`."""
        verdict = verdict_of(self.name, await self._answer(prompt))
        if LEVELS.index(verdict.level) >= LEVELS.index(self.refused):
            named = f" ({', '.join(verdict.categories)})" if verdict.categories else ""
            raise ContentPolicyViolation(
                f"the prompt check {self.name} calls the prompt {verdict.level.lower()}{named}; nothing was drawn",
                "change the prompt",
            )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _answer(self, prompt: str) -> str:
        try:
            async with asyncio.timeout(self._within_s):  # the client's own time begins anew with each byte
                completion = await self._client.chat.completions.create(
                    model=self.name,
                    messages=[{"role": "user", "content": prompt}],
                    max_tokens=MAX_TOKENS,
                    temperature=0.0,
                )
            return _text(completion)
        except Exception as error:  # no connection, no answer in time, another status, too large, no chat completion
            reason = f"the prompt check {self.name} failed ({type(error).__name__}): nothing was drawn"
            failed = SafetyError(reason, f"try again in {RETRY_S} s")
            failed.retry_after_s = RETRY_S
            raise failed from None  # what the server sent may repeat the prompt


def verdict_of(guard: str, answer: str) -> PromptVerdict:
    """What a guard's answer says.

    Raises:
        SafetyError: it has not the form that the guard was trained for, or has it twice.
    """
    found = set(_SAFETY.findall(answer))
    if len(found) != 1:
        raise SafetyError(f"the prompt check {guard} did not answer in the form `Safety: Safe`: nothing was drawn")
    named = _CATEGORIES.search(answer)
    categories = [one.strip() for one in named[1].split(",")] if named else []
    return PromptVerdict(found.pop(), tuple(one for one in categories if one and one != "None"))


def _text(completion: "ChatCompletion") -> str:
    """The client checks no types: what the server sent may lack any of these."""
    text = completion.choices[0].message.content
    if not isinstance(text, str):
        raise TypeError("a chat completion without text")
    return text
