"""The official OpenAI package for Python against the real server: plain, asynchronous, streamed, refused, retried."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest

from tests.api.server_process import KEY, Serving

MODEL = "alibaba/z-image-turbo"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def client(server: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as one:
        yield one


def test_a_picture_by_its_address(server: Serving, client: openai.OpenAI) -> None:
    answer = client.images.generate(model=MODEL, prompt="a cat", size="1024x1024", n=2)
    assert answer.data is not None
    assert len(answer.data) == 2
    for picture in answer.data:
        assert picture.b64_json is None
        assert picture.url is not None
        assert server.ask("GET", picture.url.removeprefix(server.url)).body.startswith(PNG)


def test_a_picture_in_base64(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        model=MODEL, prompt="a cat", response_format="b64_json", extra_body={"num_inference_steps": 4, "seed": 7}
    )
    assert answer.data is not None
    assert base64.b64decode(answer.data[0].b64_json or "").startswith(PNG)
    assert answer.data[0].url is None


def test_their_own_model_by_an_alias(client: openai.OpenAI) -> None:
    """As their documents call it: neither response_format nor our members."""
    answer = client.images.generate(
        model="gpt-image-1", prompt="a cat", size="1536x1024", quality="low", background="opaque", moderation="low",
        output_format="webp", user="me",
    )  # fmt: skip
    assert answer.data is not None
    assert base64.b64decode(answer.data[0].b64_json or "")[8:12] == b"WEBP"


@pytest.mark.anyio
async def test_asynchronous(server: Serving) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
        answer = await client.images.generate(model=MODEL, prompt="a cat")
        assert answer.data is not None
        assert answer.data[0].url is not None


@pytest.mark.parametrize("model", [MODEL, "gpt-image-1"])
def test_streamed_with_partial_images(client: openai.OpenAI, model: str) -> None:
    stream = client.images.generate(model=model, prompt="a cat", stream=True, partial_images=2)
    shown, completed = [], []
    for event in stream:
        if event.type == "image_generation.partial_image":
            shown.append(event.partial_image_index)
            assert base64.b64decode(event.b64_json).startswith(PNG)
        elif event.type == "image_generation.completed":
            completed.append(event)
            assert base64.b64decode(event.b64_json).startswith(PNG)
            assert event.usage.total_tokens == 10500
    assert shown == [0, 1]
    assert len(completed) == 1


@pytest.mark.anyio
async def test_streamed_asynchronously(server: Serving) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
        stream = await client.images.generate(model=MODEL, prompt="a cat", stream=True, partial_images=1)
        types = [event.type async for event in stream]
    assert types.count("image_generation.partial_image") == 1
    assert types[-1] == "image_generation.completed"


def test_a_wrong_value_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(model=MODEL, prompt="a cat", n=9)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "n")
    assert "9" in str(caught.value)
    assert caught.value.request_id is not None


@pytest.mark.parametrize(
    ("key", "path", "expected"),
    [
        ("0" * 32, "/v1", openai.AuthenticationError),
        (KEY, "/nowhere", openai.NotFoundError),
    ],
)
def test_other_refusals(server: Serving, key: str, path: str, expected: type[openai.APIStatusError]) -> None:
    with (
        openai.OpenAI(base_url=server.url + path, api_key=key, max_retries=0) as client,
        pytest.raises(expected),
    ):
        client.images.generate(model=MODEL, prompt="a cat")


def test_a_crash_is_not_tried_again(server: Serving) -> None:
    """The answer says that it would fail again, by x-should-retry."""
    before = server.log.read_text("utf-8").count('"status": 500')
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=3) as client,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        client.images.generate(model=MODEL, prompt="break")
    assert caught.value.code == "internal_error"
    assert server.logged('"status": 500', before + 1) == before + 1


def test_models_can_be_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


@contextmanager
def refusing(server: Serving, times: int) -> Iterator[str]:
    """A door before the server that answers as our full queue does, some times; yields its address."""
    left = [times]

    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            sent: dict[str, Any] = {"authorization": self.headers["authorization"]}
            reply = server.ask("POST", self.path, body, sent)
            if left[0]:
                left[0] -= 1
                self.send_response(503)
                self.send_header("retry-after", "0")
            else:
                self.send_response(reply.status)
                self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, format: str, *values: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as door:
        thread = threading.Thread(target=door.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{door.server_port}/v1"
        finally:
            door.shutdown()
            thread.join()


def test_busy_is_tried_again(server: Serving) -> None:
    with refusing(server, times=2) as address, openai.OpenAI(base_url=address, api_key=KEY, max_retries=2) as client:
        answer = client.images.generate(model=MODEL, prompt="a cat")
    assert answer.data
    json.dumps(answer.model_dump())
