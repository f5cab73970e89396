"""The endpoint as clients see it."""

import asyncio
import base64
import contextlib
import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from starlette.types import Message

from tests.api.conftest import KEY, Instant, Server, serving
from zturbo.api import identity
from zturbo.api.answers import Base64, rendered
from zturbo.api.errors import error_body
from zturbo.api.images import COMMENT
from zturbo.api.pictures import wanted_range
from zturbo.errors import Cancelled
from zturbo.pictures import read_metadata

pytestmark = pytest.mark.anyio
PATH = "/v1/images/generations"
SEED_EXAMPLE = {
    "model": "alibaba/z-image-turbo",
    "prompt": "A T-Rex relaxing on a beach, lying on a sun lounger and wearing sunglasses.",
    "image_size": {"width": 1440, "height": 512},
}


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "alibaba/z-image-turbo", "prompt": "a cat", "image_size": "square", "seed": 7} | changes


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that must come to pass, at most ten seconds."""
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


async def post(server: Server, **changes: Any) -> Any:
    return await server.client.post(PATH, json=body(**changes))


def streamed(answer: Any) -> list[dict[str, Any]]:
    """The events of a stream."""
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]


async def test_the_published_example(server: Server) -> None:
    answer = await server.client.post(PATH, json=SEED_EXAMPLE)
    assert answer.status_code == 200
    found = answer.json()
    assert found["meta"]["usage"]["tokens_used"] == 10500
    assert found["data"] == found["images"]
    (item,) = found["data"]
    assert (item["width"], item["height"], item["content_type"]) == (1440, 512, "image/png")
    assert "b64_json" not in item
    assert answer.headers["x-aimlapi-credits-used"] == "10500"
    picture = await server.client.get(item["url"], headers={"authorization": ""})
    assert picture.status_code == 200
    assert picture.headers["content-type"] == "image/png"
    assert "immutable" in picture.headers["cache-control"]
    assert Image.open(io.BytesIO(picture.content)).size == (1440, 512)
    assert read_metadata(picture.content)["settings"]["prompt"] == SEED_EXAMPLE["prompt"]


async def test_pictures_in_the_answer(server: Server) -> None:
    found = (await post(server, response_format="b64_json", num_images=3, output_format="webp")).json()
    assert [item["seed"] for item in found["data"]] == [7, 8, 9]
    for item in found["data"]:
        assert "url" not in item
        assert Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))).format == "WEBP"


@pytest.mark.parametrize("path", [PATH, PATH + "/", "/images/generations", "/images/generations/"])
async def test_every_path_answers(server: Server, path: str) -> None:
    assert (await server.client.post(path, json=body())).status_code == 200


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"image_size": "portrait_16_9"}, (576, 1024)),
        ({"image_size": None, "size": "1000x700"}, (992, 704)),
        ({"image_size": None, "size": "99x9999"}, (512, 2048)),
        ({"image_size": None, "size": "auto"}, (1024, 768)),
        ({"image_size": {"height": 512}}, (1024, 512)),
        ({"image_size": "square", "size": "1024x1024"}, (512, 512)),
    ],
    ids=str,
)
async def test_sizes_and_their_aliases(server: Server, changes: dict[str, Any], size: tuple[int, int]) -> None:
    (item,) = (await post(server, **changes)).json()["data"]
    assert (item["width"], item["height"]) == size


async def test_tolerances(server: Server) -> None:
    """Null is absent, unknown members are ignored, n counts, and a gateway's output_format is understood."""
    answer = await post(server, num_images=None, n=2.0, quality="hd", user="me", output_format="b64_json", seed=None)
    items = answer.json()["data"]
    assert len(items) == 2
    assert all("b64_json" in item and item["seed"] >= 1 for item in items)


async def test_all_problems_at_once(server: Server) -> None:
    wrong = {"num_inference_steps": 50, "image_size": {"width": 1000, "height": "x"}, "seed": 0, "model": "dall-e"}
    answer = await post(server, **wrong, stream="yes", response_format="ftp")
    assert answer.status_code == 400
    found = answer.json()
    paths = {".".join(issue["path"]) for issue in found["error"]["data"]["issues"]}
    assert paths == {"num_inference_steps", "image_size.width", "image_size.height", "seed", "model", "stream",
                     "response_format"}  # fmt: skip
    assert found["error"]["type"] == "invalid_request_error"
    assert found["requestId"] == answer.headers["x-request-id"]
    assert "50" in found["message"]
    assert server.engine.steps_drawn == 8  # the warm-up's, and nothing more


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (b"", "JSON"), (b"{", "JSON"), (b"[]", "JSON object"), (b'{"prompt": NaN}', "NaN"), (b"\xff{}", "utf-8"),
        (b'{"prompt": 1, "prompt": 2}', "twice"), (b"[" * 200_000, "JSON"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", "JSON"),
        (b'{"model": "alibaba/z-image-turbo", "prompt": "\\ud800"}', "U+D800"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
async def test_odd_bodies(server: Server, raw: bytes, word: str) -> None:
    answer = await server.client.post(PATH, content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert word in answer.json()["message"]


async def test_other_content_types_and_large_bodies(server: Server) -> None:
    answer = await server.client.post(PATH, content=json.dumps(body()), headers={"content-type": "text/plain"})
    assert answer.status_code == 415
    answer = await post(server, prompt="x" * (1 << 20))
    assert answer.status_code == 413
    assert answer.json()["statusCode"] == 413


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \xfc"])
async def test_without_the_key(server: Server, value: str) -> None:
    answer = await server.client.post(PATH, json=body(), headers={b"authorization": value.encode("latin-1")})
    assert answer.status_code == 401
    assert "valid API key" in answer.json()["message"]


async def test_a_failure_tells_nothing_of_the_inside(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    answer = await post(server, prompt="break")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "secret of the inside" in caplog.text
    assert answer.headers["x-should-retry"] == "false"
    assert (await post(server)).status_code == 200


async def test_a_full_queue_says_when_to_come_back(server: Server) -> None:
    server.engine.gate.clear()
    drawn, queue = server.engine.draws, server.service.worker.queue
    running = [asyncio.ensure_future(post(server, seed=1))]
    await until(lambda: server.engine.draws > drawn)
    running += [asyncio.ensure_future(post(server, seed=seed)) for seed in range(2, 6)]
    await until(lambda: len(queue) == 4)
    refused = await post(server)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert "x-should-retry" not in refused.headers
    server.engine.gate.set()
    assert [answer.status_code for answer in await asyncio.gather(*running)] == [200] * 5


@pytest.mark.parametrize(
    ("changes", "param", "hint"),
    [
        ({"size": "auto\n"}, "size", "nearest valid value: 1024x768"),
        ({"size": "1024x1024\n"}, "size", "nearest valid value: 1024x768"),
        ({"size": "landscape_16_9"}, "size", "nearest valid value: 1024x576"),
        ({"partial_images": 5}, "partial_images", "nearest valid value: 3"),
        ({"partial_images": 1.0}, "partial_images", "nearest valid value: 1"),
        ({"partial_images": "2"}, "partial_images", ""),
        ({"response_format": "b64_jsn"}, "response_format", "nearest valid value: b64_json"),
        ({"response_format": 7}, "response_format", "nearest valid value: url"),
        ({"seed": 8.0}, "seed", "nearest valid value: 8"),
        ({"seed": -1.5}, "seed", "nearest valid value: 1"),
        ({"num_images": 0.0}, "num_images", "nearest valid value: 1"),
    ],
    ids=str,
)
async def test_what_is_wrong_has_the_nearest_value(
    server: Server, changes: dict[str, Any], param: str, hint: str
) -> None:
    answer = await post(server, **changes)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    (issue,) = error["data"]["issues"]
    assert issue["hint"] == hint
    assert issue["message"].endswith(f"got {next(iter(changes.values()))!r}")


async def test_a_number_without_end_is_told_in_our_words(server: Server) -> None:
    raw = json.dumps(body())[:-1] + f', "quality": {"9" * 5000}}}'
    answer = await server.client.post(PATH, content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "an integer has 5000 characters; 4300 can be read" in answer.json()["message"]


async def test_a_byte_order_mark_is_passed_over_and_compression_refused(server: Server) -> None:
    raw, headers = json.dumps(body()).encode(), {"content-type": "application/json"}
    marked = await server.client.post(PATH, content=b"\xef\xbb\xbf" + raw, headers=headers)
    assert marked.status_code == 200
    packed = await server.client.post(PATH, content=gzip.compress(raw), headers=headers | {"content-encoding": "gzip"})
    assert packed.status_code == 415
    assert "got the content-encoding 'gzip'" in packed.json()["message"]


async def test_streaming(server: Server) -> None:
    answer = await post(server, stream=True, partial_images=2, num_inference_steps=4, response_format="b64_json")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = streamed(answer)
    names = [event["type"].removeprefix("image_generation.") for event in events]
    assert names.count("partial_image") == 2
    assert names[-1] == "completed"
    assert [event["step"] for event in events if event["type"].endswith("progress")] == [0, 1, 2, 3, 4, 4]
    assert [event["partial_image_index"] for event in events if event["type"].endswith("partial_image")] == [0, 1]
    assert base64.b64decode(events[-1]["b64_json"]).startswith(b"\x89PNG")
    assert events[-1]["usage"]["total_tokens"] == 10500
    assert answer.headers["x-accel-buffering"] == "no"


async def test_each_streamed_picture_has_its_previews_and_its_share_of_the_price(server: Server) -> None:
    events = streamed(await post(server, stream=True, partial_images=2, num_images=2, num_inference_steps=4))
    previews = [event for event in events if event["type"].endswith("partial_image")]
    assert [(event["image"], event["partial_image_index"]) for event in previews] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    usage = [event["usage"] for event in events if event["type"].endswith("completed")]
    assert [one["credits_used"] for one in usage] == [one["total_tokens"] for one in usage] == [10500, 10500]
    assert sum(one["usd_spent"] for one in usage) == 0.0105


async def silent_stream(server: Server, monkeypatch: pytest.MonkeyPatch) -> "asyncio.Future[Any]":
    """A stream that the closed gate keeps from its first step, for longer than silence is let be."""
    monkeypatch.setattr("zturbo.api.images.SILENCE_S", 0.01)
    server.engine.gate.clear()
    drawn = server.engine.draws
    running = asyncio.ensure_future(post(server, stream=True))
    await until(lambda: server.engine.draws > drawn)
    await asyncio.sleep(0.05)
    return running


async def test_a_silent_stream_has_comments(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await silent_stream(server, monkeypatch)
    server.engine.gate.set()
    answer = await running
    assert COMMENT.decode() in answer.text
    assert streamed(answer)[-1]["type"] == "image_generation.completed"


async def test_a_client_that_leaves_a_silent_stream_frees_the_engine(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving = await silent_stream(server, monkeypatch)
    leaving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await leaving
    server.engine.gate.set()
    assert (await post(server)).status_code == 200
    await server.service.close()
    rows = (await server.service.records.history.logs(10)).rows
    assert sorted(row.status for row in rows) == ["cancelled", "done"]


async def test_a_failure_in_a_stream_is_an_event_and_a_traceback_in_the_log(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await post(server, stream=True, prompt="break")
    last = json.loads(answer.text.strip().splitlines()[-1].removeprefix("data: "))
    assert last["type"] == "image_generation.failed"
    assert last["status"] == 500
    (crash,) = [one for one in caplog.records if one.exc_info]
    assert crash.__dict__["request_id"] == answer.headers["x-request-id"]


async def test_a_crash_can_be_read_by_a_page_of_another_origin(server: Server) -> None:
    answer = await server.client.post(PATH, json=body(prompt="break"), headers={"origin": "https://a.example"})
    assert answer.status_code == 500
    assert answer.headers.get_list("access-control-allow-origin") == ["*"]
    assert "x-request-id" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("more", [True, False])
def test_large_answers_are_sent_in_pieces(more: bool) -> None:
    """Granian buffers messages of any size: a client that reads nothing would keep a whole answer in memory."""
    whole = bytes(range(256)) * 1500
    pieces = list(identity._pieces({"type": "http.response.body", "body": whole, "more_body": more}))
    assert b"".join(piece["body"] for piece in pieces) == whole
    assert [len(piece["body"]) for piece in pieces] == [identity.PIECE_BYTES, len(whole) - identity.PIECE_BYTES]
    assert [piece["more_body"] for piece in pieces] == [True, more]
    small: Message = {"type": "http.response.body", "body": b""}
    assert list(identity._pieces(small)) == [small]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_stops_reading_is_given_up(
    engine: Instant, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(identity, "SEND_TIMEOUT_S", 0.05)
    async with serving(engine) as server:
        transport: Any = server.client._transport
        sent: list[Message] = []

        async def stalling(message: Message) -> None:
            sent.append(message)
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        raw, given = json.dumps(body(stream=stream)).encode(), [False]

        async def receive() -> Message:
            if given[0]:
                await asyncio.Event().wait()
            given[0] = True
            return {"type": "http.request", "body": raw}

        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        scope = {"type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b"",
                 "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
                 "server": ("testserver", 80), "client": ("127.0.0.1", 1), "scheme": "http", "http_version": "1.1",
                 "root_path": "", "asgi": {"version": "3.0", "spec_version": "2.4"}}  # fmt: skip
        async with asyncio.timeout(10):
            await transport.app(scope, receive, stalling)
        await server.service.close()
        (found,) = (await server.service.records.history.logs(10)).rows
        assert found.held == 0
        assert found.status == ("cancelled" if stream else "done"), "what was drawn before its answer is charged"
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


async def test_ids_and_cors(server: Server) -> None:
    answer = await server.client.get(
        "/healthz", headers={"x-client-request-id": "mine:1", "origin": "https://a.example"}
    )
    assert len(answer.headers["x-request-id"]) == 21
    assert answer.headers["x-client-request-id"] == "mine:1"
    assert answer.headers["access-control-allow-origin"] == "*"
    answer = await server.client.get("/nowhere", headers={"x-client-request-id": "not ok!"})
    assert answer.status_code == 404
    assert "x-client-request-id" not in answer.headers
    assert answer.json()["path"] == "/nowhere"
    assert (await server.client.get(PATH)).status_code == 405


async def test_models_and_readiness(server: Server) -> None:
    (model,) = (await server.client.get("/v1/models")).json()["data"]
    assert model["id"] == "alibaba/z-image-turbo"
    assert model["type"] == "image"
    assert (await server.client.get("/model/alibaba/z-image-turbo")).json()["data"] == model
    assert (await server.client.get("/model/other")).status_code == 404
    for path in ("/v1/models/alibaba/z-image-turbo", "/v1/models/alibaba%2Fz-image-turbo"):
        assert (await server.client.get(path)).json() == model, "as OpenAI's clients look a model up"
    assert (await server.client.get("/v1/models/other")).status_code == 404
    assert (await server.client.get("/readyz")).json()["status"] == "ready"
    server.service.worker.queue.drain()
    answer = await server.client.get("/readyz")
    assert answer.status_code == 503
    assert "shutting down" in answer.json()["message"]


async def test_no_such_file(server: Server) -> None:
    for name in ("0a84de46/GTZfn0tOOQzXlC2Wvpzz9.png", "../../etc/passwd", "%2e%2e/x", "a", "0a84de46/x.png"):
        assert (await server.client.get(f"/files/b/{name}")).status_code == 404


async def test_ranges_and_heads_of_a_picture(server: Server) -> None:
    url = (await post(server)).json()["data"][0]["url"]
    whole = (await server.client.get(url)).content
    part = await server.client.get(url, headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
    head = await server.client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole))
    beyond = await server.client.get(url, headers={"range": f"bytes={len(whole)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(whole)}")
    assert beyond.json()["error"]["code"] == "range_not_satisfiable"
    assert (await server.client.head(url, headers={"range": "bytes=10-19"})).status_code == 200


async def test_a_picture_that_the_client_has_is_not_sent_again(server: Server) -> None:
    url = (await post(server)).json()["data"][0]["url"]
    tag = (await server.client.get(url)).headers["etag"]
    again = await server.client.get(url, headers={"if-none-match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    ours = await server.client.get(url, headers={"range": "bytes=0-0", "if-range": tag})
    other = await server.client.get(url, headers={"range": "bytes=0-0", "if-range": '"another"'})
    assert (ours.status_code, other.status_code) == (206, 200)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/models", "/openapi.json", "/docs"])
async def test_monitors_that_ask_for_the_head_get_it(server: Server, path: str) -> None:
    head, whole = await server.client.head(path), await server.client.get(path)
    assert (head.status_code, head.content) == (whole.status_code, b"") == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))


async def test_what_a_path_takes_is_told_once(server: Server) -> None:
    refused = await server.client.put("/v1/keys")
    assert (refused.status_code, refused.headers.get_list("allow")) == (405, ["GET, HEAD, POST"])


async def test_who_has_no_key_is_told_how_to_send_one(server: Server) -> None:
    refused = await server.client.post(PATH, json=body(), headers={"authorization": ""})
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")


async def test_a_header_is_not_called_body(server: Server) -> None:
    refused = await server.client.post(PATH, json=body(), headers={"idempotency-key": " "})
    assert refused.json()["message"].startswith("Header validation error\nidempotency-key")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, (0, 100)), ("bytes=0-", (0, 100)), ("bytes=90-", (90, 10)), ("bytes=-5", (95, 5)),
        ("bytes=-500", (0, 100)), ("bytes=0-0", (0, 1)), ("bytes=50-1000", (50, 50)), ("bytes=100-", None),
        ("bytes=-0", None), ("bytes=7-3", (0, 100)),
        ("bytes=0-1,5-6", (0, 100)), ("items=0-1", (0, 100)), ("bytes=-", (0, 100)), ("bytes=x-2", (0, 100)),
    ],
)  # fmt: skip
async def test_range_headers(header: str | None, expected: tuple[int, int] | None) -> None:
    assert wanted_range(header, 100) == expected


async def test_a_swept_picture_is_gone(server: Server) -> None:
    url = (await post(server)).json()["data"][0]["url"]
    assert await server.service.files.sweep(before_ms=1 << 62) == 1
    answer = await server.client.get(url)
    assert answer.status_code == 410
    assert "retention" in answer.json()["message"]


async def test_a_client_that_leaves_frees_the_engine_within_a_step(server: Server) -> None:
    server.engine.gate.clear()
    drawn = server.engine.draws
    leaving = asyncio.ensure_future(post(server))
    await until(lambda: server.engine.draws > drawn)
    steps = server.engine.steps_drawn
    leaving.cancel()
    await asyncio.sleep(0.01)
    server.engine.gate.set()
    assert (await post(server, num_inference_steps=1)).status_code == 200
    assert server.engine.steps_drawn <= steps + 2  # at most the one that was under way, and the new request's


def test_work_that_was_cancelled_has_an_answer_of_its_own() -> None:
    body = error_body(Cancelled.status, "the client went away", Cancelled.code, PATH, "0" * 21)
    assert (body["statusCode"], body["title"]) == (499, "Client Closed Request")
    assert body["error"]["name"] == "ClientClosedRequestException"


def test_pictures_are_put_into_json_as_they_are() -> None:
    pictures = [Base64(bytes(range(256))), Base64(b"")]
    value = {"data": [{"b64_json": one} for one in pictures], "again": pictures[0], "prompt": 'é\u2028" 0\n'}
    raw = rendered(value)
    assert raw.isascii()
    assert b"\n" not in raw
    told = json.loads(raw)
    assert [base64.b64decode(one["b64_json"]) for one in told["data"]] == [bytes(range(256)), b""]
    assert told["again"] == told["data"][0]["b64_json"]
    assert told["prompt"] == value["prompt"]
