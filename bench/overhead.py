"""What the server adds to the engine's own time: a picture of 1024x1024 over HTTP, beside the engine alone in one run.

    python -m bench.overhead [--rounds 15] [--size 1024x1024]

`zturbo serve` runs nano with keys, records, files and fsync as always; one client asks for one picture at a time. What
is added is the time that the client waited less the engine's seconds that the answer states for this very picture: the
two differ by what is looked for, and not by how fast the machine was just then. The engine alone draws the same picture
before each request, in this process, so that its time beside a server is seen as well. The last row has the safety
checker on, which is a network of its own and no part of the bar.
"""

import argparse
import http.client
import json
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench.report import publish
from tests.api.server_process import GENERATIONS, KEY, Serving, serving
from zturbo.engine.engine import Engine
from zturbo.engine.machine import detect
from zturbo.params import GenerationParams

ENGINE = ("expand", "encode", "denoise", "decode")
"""Stages of an answer's timings that are the engine's own."""
PROMPT = "a red boat on the sea at sunset"


def ask(connection: http.client.HTTPConnection, body: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """Seconds until the whole answer was there, and those by stage that it states."""
    start = time.perf_counter()
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    connection.request("POST", GENERATIONS, json.dumps(body), headers)
    answer = connection.getresponse()
    content = answer.read()
    waited = time.perf_counter() - start
    assert answer.status == 200, content
    return waited, json.loads(content)["timings"]


def alone(engine: Engine, params: GenerationParams) -> float:
    """Seconds of the engine for one picture."""
    start = time.perf_counter()
    for _ in engine.draw(params):
        pass
    return time.perf_counter() - start


def compare(server: Serving, engine: Engine, size: str, output_format: str, rounds: int) -> dict[str, Any]:
    """One row: medians over the rounds, after one that is not counted."""
    params = GenerationParams.parse({"prompt": PROMPT, "size": size, "seed": 1, "prompt_expansion": False})
    body = {"model": "alibaba/z-image-turbo", "prompt": PROMPT, "size": size, "seed": 1,
            "enable_prompt_expansion": False, "output_format": output_format}  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    drawn, theirs, added, checked = [], [], [], []
    for number in range(rounds + 1):
        seconds = alone(engine, params)
        waited, timings = ask(connection, body)
        if number:
            own = sum(timings[stage] for stage in ENGINE)
            drawn.append(seconds)
            theirs.append(own)
            added.append((waited - own - timings["safety"]) * 1000)
            checked.append(timings["safety"] * 1000)
    connection.close()
    return {
        "picture": f"{size} {output_format}",
        "engine alone s": median(drawn),
        "engine in the server s": median(theirs),
        "added ms": median(added),
        "added ms, p90": quantiles(added, n=10)[-1] if len(added) > 1 else added[0],
        "safety checker ms": median(checked),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", default="1024x1024")
    arguments = parser.parse_args()
    engine = Engine.load("nano")
    rows = []
    for checker, formats in (("none", ("png", "jpeg", "webp")), ("bundled", ("png",))):
        with (
            tempfile.TemporaryDirectory() as folder,
            serving(Path(folder), module="zturbo serve", safety_checker=checker) as server,
        ):
            rows += [
                {"safety checker": checker} | compare(server, engine, arguments.size, output_format, arguments.rounds)
                for output_format in formats
            ]
    note = (
        f"nano, one request at a time; medians of {arguments.rounds}; added: the client's wait less the engine's and "
    )
    publish("overhead", detect(), rows, f"{note}the checker's seconds in the answer")


if __name__ == "__main__":
    main()
