"""A chat endpoint on loopback that answers as a test wants: well, badly, endlessly."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Answer = Callable[["ChatServer", asyncio.StreamWriter], Awaitable[None]]


@dataclass
class ChatServer:
    """What came in, and how to answer next."""

    answer: Answer
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    running: set[asyncio.Task[None]] = field(default_factory=set)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection in a task that `chat_server` ends."""
        task = asyncio.ensure_future(self._serve(reader, writer))
        self.running.add(task)
        task.add_done_callback(self.running.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(line for line in head.lower().splitlines() if line.startswith("content-length"))
            self.heads.append(head)
            self.bodies.append(json.loads(await reader.readexactly(int(length.split(":")[1]))))
            await self.answer(self, writer)
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def chat_server(answer: Answer) -> AsyncIterator[ChatServer]:
    """The server on a free port of 127.0.0.1."""
    chat = ChatServer(answer)
    server = await asyncio.start_server(chat.accept, "127.0.0.1", 0)
    chat.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield chat
    finally:
        server.close()
        for task in (running := list(chat.running)):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def head(status: str, *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "connection: close", "", ""]).encode()


def reply(body: bytes, status: str = "200 OK", kind: str = "application/json", *lines: str) -> Answer:
    """Answer with these bytes."""

    async def answer(_chat: ChatServer, writer: asyncio.StreamWriter) -> None:
        writer.write(head(status, f"content-type: {kind}", f"content-length: {len(body)}", *lines) + body)

    return answer


def says(text: object, finish: str = "stop") -> Answer:
    """Answer with a chat completion."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": finish, "message": message}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return reply(json.dumps(body).encode())


def endless(status: str) -> Answer:
    """A body that never ends."""

    async def answer(_chat: ChatServer, writer: asyncio.StreamWriter) -> None:
        writer.write(head(status, "content-type: application/json"))
        while not writer.is_closing():
            writer.write(b" " * 65536)
            await writer.drain()

    return answer


async def silence(_chat: ChatServer, _writer: asyncio.StreamWriter) -> None:
    """Take the request and say nothing for longer than anybody waits."""
    await asyncio.sleep(60)


async def hang_up(_chat: ChatServer, writer: asyncio.StreamWriter) -> None:
    """Close without an answer."""
    writer.close()


async def half_a_body(_chat: ChatServer, writer: asyncio.StreamWriter) -> None:
    """Promise more than is sent."""
    writer.write(head("200 OK", "content-type: application/json", "content-length: 1000") + b'{"choices": [')


async def long_head(_chat: ChatServer, writer: asyncio.StreamWriter) -> None:
    """Ten megabytes of header."""
    writer.write(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 10_000_000 + b"\r\n\r\n")
