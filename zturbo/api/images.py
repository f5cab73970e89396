"""`POST /v1/images/generations`: one body in, pictures out, whole or as a stream of events."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from zturbo.api.answers import Answer, event, preview_event, progress_event, rendered
from zturbo.api.errors import error_of
from zturbo.api.identity import CLIENT_CLOSED, authorize, client_id_of
from zturbo.api.repeats import REPLAYED, Repetition, reserve
from zturbo.api.routes import Router
from zturbo.api.schemas import ImageRequest, read_json_object
from zturbo.api.sessions import origin_of
from zturbo.config import Config
from zturbo.errors import Cancelled, InvalidInput, Problem, RateLimited, TooLarge, WrongMediaType, ZTurboError
from zturbo.keys import allows
from zturbo.params import shown
from zturbo.pictures import encode, glimpse
from zturbo.pricing import credits_of
from zturbo.service import Delivered, Order, Service
from zturbo.storage import records
from zturbo.storage.embedded import now_ms
from zturbo.storage.records import Key

if TYPE_CHECKING:
    from zturbo.pictures import Pixels

BODY_TIMEOUT_S = 10
SILENCE_S = 15
"""A stream without an event for so long has a comment; nginx, for one, waits 60 s."""
COMMENT = b": still at it\n\n"
STREAMED = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""Headers of a stream; by the second, nginx and what follows it pass each event on at once."""
MAX_BODY_BYTES = 1 << 20
Result = TypeVar("Result")
PATHS = ("/v1/images/generations", "/v1/images/generations/", "/images/generations", "/images/generations/")
"""The published path first, then those that clients use as well."""

router = Router()
log = logging.getLogger("zturbo.http")


async def generate_images(request: Request) -> Response:
    """Draw pictures."""
    key = await authorize(request, "model:image")
    service: Service = request.app.state.service
    row = _row(request, key)
    async with AsyncExitStack() as held:  # what the request has until its answer is sent: its rate, Idempotency-Key
        try:
            held.enter_context(request.app.state.rates.taking(key.prefix))
            body = await read_body(request)
            wanted = ImageRequest.parse(body, request.app.state.models)
            repetition = await reserve(request, body, key.prefix, service.records.idempotency)
        except RateLimited:  # without a row: else whoever asks too often would fill the disk
            service.metrics.ended("rejected")
            raise
        except ClientDisconnect:
            await service.reject(row, Cancelled("the client went away before its request was whole"))
            raise
        except ZTurboError as error:
            await service.reject(row, error)
            raise
        if repetition is not None and repetition.first is not None:
            return await _replayed(request, wanted, repetition)
        if repetition is not None:
            held.push_async_callback(service.release, repetition.owner, repetition.key)
        job = Job(request, wanted, key, row, repetition)
        if not wanted.stream:
            return await _whole(job)
        events = Lively(_events(job))
        held.push_async_callback(events.aclose)
        first = await _unless_left(request, events.first())  # what is refused at the door is an error, not a stream
        if first is None:
            return Response(status_code=CLIENT_CLOSED)
        return EventStream(events.all(first), held.pop_all())
    raise AssertionError("unreachable: every way out of the block returns or raises")


for path in PATHS:
    router.route(path, "POST", include_in_schema=path == PATHS[0])(generate_images)


class Lively:
    """Events with a comment wherever none comes for a while: gateways give up connections that are silent."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        self._events = events
        self._next: asyncio.Task[bytes | None] | None = None

    async def first(self) -> bytes:
        """The first event; what it raises was raised before anything was sent."""
        return await anext(self._events)

    async def all(self, first: bytes) -> AsyncIterator[bytes]:
        """The first event again, and the others."""
        item: bytes | None = first
        while item is not None:
            yield item
            self._next = asyncio.create_task(self._following())
            while not (await asyncio.wait((self._next,), timeout=SILENCE_S))[0]:
                yield COMMENT
            item = self._next.result()

    async def _following(self) -> bytes | None:
        return await anext(self._events, None)

    async def aclose(self) -> None:
        """Cancel the work, unless it has ended."""
        if self._next is not None and self._next.cancel():
            await asyncio.wait((self._next,))
        await self._events.aclose()


class _Holding(Response):
    """An answer, and what its request holds until it has been sent, however that ends."""

    _held: AsyncExitStack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


class Again(_Holding):
    """A whole answer once more."""

    media_type = "application/json"

    def __init__(self, body: bytes, held: AsyncExitStack, headers: Mapping[str, str]) -> None:
        super().__init__(body, headers=headers)
        self._held = held


class EventStream(_Holding, StreamingResponse):
    """Server-sent events."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes] | list[bytes],
        held: AsyncExitStack,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        StreamingResponse.__init__(self, events, headers={**STREAMED, **headers})
        self._held = held


class Job:
    """One checked request on its way through the service."""

    def __init__(
        self, request: Request, wanted: ImageRequest, key: Key, row: records.Request, repetition: Repetition | None
    ) -> None:
        self.request, self.wanted, self.service = request, wanted, request.app.state.service
        self.config: Config = request.app.state.config
        self.created = int(time.time())
        params = wanted.params
        self.credits = credits_of(params.width, params.height, params.num_images, self.config.credits_per_megapixel)
        self.order = Order(
            params=params,
            request=replace(row, model=self.request.app.state.models[0], width=params.width, height=params.height,
                            steps=params.steps, images=params.num_images),
            credits=self.credits,
            limit=key.limit,
            store=wanted.delivery == "url" or repetition is not None,
            progress=wanted.stream,
            previews=wanted.partial_images if wanted.stream else 0,
            may_switch_off=allows(key, "safety:off"),
            answer=partial(self._kept, repetition) if repetition is not None else None,
        )  # fmt: skip

    def answer(self, delivered: Delivered) -> Answer:
        """What to tell of the pictures."""
        return Answer(self.wanted, delivered, self.credits, self.created, self.config.public_url)

    def _kept(self, repetition: Repetition, delivered: Delivered) -> records.Answer:
        return repetition.answer(self.answer(delivered).kept())


async def read_body(request: Request) -> dict[str, Any]:
    """The request's JSON object.

    Raises:
        WrongMediaType: another content type than JSON, or compressed.
        TooLarge: more than a mebibyte.
        InvalidInput: not a JSON object, or it did not arrive in time.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise WrongMediaType(f"the body must be application/json; got {kind or 'no content type'}")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise WrongMediaType(f"the body must not be compressed; got the content-encoding {shown(coding)}")
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > MAX_BODY_BYTES:
                    raise TooLarge(f"the body has more than {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise InvalidInput([Problem(("body",), f"did not arrive within {BODY_TIMEOUT_S} s", None)]) from None
    return read_json_object(bytes(raw))


def _row(request: Request, key: Key) -> records.Request:
    """What the log says of a request from its first moment."""
    request_id = request.scope["state"]["request_id"]
    return records.Request(
        request_id=request_id,
        inference_id=request_id,
        created_ms=now_ms(),
        origin=origin_of(key),
        key=key.prefix,
        client_request_id=client_id_of(request.headers),
    )


async def _whole(job: Job) -> Response:
    """The answer as one body, unless the client goes away first."""
    delivered = await _unless_left(job.request, _draw(job))
    if delivered is None:
        return Response(status_code=CLIENT_CLOSED)
    answer = job.answer(delivered)
    return Response(await _body(job.request, answer), headers=answer.headers(), media_type="application/json")


async def _body(request: Request, answer: Answer) -> bytes:
    """An answer as one body; large ones, which carry pictures, are put together on another thread."""
    body, carried = answer.body(request), answer.wanted.delivery == "b64_json"
    return await asyncio.to_thread(rendered, body) if carried else rendered(body)


async def _unless_left(request: Request, work: Awaitable[Result]) -> Result | None:
    """What some work returns; None where the client goes away first, and then the work is cancelled."""
    worker, working = asyncio.current_task(), True
    assert worker is not None, "a request is answered in a task of its own"

    async def watch() -> None:
        await _left(request)
        if working:
            worker.cancel()

    leaving = asyncio.ensure_future(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if leaving.done() and worker.uncancel() == 0:
            return None
        raise  # the server itself wants it to end
    finally:
        working = False
        leaving.cancel()
        await asyncio.wait((leaving,))  # two that receive at once would take each other's messages


async def _replayed(request: Request, wanted: ImageRequest, repetition: Repetition) -> Response:
    """The first answer once more."""
    service: Service = request.app.state.service
    assert repetition.first is not None
    async with AsyncExitStack() as held:  # free of charge, and in memory until it is sent: few at once for each key
        await held.enter_async_context(request.app.state.replays[repetition.owner])
        answer = await Answer.restored(repetition.first, wanted, service.files, request.app.state.config.public_url)
        headers = answer.headers() | REPLAYED
        if wanted.stream:
            events = await asyncio.to_thread(answer.events, request)
            return EventStream(events, held.pop_all(), headers)
        return Again(await _body(request, answer), held.pop_all(), headers)
    raise AssertionError("unreachable: the block returns or raises")


async def _left(request: Request) -> None:
    """Return when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _preview(pixels: "Pixels", output_format: str) -> bytes:
    return encode(glimpse(pixels), output_format, None)


async def _draw(job: Job) -> Delivered:
    async with aclosing(job.service.generate(job.order)) as story:
        async for item in story:
            if isinstance(item, Delivered):
                return item
    raise AssertionError("a story ends with its delivery")


async def _events(job: Job) -> AsyncGenerator[bytes, None]:
    """Server-sent events of one request; closing the iterator cancels the work.

    Raises:
        ZTurboError: before the first event; later errors are an event.
    """
    previews, begun = Counter[int](), False
    async with aclosing(job.service.generate(job.order)) as story:
        try:
            async for item in story:
                if isinstance(item, Delivered):
                    for completed in job.answer(item).events(job.request):
                        yield completed
                    continue
                begun = True
                yield progress_event(item)
                if item.preview is not None:
                    data = await asyncio.to_thread(_preview, item.preview, job.wanted.params.output_format)
                    yield preview_event(job.wanted, data, item.image, previews[item.image])
                    previews[item.image] += 1
        except Exception as error:
            if not begun:
                raise
            if not isinstance(error, ZTurboError):
                log.exception("crashed", extra={"request_id": job.order.request.request_id})
            yield event("failed", error_of(job.request, error))
