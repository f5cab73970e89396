"""The engine under load: mixed requests at a concurrency of 8 beside the same requests one after another, in one run.

    python -m bench.load [--requests 64] [--concurrency 8] [--model nano] [--dtype auto] [--acceleration regular]

Requests go through the queue and the lanes as in the server, and each client encodes its pictures as PNG. The run one
after another gives every request's time alone and its pictures; under load each picture must be the same, byte for
byte, or the run fails. Two loads: small (one picture of 512x512) and mixed (512 to 1024 wide, 1 to 4 pictures; every
fourth request is small, 16 of 64, so that there is a p95 of small requests to speak of).

Two bars: 1.3 times the throughput of one after another where requests are small, and small requests among large ones
at a p95 of no more than twice their time alone plus the largest step. All clients begin in the same instant, so that
their first small requests wait for one another; "later" leaves the first one of each client out, and is no bar.
Written: bench/results/load-cpu.json.
"""

import argparse
import hashlib
import json
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from statistics import median, quantiles
from typing import Any

from bench import report
from zturbo.engine.engine import Engine, LoadOptions
from zturbo.engine.machine import Machine
from zturbo.engine.progress import Progress
from zturbo.engine.queue import AdmissionQueue
from zturbo.engine.worker import Worker
from zturbo.params import ACCELERATIONS, GenerationParams
from zturbo.pictures import encode

PROMPTS = ("a red balloon over the sea", "a cat on a roof at night", "a green dragon in the snow", "space at night")
SMALL = "512x512"
SIZES = (SMALL, SMALL, "768x512", "768x768", "1024x768", "1024x1024")
IMAGES = (1, 1, 1, 2, 3, 4)
LOADS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {"small": ((SMALL,), (1,)), "mixed": (SIZES, IMAGES)}
"""Sizes and numbers of pictures of each load's requests."""
STEPS = 8
SMALL_EVERY = 4
"""In the mix, every so many-th request is small, whatever chance says about the others."""
LEAST_TIMES = 1.3
"""The bar of throughput, of small requests."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """One request: seconds from its admission to its encoded pictures, their digest, seconds of one step of its own."""

    seconds: float
    digest: str
    step_s: float


def requests(
    count: int, sizes: Sequence[str], images: Sequence[int], level: str = "regular", seed: int = 1
) -> list[GenerationParams]:
    """A mix of requests, the same for the same seed."""
    chance = random.Random(seed)
    work = []
    for number in range(count):
        prompt, size, pictures = chance.choice(PROMPTS), chance.choice(sizes), chance.choice(images)
        if number % SMALL_EVERY == 0:
            size, pictures = SMALL, 1
        work.append(
            GenerationParams.parse({
                "prompt": prompt, "size": size, "num_images": pictures, "seed": number + 1, "steps": STEPS,
                "prompt_expansion": False, "acceleration": level,
            })
        )  # fmt: skip
    return work


def is_small(params: GenerationParams) -> bool:
    """One picture of the smallest size."""
    return params.num_images == 1 and f"{params.width}x{params.height}" == SMALL


def ask(queue: AdmissionQueue, params: GenerationParams) -> Result:
    """One client's request, from its admission to its PNG files."""
    events: SimpleQueue[Any] = SimpleQueue()
    start = time.perf_counter()
    queue.admit(params, events.put)
    while not (isinstance(event := events.get(), Progress) and event.stage == "done"):
        if isinstance(event, Exception):
            raise event
    for picture in event.pictures:
        encode(picture.pixels, "png", None)
    seconds = time.perf_counter() - start
    digest = hashlib.sha256(b"".join(picture.pixels.tobytes() for picture in event.pictures)).hexdigest()
    return Result(seconds, digest, event.timings["denoise"] / params.steps / params.num_images)


def serve(queue: AdmissionQueue, work: Sequence[GenerationParams], clients: int) -> tuple[list[Result], float]:
    """All requests by so many clients, each asking anew when it is served: results, and seconds in all."""
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        results = list(pool.map(partial(ask, queue), work))
    return results, time.perf_counter() - start


def compare(queue: AdmissionQueue, name: str, work: Sequence[GenerationParams], clients: int) -> Row:
    """One row: a load by one client and by many.

    Raises:
        AssertionError: a picture under load differs from the one drawn alone.
    """
    alone, alone_s = serve(queue, work, 1)
    loaded, loaded_s = serve(queue, work, clients)
    differing = [number for number, (a, b) in enumerate(zip(alone, loaded, strict=True)) if a.digest != b.digest]
    assert not differing, f"requests {differing} drew other pictures under load than alone"
    small = [number for number, params in enumerate(work) if is_small(params)]
    small_alone, small_loaded = ([results[number].seconds for number in small] for results in (alone, loaded))
    later = [loaded[number].seconds for number in small if number >= clients] or small_loaded
    times, step = alone_s / loaded_s, max(result.step_s for result in alone)
    bar = 2 * median(small_alone) + step
    mixed = len(small) < len(work)
    met = p95(small_loaded) <= bar if mixed else times >= LEAST_TIMES
    return {
        "load": name, "requests": len(work), "pictures": sum(params.num_images for params in work),
        "one by one s": alone_s, f"{clients} clients s": loaded_s, "times the throughput": times,
        "small": len(small), "small alone s": median(small_alone), "small p50 s": median(small_loaded),
        "small p95 s": p95(small_loaded), "later p95 s": p95(later), "largest step s": step,
        "bar": f"small p95 <= {bar:.2f} s" if mixed else f">= {LEAST_TIMES} times", "met": "yes" if met else "no",
    }  # fmt: skip


def with_others(path: Path, rows: list[Row], machine: Machine, note: str) -> list[Row]:
    """Rows with those of the other loads that were measured before, by one commit on one machine, on whatever day, of
    the same model, level and clients, which the note names."""
    if not path.is_file():
        return rows
    before, names = json.loads(path.read_text()), {row["load"] for row in rows}
    same = {**before["conditions"], "date": ""} == {**report.conditions(machine), "date": ""} and before["note"] == note
    return [row for row in before["rows"] if same and row["load"] not in names] + rows


def p95(values: Sequence[float]) -> float:
    """The value that 95 of 100 stay below."""
    return quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def warm_up(queue: AdmissionQueue, clients: int, level: str) -> None:
    """Every size and caption once in company, so that what is proven once per shape is proven."""
    work = [
        GenerationParams.parse({
            "prompt": prompt, "size": size, "steps": 1, "seed": 1, "prompt_expansion": False, "acceleration": level,
        })
        for size in sorted(set(SIZES)) for prompt in PROMPTS for _ in range(2)
    ]  # fmt: skip
    serve(queue, work, clients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--acceleration", choices=ACCELERATIONS, default="regular")
    parser.add_argument("--load", choices=LOADS, action="append", help="only this one; rows of the other are kept")
    arguments = parser.parse_args()
    level = arguments.acceleration
    options = LoadOptions(dtype=arguments.dtype, acceleration=level, build=True, expansion=False)
    engine = Engine.load(arguments.model, options)
    queue, clients = AdmissionQueue(arguments.concurrency), arguments.concurrency
    worker = Worker(queue, lambda: engine)
    worker.start()
    while queue.refusal is not None:
        time.sleep(0.01)
        if worker.failure is not None:
            raise worker.failure
    warm_up(queue, clients, level)
    rows = []
    for name in arguments.load or LOADS:
        rows.append(compare(queue, name, requests(arguments.requests, *LOADS[name], level), clients))
        print(rows[-1], flush=True)
    queue.drain()
    worker.join(60)
    made = engine.levels[level]
    note = (
        f"{engine.model.name} in {engine.plan.dtype}, {STEPS} forwards, level {level} ({made}), {engine.lanes} lanes, "
        f"{clients} clients that ask again when served, prompt expansion off; every picture byte-equal to the one "
        "drawn alone; bar of small requests among large ones: twice the time alone plus the largest step"
    )
    name = f"load-{engine.plan.device}"
    rows = with_others(report.RESULTS / f"{name}.json", rows, engine.machine, note)
    report.publish(name, engine.machine, rows, note)


if __name__ == "__main__":
    main()
