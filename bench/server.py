"""The server without a model: requests a second and latency, with keys, records, files and fsync as always.

    python -m bench.server [--rounds 5] [--seconds 5] [--connections 16]

The real command's server (Granian, one worker) runs with an engine that draws at once, in a process of its own; a
client of plain sockets keeps some connections busy from this one, on the same cores. Each request is checked, held,
admitted, drawn, encoded, written, synced, charged and committed before it is answered. The rows differ in the pictures:
tiny ones leave encoding out, real ones show what PNG costs.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench.report import publish
from tests.api.server_process import GENERATIONS, KEY, Serving, serving
from zturbo.engine.machine import detect

BODY = {"model": "alibaba/z-image-turbo", "prompt": "a cat", "image_size": "square"}
TINY, WHOLE = 16, 512
"""Pixels of a side as it is drawn; 512 is what was asked for."""


def request(body: dict[str, Any]) -> bytes:
    """One request as it goes over the wire."""
    data = json.dumps(body).encode()
    head = (
        f"POST {GENERATIONS} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def client(port: int, sent: bytes, until: float, latencies: list[float]) -> None:
    """Ask again and again on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        start = time.perf_counter()
        writer.write(sent)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n", 1)[0]))
        latencies.append(time.perf_counter() - start)
    writer.close()
    await writer.wait_closed()


async def measure(port: int, body: dict[str, Any], connections: int, seconds: float) -> tuple[float, list[float]]:
    """Requests a second, and all latencies in seconds, sorted."""
    latencies: list[float] = []
    start = time.perf_counter()
    await asyncio.gather(*(client(port, request(body), start + seconds, latencies) for _ in range(connections)))
    return len(latencies) / (time.perf_counter() - start), sorted(latencies)


def rounds(server: Serving, body: dict[str, Any], arguments: argparse.Namespace) -> dict[str, float]:
    """Medians over the rounds, after one that is not counted."""
    asyncio.run(measure(server.port, body, arguments.connections, 1))
    rates, middles, tails = [], [], []
    for _ in range(arguments.rounds):
        rate, latencies = asyncio.run(measure(server.port, body, arguments.connections, arguments.seconds))
        rates.append(rate)
        middles.append(latencies[len(latencies) // 2] * 1000)
        tails.append(latencies[int(len(latencies) * 0.99)] * 1000)
    return {"requests/s": median(rates), "p50 ms": median(middles), "p99 ms": median(tails)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=16)
    arguments = parser.parse_args()
    rows = []
    for side, output_format in ((TINY, "png"), (WHOLE, "png"), (WHOLE, "jpeg")):
        with tempfile.TemporaryDirectory() as folder, serving(Path(folder), side=side, queue_limit=1000) as server:
            body = BODY | {"output_format": output_format}
            rows.append(
                {"picture": f"{side}x{side} {output_format}", "connections": arguments.connections}
                | rounds(server, body, arguments)
            )
        print(rows[-1], flush=True)
    note = f"keys, records, files and fsync on; medians of {arguments.rounds} rounds of {arguments.seconds:g} s"
    publish("server", detect(), rows, note)


if __name__ == "__main__":
    main()
