"""The load benchmark at its smallest: it compares, and it fails where a picture differs."""

import json
import threading
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from bench import load
from bench.report import conditions
from tests.engine.test_load import Opened, two_lanes
from zturbo.engine.machine import detect
from zturbo.engine.queue import AdmissionQueue
from zturbo.errors import Busy


@pytest.fixture
def queue(tiny_folder: Path) -> AdmissionQueue:
    worker = Opened(two_lanes(str(tiny_folder), dtype="float32"))
    for _ in range(worker.engine.lanes):
        threading.Thread(target=worker._lane, daemon=True).start()
    return worker.queue


def test_a_load_is_compared_with_the_same_requests_one_by_one(
    queue: AdmissionQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "STEPS", 1)
    row = load.compare(queue, "small", load.requests(3, (load.SMALL,), (1,)), clients=2)
    assert (row["requests"], row["pictures"], row["small"]) == (3, 3, 3)
    assert row["times the throughput"] == pytest.approx(row["one by one s"] / row["2 clients s"])
    ask, number = load.ask, count()
    monkeypatch.setattr(load, "ask", lambda *request: replace(ask(*request), digest=str(next(number))))
    with pytest.raises(AssertionError, match="drew other pictures"):
        load.compare(queue, "small", load.requests(2, (load.SMALL,), (1,)), clients=2)
    queue.drain()


def test_a_client_that_fails_fails_the_run() -> None:
    with pytest.raises(Busy, match="still loading"):
        load.serve(AdmissionQueue(1), load.requests(2, (load.SMALL,), (1,)), clients=2)


def test_the_mix_is_the_same_every_time() -> None:
    work = load.requests(64, load.SIZES, load.IMAGES)
    assert work == load.requests(64, load.SIZES, load.IMAGES)
    assert {params.num_images for params in work} == {1, 2, 3, 4}
    assert sum(load.is_small(params) for params in work) >= 16
    assert {params.acceleration for params in load.requests(4, load.SIZES, load.IMAGES, "high")} == {"high"}
    assert load.p95([float(value) for value in range(101)]) == 95.0


def test_loads_measured_one_after_another_are_kept_together(tmp_path: Path) -> None:
    path, machine = tmp_path / "load.json", detect("cpu")
    rows: list[load.Row] = [{"load": "mixed", "requests": 2}]
    assert load.with_others(path, rows, machine, "regular") == rows
    kept: list[load.Row] = [{"load": "small"}, {"load": "mixed"}]
    path.write_text(json.dumps({"rows": kept, "conditions": conditions(machine), "note": "regular"}))
    assert load.with_others(path, rows, machine, "regular") == [kept[0], *rows]
    path.write_text(
        json.dumps({"rows": kept, "conditions": {**conditions(machine), "commit": "another"}, "note": "regular"})
    )
    assert load.with_others(path, rows, machine, "regular") == rows
    path.write_text(json.dumps({"rows": kept, "conditions": conditions(machine), "note": "high"}))
    assert load.with_others(path, rows, machine, "regular") == rows, "of another level"
