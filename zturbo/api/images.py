"""`POST /v1/images/generations`: one body in, pictures out, whole or as a stream of events."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from zturbo.api.errors import error_of
from zturbo.api.identity import require_key
from zturbo.api.schemas import ImageRequest, read_json_object
from zturbo.errors import Busy, InvalidInput, Problem, TooLarge, WrongMediaType
from zturbo.pictures import encode
from zturbo.pricing import CREDITS_PER_USD, credits_of
from zturbo.service import Delivered, Delivery, Service

BODY_TIMEOUT_S = 10
MAX_BODY_BYTES = 1 << 20
CLIENT_CLOSED = 499

router = APIRouter()


@router.post("/v1/images/generations")
@router.post("/v1/images/generations/", include_in_schema=False)
@router.post("/images/generations", include_in_schema=False)
@router.post("/images/generations/", include_in_schema=False)
async def generate_images(request: Request) -> Response:
    """Draw pictures."""
    require_key(request, request.app.state.key)
    wanted = ImageRequest.parse(await read_body(request))
    service: Service = request.app.state.service
    if wanted.stream:
        events = _events(request, service, wanted)
        first = await anext(events)  # what is refused at the door is an error, not a stream
        return StreamingResponse(_chained(first, events), media_type="text/event-stream")
    drawing = asyncio.ensure_future(_draw(service, wanted))
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((drawing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not drawing.done():
            return Response(status_code=CLIENT_CLOSED)  # nobody reads it; cancelling `drawing` frees the engine
        return _answer(request, wanted, await drawing)
    finally:
        drawing.cancel()
        leaving.cancel()


async def read_body(request: Request) -> dict[str, Any]:
    """The request's JSON object.

    Raises:
        WrongMediaType: another content type than JSON.
        TooLarge: more than a mebibyte.
        InvalidInput: not a JSON object, or it did not arrive in time.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise WrongMediaType(f"the body must be application/json; got {kind or 'no content type'}")
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


async def _left(request: Request) -> None:
    """Return when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _draw(service: Service, wanted: ImageRequest) -> Delivered:
    async with aclosing(service.generate(wanted.params, store=wanted.delivery == "url")) as story:
        async for event in story:
            if isinstance(event, Delivered):
                return event
    raise AssertionError("a story ends with its delivery")


def _answer(request: Request, wanted: ImageRequest, delivered: Delivered) -> JSONResponse:
    params, usage = wanted.params, usage_of(wanted)
    items = [_item(request, wanted, picture) for picture in delivered.pictures]
    body = {
        "created": int(time.time()),
        "data": items,
        "images": items,
        "seed": params.seed,
        "prompt": params.prompt,
        "timings": {name: round(seconds, 4) for name, seconds in delivered.timings.items()},
        "model_version": request.app.state.service.worker.engine.model.version,
        "meta": {"usage": usage},
    }
    headers = {
        "x-aimlapi-credits-used": str(usage["credits_used"]),
        "x-aimlapi-usd-spent": str(usage["usd_spent"]),
    }
    return JSONResponse(body, headers=headers)


def usage_of(wanted: ImageRequest) -> dict[str, Any]:
    """What a request costs when its pictures are delivered."""
    params = wanted.params
    credits = credits_of(params.width, params.height, params.num_images)
    return {"tokens_used": credits, "credits_used": credits, "usd_spent": credits / CREDITS_PER_USD}


def _item(request: Request, wanted: ImageRequest, picture: Delivery) -> dict[str, Any]:
    """One picture of the answer: exactly one of `url` and `b64_json`, and no null member."""
    params = wanted.params
    carried = (
        {"b64_json": base64.b64encode(picture.data).decode("ascii")}
        if picture.name is None
        else {"url": str(request.url_for("file", name=picture.name))}
    )
    return carried | {
        "width": params.width,
        "height": params.height,
        "content_type": f"image/{params.output_format}",
        "seed": picture.seed,
    }


# --- streaming: OpenAI's event names, and our own for progress -------------------------------------------------


async def _events(request: Request, service: Service, wanted: ImageRequest) -> AsyncIterator[bytes]:
    """Server-sent events of one request; closing the iterator cancels the work."""
    store, partial = wanted.delivery == "url", 0
    story = service.generate(wanted.params, store=store, previews=wanted.partial_images)
    async with aclosing(story):
        try:
            async for event in story:
                if isinstance(event, Delivered):
                    for picture in event.pictures:
                        yield _event("completed", _completed(request, wanted, picture))
                    continue
                yield _event("progress", {"stage": event.stage, "image": event.image, "images": event.images,
                                          "step": event.step, "steps": event.steps})  # fmt: skip
                if event.preview is not None:
                    data = await asyncio.to_thread(encode, event.preview, wanted.params.output_format, None)
                    yield _event("partial_image", _described(wanted) | _partial(data, partial))
                    partial += 1
        except Busy:
            raise  # before anything was sent: an answer of its own
        except Exception as error:
            yield _event("failed", error_of(request, error))


def _partial(data: bytes, index: int) -> dict[str, Any]:
    return {"b64_json": base64.b64encode(data).decode("ascii"), "partial_image_index": index}


def _completed(request: Request, wanted: ImageRequest, picture: Delivery) -> dict[str, Any]:
    usage = usage_of(wanted)
    tokens = {"total_tokens": usage["tokens_used"], "input_tokens": 0, "output_tokens": usage["tokens_used"]}
    return _described(wanted) | _item(request, wanted, picture) | {"usage": usage | tokens}


def _described(wanted: ImageRequest) -> dict[str, Any]:
    """Members that OpenAI's clients expect on both kinds of image events."""
    params = wanted.params
    return {
        "created_at": int(time.time()),
        "size": f"{params.width}x{params.height}",
        "quality": "auto",
        "background": "opaque",
        "output_format": params.output_format,
    }


def _event(name: str, data: dict[str, Any]) -> bytes:
    kind = f"image_generation.{name}"
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | data)}\n\n".encode()


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for event in rest:
        yield event
