"""Details from a chat model behind an OpenAI-compatible endpoint: vLLM, Ollama, a cloud.

Whatever that server does, `expand` returns: broken, slow or hostile, it costs at most the time-out, and the prompt is
drawn as it is with the reason. Reasons never repeat what the server sent, nor the key. One answer per prompt is kept,
and asked for once however many requests wait for it, so that replays agree.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Self

from zturbo.config import Config
from zturbo.expansion.breaker import CircuitBreaker
from zturbo.expansion.cache import LeastRecent
from zturbo.expansion.expansion import Expansion
from zturbo.expansion.recipes import Instructed
from zturbo.expansion.rules import additions, joined, left_alone, unthought

if TYPE_CHECKING:
    import httpx2
    from openai.types.chat import ChatCompletion

MAX_ANSWER_BYTES = 1 << 18
ATTEMPTS = 2
TEMPERATURE = 0.0
UNSUPPORTED = ("unsupported_parameter", "unsupported_value")
"""Error codes of OpenAI's models that reason: they take `max_completion_tokens` and no temperature."""
RESTING = "the provider failed several times and is left in peace for a while"


class _FailedError(Exception):
    """The endpoint gave no answer that can be used; the text says why and holds nothing that it sent."""


class _AgainError(_FailedError):
    """The same, and a second attempt may help."""


class _RefusedError(_FailedError):
    """The endpoint does not want this prompt; that says nothing about others, and rests nobody."""


class _TooLargeError(Exception):
    """The body is over the limit, or packed so that its size is unknown."""


class ChatEndpoint:
    """One model at one endpoint, for one event loop.

    Args:
        url: the API's base, such as http://127.0.0.1:11434/v1.
        key: sent as a bearer token; "" sends a placeholder, as servers without keys expect.
        model: the name that the endpoint knows it by.
        timeout_s: of one expansion, with all its attempts.
        breaker: opens after failures in a row.
    """

    def __init__(self, url: str, key: str, model: str, timeout_s: float, breaker: CircuitBreaker | None = None) -> None:
        import openai  # takes a second; only servers with an endpoint pay it, when they start
        import stamina

        stamina.instrumentation.set_on_retry_hooks([])  # its own print to stdout, where pictures may be going
        self.recipe = Instructed()
        self.model, self.timeout_s = model, timeout_s
        self.name = f"endpoint:{model}"
        self.breaker = breaker or CircuitBreaker()
        self._cache: LeastRecent[Expansion] = LeastRecent()
        self._running: dict[str, asyncio.Task[Expansion]] = {}
        self._reasons = False  # the model said that it takes no `max_tokens`
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=key or "none",
            timeout=timeout_s,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False, headers={"accept-encoding": "identity"}, event_hooks={"response": [bounded]}
            ),
        )
        self._client.organization = self._client.project = None  # the shell's, for OpenAI alone

    @classmethod
    def configured(cls, config: Config) -> Self:
        """The endpoint that the settings name."""
        return cls(config.expansion_url, config.expansion_key, config.expansion_model, config.expansion_timeout_s)

    async def expand(self, prompt: str) -> Expansion:
        """The expansion of a prompt; never raises but for the caller's own cancellation."""
        start = time.perf_counter()
        if reason := left_alone(prompt):
            return Expansion.left(prompt, reason, self.name)
        if known := self._cache.get(prompt):
            return known.took(time.perf_counter() - start, cached=True)
        asking = self._running.get(prompt)
        if asking is None:
            asking = self._running[prompt] = asyncio.ensure_future(self._ask(prompt))
            asking.add_done_callback(lambda _task: self._running.pop(prompt, None))
        expansion = await asyncio.shield(asking)  # others may wait for the same answer
        return expansion.took(time.perf_counter() - start)

    async def aclose(self) -> None:
        """Stop asking and close the connections."""
        for task in (running := list(self._running.values())):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._client.close()

    async def _ask(self, prompt: str) -> Expansion:
        if not self.breaker.allows():
            return Expansion.left(prompt, RESTING, self.name)
        try:
            async with asyncio.timeout(self.timeout_s):
                answer, whole = await self._answer(prompt)
        except TimeoutError:
            return self._failed(prompt, f"the provider did not answer within {self.timeout_s:g} s")
        except _RefusedError as error:
            self.breaker.succeeded()  # there was an answer
            return Expansion.left(prompt, str(error), self.name)
        except _FailedError as error:
            return self._failed(prompt, str(error))
        self.breaker.succeeded()
        expansion = Expansion.of(prompt, joined(prompt, additions(prompt, answer, whole)), self.name)
        self._cache.put(prompt, expansion)
        return expansion

    def _failed(self, prompt: str, reason: str) -> Expansion:
        self.breaker.failed()
        return Expansion.left(prompt, reason, self.name)

    async def _answer(self, prompt: str) -> tuple[str, bool]:
        """The model's text, and whether it ended by itself; a failure that may pass is tried again."""
        import stamina

        async for attempt in stamina.retry_context(on=_AgainError, attempts=ATTEMPTS, timeout=None, wait_initial=0.2):
            with attempt:
                return _read(await self._complete(prompt))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _complete(self, prompt: str) -> "ChatCompletion":
        import openai

        system, user = self.recipe.turns(prompt)
        most = 2 * self.recipe.longest  # the answer repeats the prompt first
        how: dict[str, Any] = {"max_tokens": most, "temperature": TEMPERATURE}
        if self._reasons:
            how = {"max_completion_tokens": most}
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4]) >> 1
        try:
            return await self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
                seed=seed,  # of the prompt alone, so that servers which honour it agree after a restart
                **how,
            )
        except openai.APIStatusError as error:
            kind = self._kind(error.status_code, error.code, "max_tokens" in how)
            raise kind(f"the provider answered with status {error.status_code}") from None
        except openai.APITimeoutError:
            raise _AgainError(f"the provider did not answer within {self.timeout_s:g} s") from None
        except openai.APIConnectionError:
            raise _AgainError("the provider cannot be reached") from None
        except _TooLargeError:
            raise _FailedError(f"the provider's answer is over {MAX_ANSWER_BYTES} bytes or packed") from None
        except (openai.OpenAIError, ValueError, RecursionError):  # no JSON, or not of a chat completion
            raise _FailedError("the provider's answer is no chat completion") from None

    def _kind(self, status: int, code: str | None, plain: bool) -> type[_FailedError]:
        """What an answer's status and error code mean for this prompt and for others.

        plain: it was asked with `max_tokens`.
        """
        if status == 400 and code in UNSUPPORTED and plain:
            self._reasons = True
            return _AgainError
        if status in (400, 413, 422):
            return _RefusedError
        return _AgainError if status >= 500 or status in (408, 429) else _FailedError


def _read(completion: "ChatCompletion") -> tuple[str, bool]:
    """Text and completeness of a chat completion, which the client does not check."""
    try:
        choice = completion.choices[0]
        text, reason = choice.message.content, choice.finish_reason
    except (AttributeError, IndexError, TypeError, KeyError):
        raise _FailedError("the provider's answer is no chat completion") from None
    if reason == "length" and not (isinstance(text, str) and unthought(text)):
        raise _FailedError("the provider's answer was cut off before it said anything; switch its thinking off")
    if not isinstance(text, str):
        raise _RefusedError("the provider's answer has no text")
    return text, reason == "stop"


async def bounded(response: "httpx2.Response") -> None:
    """Let no more than `MAX_ANSWER_BYTES` of a body in, errors' bodies included, and nothing packed."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise _TooLargeError
    response.stream = _bounded_stream(response.stream)


def _bounded_stream(stream: Any) -> "httpx2.AsyncByteStream":
    import httpx2

    class Bounded(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for chunk in stream:
                size += len(chunk)
                if size > MAX_ANSWER_BYTES:
                    raise _TooLargeError
                yield chunk

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()
